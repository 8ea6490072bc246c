"""Short-lived helper commands (runc), a few at a time, each with a deadline, none waited for.

At most `at_once` run; up to `waiting_limit` more wait, beyond that Unavailable. At its deadline a
command is killed and its slot is free again when it is really gone.
"""

import contextlib
import os
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from hal.errors import DeadlinePassed, HalError, Unavailable
from hal.linux.children import Child, Children
from hal.linux.oserror import hal_error
from hal.ports import Done, Reactor

AT_ONCE: Final = 4
WAITING_LIMIT: Final = 64
_SIGKILL: Final = 9


@dataclass(slots=True, kw_only=True)
class Command:
    """One command; cancel it through `CommandQueue.give_up`."""

    argv: Sequence[str]
    deadline_ns: int
    done: Done[int]
    output_fd: int = -1  # stdout and stderr; the caller's, read only when it starts
    on_started: Callable[[int], None] | None = None  # its pid
    child: Child | None = None
    answered: bool = False
    cancel_timer: Callable[[], None] = field(default=lambda: None)


class CommandQueue:
    """Loop thread only."""

    def __init__(
        self,
        reactor: Reactor,
        children: Children,
        *,
        at_once: int = AT_ONCE,
        waiting_limit: int = WAITING_LIMIT,
    ) -> None:
        self._reactor = reactor
        self._children = children
        self._at_once = at_once
        self._waiting_limit = waiting_limit
        self._waiting: deque[Command] = deque()
        self._running = 0

    def submit(
        self,
        argv: Sequence[str],
        deadline_ns: int,
        done: Done[int],
        *,
        output_fd: int = -1,
        on_started: Callable[[int], None] | None = None,
    ) -> Command:
        """`done` with the exit status (minus a signal), or DeadlinePassed, or Unavailable; never
        from inside this call. `output_fd` must stay open until `done`."""
        command = Command(
            argv=argv,
            deadline_ns=deadline_ns,
            done=done,
            output_fd=output_fd,
            on_started=on_started,
        )
        if len(self._waiting) >= self._waiting_limit:
            text = f"{argv[0]}: {self._waiting_limit} commands wait already; try again later"
            self._reactor.post(lambda: self._answer(command, Unavailable(text)))
            return command
        command.cancel_timer = self._reactor.call_at(deadline_ns, lambda: self._late(command))
        self._waiting.append(command)
        self._reactor.post(self._start_some)
        return command

    def _start_some(self) -> None:
        while self._waiting and self._running < self._at_once:
            self._start(self._waiting.popleft())

    def _start(self, command: Command) -> None:
        output = command.output_fd if command.output_fd >= 0 else subprocess.DEVNULL
        try:
            popen = subprocess.Popen(
                list(command.argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
                cwd="/",
                start_new_session=True,
            )
        except (OSError, subprocess.SubprocessError) as exc:
            cause = exc if isinstance(exc, OSError) else OSError(0, str(exc))
            self._answer(command, hal_error(cause, f"start of {command.argv[0]}"))
            return
        popen.returncode = 0  # reaped through its pidfd
        try:
            command.child = self._children.watch_started(
                popen.pid, lambda status: self._ended(command, status)
            )
        except HalError as exc:
            self._answer(command, exc)
            return
        self._running += 1
        if command.on_started is not None:
            command.on_started(popen.pid)

    def _ended(self, command: Command, status: int | None) -> None:
        self._running -= 1
        self._answer(command, -_SIGKILL if status is None else status)
        self._start_some()

    def _late(self, command: Command) -> None:
        if command.child is not None:
            command.child.kill(_SIGKILL)
        else:
            with contextlib.suppress(ValueError):
                self._waiting.remove(command)
        name = os.path.basename(command.argv[0])
        words = " ".join(word for word in command.argv[1:] if not word.startswith("-"))[:80]
        self._answer(command, DeadlinePassed(f"{name} {words}: not finished by its deadline"))

    def _answer(self, command: Command, result: int | HalError) -> None:
        command.cancel_timer()
        if not command.answered:
            command.answered = True
            command.done(result)
