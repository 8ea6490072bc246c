"""The keeper: holds what must outlive the daemon (DESIGN D12). Its death is the card's power loss.

    python -m hal.local.keeper --run DIR --config FILE

One thread, one loop. It owns the ptys of the control links, the windows and doorbells, and the
CNMs' inits; clients ask over `DIR/keeper.sock` (hal/local/wire.py, hal/local/requests.py).
An init has descriptor 3 and may ask `window` there, for its own slot.
Exit status: 0 after shutdown or SIGTERM; 1 when it could not start; 2 usage.
"""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hal.errors import HalError, PeerGone, Refused, Unavailable
from hal.local import libc, rundir, spawn, wire
from hal.local.cgroups import SlotCgroup, find_trees
from hal.local.config import KeeperConfig, SlotConfig, read_config
from hal.local.fence import Fence, Target
from hal.local.miniloop import MiniLoop
from hal.local.relay import Relay
from hal.local.requests import Requests
from hal.local.server import Server
from hal.local.shared import SharedWindow
from hal.local.slot import Slot, SlotHooks, SlotHost, state_json
from hal.local.wire import JsonObject
from hal.ports import Event, PowerAction, SlotState

if TYPE_CHECKING:
    from hal.local.functions import HeldFunctions

_FLUSH_NS: Final = 20_000_000  # for the last answers, before the sockets close


class Keeper:
    """Everything of one run directory. The caller holds its lock."""

    def __init__(self, loop: MiniLoop, config: KeeperConfig) -> None:
        self._loop, self._config = loop, config
        self.run_dir = config.run_dir
        trees = find_trees()
        probe = SlotCgroup(trees, f"/apf/{config.run_id}/probe")
        leaf = probe.make_leaf("init")
        if not config.namespaces:
            self._why_no_fence = "the config turns them off"
        else:
            self._why_no_fence = spawn.why_no_namespaces(leaf)
            if self._why_no_fence and leaf is not None and not spawn.why_no_namespaces(None):
                # a v2 tree in which we may make directories, and start nothing
                self._why_no_fence, leaf = "", None
        probe.remove()
        if self._why_no_fence:
            # Orphans of a dead init come to us, so that they can be found and killed.
            libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
        self._host = SlotHost(
            loop=loop,
            run_dir=config.run_dir,
            trees=trees,
            namespaces=not self._why_no_fence,
            unified=leaf is not None,
        )
        self.relays: dict[int, dict[str, Relay]] = {}
        self.windows: dict[int, SharedWindow] = {}
        self._functions: HeldFunctions | None = None
        self.slots: dict[int, Slot] = {}
        self._server: Server | None = None
        self.stopping = False
        self._told_when_off: list[Callable[[list[str]], None]] = []

    @property
    def fence_words(self) -> str:
        """Said at the start."""
        if self._why_no_fence:
            return f"fence = lease: no pid and mount namespaces ({self._why_no_fence})"
        return "fence = power"

    def start(self, ready: Callable[[], None]) -> None:
        """Make sure that nothing of a forerunner runs, then set up and listen."""
        board = SlotCgroup(self._host.trees, f"/apf/{self._config.run_id}")

        def on_clean(_evidence: str) -> None:
            for slot in self._config.slots:
                rundir.clear_cnm(rundir.cnm_dir(self._config.run_dir, slot.id), keep_log=True)
                self._add(slot)
            self._server = Server(self._loop, self._config.run_dir, Requests(self).handle)
            ready()

        def on_late(error: HalError) -> None:
            raise Unavailable(f"an earlier keeper's CNMs do not die: {error}") from error

        left = Target(cgroup=board, pid=None, pidfd=None, namespaces=True, mark=("", ""))
        Fence(self._loop, left, done=on_clean, late=on_late)

    def about(self) -> JsonObject:
        """The head of a status."""
        return {
            "pid": os.getpid(),
            "run_id": self._config.run_id,
            "fence": self.fence_words,
            "clients": self._server.clients if self._server is not None else 0,
        }

    @property
    def functions(self) -> "HeldFunctions":
        """PCI functions; loaded when the first is asked for: most boards have none."""
        if self._functions is None:
            from hal.local.functions import HeldFunctions

            self._functions = HeldFunctions(self._loop)
        return self._functions

    def window_of(self, number: int) -> SharedWindow:
        window = self.windows.get(number)
        if window is None:
            raise Unavailable(f"slot {number} has no window (window_bytes = 0)")
        return window

    def stop(self, done: Callable[[list[str]], None] = lambda _failures: None) -> None:
        """Power everything off, tell what failed, then leave the loop."""
        self._told_when_off.append(done)
        if self.stopping:
            return
        self.stopping = True
        waiting = len(self.slots)
        failures: list[str] = []

        def on_off(state: SlotState | HalError) -> None:
            nonlocal waiting
            waiting -= 1
            if isinstance(state, HalError):
                failures.append(str(state))
            if not waiting:
                self._stopped(failures)

        for slot in self.slots.values():
            slot.request(PowerAction.OFF, self, on_off)
        if not self.slots:
            self._stopped(failures)

    def close(self) -> None:
        """Let go of everything; power is off already."""
        if self._server is not None:
            self._server.close()
        for relays in self.relays.values():
            for relay in relays.values():
                relay.close()
        for window in self.windows.values():
            window.close()
        if self._functions is not None:
            self._functions.close()
        board = SlotCgroup(self._host.trees, f"/apf/{self._config.run_id}")
        board.remove()
        board.remove_parents()

    def _stopped(self, failures: list[str]) -> None:
        for done in self._told_when_off:
            done(failures)
        self._loop.call_later(_FLUSH_NS, self._loop.stop)

    def _add(self, config: SlotConfig) -> None:
        run_dir, number = self._config.run_dir, config.slot
        relays = {
            link.name: Relay(self._loop, rundir.tty_path(run_dir, config.id, link.name), link.baud)
            for link in config.links
        }
        self.relays[number] = relays
        window = None
        if config.window_bytes:
            window = SharedWindow(self._loop, config.id, config.window_bytes)
            self.windows[number] = window

        def powered(on: bool) -> None:
            for relay in relays.values():
                relay.power(on)

        def before_on() -> None:
            if window is not None:
                window.clear()

        def packet(init: spawn.StartedInit) -> None:
            self._on_init_packet(number, init)

        hooks = SlotHooks(
            before_on=before_on, powered=powered, packet=packet, changed=self._on_changed
        )
        self.slots[number] = Slot(self._host, config, self._config.cgroup_of(config), hooks)

    def _on_changed(self, state: SlotState, owner: object) -> None:
        if self._server is not None:
            self._server.tell_all({"event": "slot", "slot": state_json(state)}, but=owner)

    def _on_init_packet(self, number: int, init: spawn.StartedInit) -> None:
        """An init that does not take its answer does without; its end shows on the pidfd."""
        request: JsonObject = {}
        try:
            received = wire.receive(init.sock)
            if received is None:
                return
            request, fds = received
            wire.close_all(fds)
            if request.get("op") != "window":
                raise Refused(f"op {request.get('op')!r}: an init may ask for 'window' only")
            window = self.window_of(number)
            answer = {
                "id": request.get("id"),
                "ok": True,
                "result": {"size_bytes": window.size_bytes},
            }
            wire.send(init.sock, wire.encode(answer), window.fds_for_cnm())
        except PeerGone:
            return
        except HalError as exc:
            failure = {"id": request.get("id"), "ok": False, "error": wire.error_of(exc)}
            with contextlib.suppress(PeerGone):
                wire.send(init.sock, wire.encode(failure))


