"""Starting the exec stub, and the proof that its exec happened. Loop thread only."""

import os
import subprocess
from collections.abc import Callable, Sequence
from typing import Final

from hal.errors import DeadlinePassed, HalError, Refused
from hal.linux.exec_stub import READY, STUB_ARGV, StubConfig, stub_config_fd
from hal.ports import Event, Reactor

_WORDS_LIMIT_BYTES: Final = 4096


def spawn_stub(config: StubConfig, output_fd: int, pass_fds: Sequence[int]) -> int:
    """Its pid; it leads a session of its own. The caller watches (and so reaps) it.

    Raises OSError."""
    config_fd = stub_config_fd(config)
    try:
        popen = subprocess.Popen(
            [*STUB_ARGV, str(config_fd)],
            env={},
            pass_fds=[*pass_fds, config_fd],
            stdin=subprocess.DEVNULL,
            stdout=output_fd,
            stderr=output_fd,
            start_new_session=True,
        )
    except (ValueError, subprocess.SubprocessError) as exc:
        raise OSError(0, str(exc)) from exc
    finally:
        os.close(config_fd)
    popen.returncode = 0  # reaped through its pidfd: Popen must not wait for it as well
    return popen.pid


def await_exec(
    reactor: Reactor, status_fd: int, deadline_ns: int, done: Callable[[HalError | None], None]
) -> None:
    """`done(None)` when the stub has become the program, else with the reason. Owns the fd.

    The stub says READY just before the exec, which closes its end. READY and the end: it is the
    program now. The end without READY: it died before. More than READY: why the exec failed.
    """
    words = bytearray()

    def end(error: HalError | None) -> None:
        cancel()
        reactor.unwatch(status_fd)
        os.close(status_fd)
        done(error)

    def readable(_: Event) -> None:
        try:
            piece = os.read(status_fd, _WORDS_LIMIT_BYTES)
        except BlockingIOError:
            return
        words.extend(piece)
        if piece:
            return
        if bytes(words) == READY:
            end(None)
        else:
            said = words.removeprefix(READY).decode(errors="replace").strip()
            end(Refused(said or "it was killed before its start"))

    def late() -> None:
        end(DeadlinePassed("it did not come to its exec before the deadline"))

    cancel = reactor.call_at(deadline_ns, late)
    reactor.watch(status_fd, Event.READ, readable)