def _watch_signals(loop: MiniLoop, stop: Callable[[], None]) -> None:
    """SIGTERM and SIGINT end it in order; a terminal's hang-up is none of its business."""
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def on_signal(_event: Event) -> None:
        os.read(read_fd, 64)
        stop()

    loop.watch(read_fd, Event.READ, on_signal)


def main(argv: list[str] | None = None) -> int:
    """Run until shutdown."""
    parser = argparse.ArgumentParser(prog="hal.local.keeper", description=__doc__.split("\n")[0])
    parser.add_argument("--run", required=True, type=Path, help="run directory (APF_RUN)")
    parser.add_argument("--config", required=True, type=Path, help="JSON, see hal/local/config.py")
    options = parser.parse_args(argv)
    try:
        config = read_config(options.config, options.run)
        lock_fd = rundir.take_lock(config.run_dir)
        run_id_lock = rundir.take_run_id(config.run_id)
        loop = MiniLoop()
        keeper = Keeper(loop, config)
        _watch_signals(loop, lambda: keeper.stop())
        print(f"keeper {os.getpid()}: {keeper.fence_words}", file=sys.stderr, flush=True)  # noqa: T201
        keeper.start(ready=lambda: None)
        loop.run()
        keeper.close()
        loop.close()
    except HalError as exc:
        print(f"keeper: {exc}", file=sys.stderr, flush=True)  # noqa: T201
        return 1
    os.ftruncate(lock_fd, 0)  # not unlinked: two keepers might then lock two files of one name
    os.close(lock_fd)
    run_id_lock.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
