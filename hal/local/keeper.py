"""The keeper: holds what must outlive the daemon (DESIGN D12). Its death is the card's power loss.

    python -m hal.local.keeper --run DIR --config FILE

One thread, one loop. It owns the ptys of the control links, the windows and doorbells, and the
CNMs' inits; clients ask over `DIR/keeper.sock` (hal/local/wire.py). Requests:

    status                                             everything, changes nothing
    power    {slot, action: read|on|off}               answered when it is so; off with proof
    window   {slot}                                    + memfd, bell to hear, bell to ring
    pids     {slot}                                    the CNM's processes as the host sees them
    fault    {slot, link?, drop, duplicate, flip, delay_ms, cut, seed}   without link: all of them
    window_cut     {slot, cut}                         see hal/local/shared.py
    window_corrupt {slot, flips, seed}
    shutdown                                           power off, then exit

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
from typing import Any, Final

from hal.errors import HalError, PeerGone, Refused, Unavailable
from hal.local import libc, rundir, spawn, wire
from hal.local.cgroups import SlotCgroup, find_trees
from hal.local.config import KeeperConfig, SlotConfig, read_config
from hal.local.faults import faults_from
from hal.local.fence import Fence, Target
from hal.local.miniloop import MiniLoop
from hal.local.relay import Relay
from hal.local.server import Client, Server
from hal.local.shared import FLIPS_LIMIT, SharedWindow
from hal.local.slot import Slot, SlotHooks, SlotHost, state_json
from hal.local.wire import JsonObject
from hal.ports import Event, PowerAction, SlotState

_FLUSH_NS: Final = 20_000_000  # for the last answers, before the sockets close
PIDS_LIMIT: Final = 512  # of one answer: it has to fit a packet


class Keeper:
    """Everything of one run directory. The caller holds its lock."""

    def __init__(self, loop: MiniLoop, config: KeeperConfig) -> None:
        self._loop, self._config = loop, config
        trees = find_trees()
        probe = SlotCgroup(trees, f"/apf/{config.run_id}/probe")
        leaf = probe.make_leaf("init")
        self._why_no_fence = (
            spawn.why_no_namespaces(leaf) if config.namespaces else "the config turns them off"
        )
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
        self._relays: dict[int, dict[str, Relay]] = {}
        self._windows: dict[int, SharedWindow] = {}
        self._slots: dict[int, Slot] = {}
        self._server: Server | None = None
        self._stopping = False
        self._told_when_off: list[tuple[Client, JsonObject]] = []
        self._handlers: dict[str, Callable[[Client, JsonObject], None]] = {
            "status": self._status,
            "power": self._power,
            "window": self._window,
            "pids": self._pids,
            "fault": self._fault,
            "window_cut": self._window_cut,
            "window_corrupt": self._window_corrupt,
            "shutdown": self._shutdown,
        }

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
            self._server = Server(self._loop, self._config.run_dir, self._handle)
            ready()

        def on_late(error: HalError) -> None:
            raise Unavailable(f"an earlier keeper's CNMs do not die: {error}") from error

        left = Target(cgroup=board, pid=None, pidfd=None, namespaces=True, mark="")
        Fence(self._loop, left, done=on_clean, late=on_late)

    def stop(self) -> None:
        """Power everything off, then leave the loop."""
        if self._stopping:
            return
        self._stopping = True
        waiting = len(self._slots)
        failures: list[str] = []

        def on_off(state: SlotState | HalError) -> None:
            nonlocal waiting
            waiting -= 1
            if isinstance(state, HalError):
                failures.append(str(state))
            if not waiting:
                self._stopped(failures)

        for slot in self._slots.values():
            slot.request(PowerAction.OFF, self, on_off)
        if not self._slots:
            self._stopped(failures)

    def close(self) -> None:
        """Let go of everything; power is off already."""
        if self._server is not None:
            self._server.close()
        for relays in self._relays.values():
            for relay in relays.values():
                relay.close()
        for window in self._windows.values():
            window.close()
        board = SlotCgroup(self._host.trees, f"/apf/{self._config.run_id}")
        board.remove()
        board.remove_parents()

    def _stopped(self, failures: list[str]) -> None:
        for client, request in self._told_when_off:
            if failures:
                client.fail(request, Unavailable("; ".join(failures)))
            else:
                client.answer(request, {"stopped": len(self._slots)})
        self._loop.call_later(_FLUSH_NS, self._loop.stop)

    def _add(self, config: SlotConfig) -> None:
        run_dir, number = self._config.run_dir, config.slot
        relays = {
            link.name: Relay(self._loop, rundir.tty_path(run_dir, config.id, link.name), link.baud)
            for link in config.links
        }
        self._relays[number] = relays
        window = None
        if config.window_bytes:
            window = SharedWindow(self._loop, config.id, config.window_bytes)
            self._windows[number] = window

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
        self._slots[number] = Slot(self._host, config, self._config.cgroup_of(config), hooks)

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
            window = self._window_of(number)
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

    # --- requests ---

    def _handle(self, client: Client, request: JsonObject) -> None:
        op = request.get("op")
        handler = self._handlers.get(op) if isinstance(op, str) else None
        if handler is None:
            raise Refused(f"op {op!r} is unknown; known: {', '.join(self._handlers)}")
        if self._stopping and op not in ("status", "shutdown"):
            raise Refused("the keeper is shutting down")
        handler(client, request)

    def _status(self, client: Client, request: JsonObject) -> None:
        client.answer(
            request,
            {
                "pid": os.getpid(),
                "run_id": self._config.run_id,
                "fence": self.fence_words,
                "clients": self._server.clients if self._server is not None else 0,
                "slots": [self._slot_status(slot) for slot in self._slots.values()],
            },
        )

    def _slot_status(self, slot: Slot) -> JsonObject:
        number, run_dir = slot.config.slot, self._config.run_dir
        links = [
            {
                "name": name,
                "card": str(rundir.tty_path(run_dir, slot.config.id, name)),
                "cnm": str(rundir.tty_path(run_dir, slot.config.id, name)) + ".cnm",
                "counters": relay.counters(),
                "cut": relay.faults.cut,
            }
            for name, relay in self._relays[number].items()
        ]
        window = self._windows.get(number)
        return {
            "id": slot.config.id,
            "phase": slot.phase.value,
            "state": state_json(slot.state()),
            "links": links,
            "window_bytes": slot.config.window_bytes,
            "window_cut": window is not None and window.cut,
        }

    def _power(self, client: Client, request: JsonObject) -> None:
        raw = request.get("action")
        if raw not in ("read", "on", "off"):
            raise Refused(f"action: {raw!r}, wanted 'read', 'on' or 'off'")

        def on_done(state: SlotState | HalError) -> None:
            if isinstance(state, HalError):
                client.fail(request, state)
            else:
                client.answer(request, state_json(state))

        self._slot_of(request).request(PowerAction(raw), client, on_done)

    def _window(self, client: Client, request: JsonObject) -> None:
        window = self._window_of(self._slot_of(request).config.slot)
        client.answer(request, {"size_bytes": window.size_bytes}, window.fds_for_card())

    def _pids(self, client: Client, request: JsonObject) -> None:
        found = self._slot_of(request).processes()
        keys = ("nspid", "pid", "start_ticks", "cgroup")
        wanted = request.get("nspids")
        if isinstance(wanted, list):
            found = [process for process in found if process[0] in wanted]
        rows = [dict(zip(keys, process, strict=True)) for process in found[:PIDS_LIMIT]]
        client.answer(request, {"processes": rows, "total": len(found)})

    def _fault(self, client: Client, request: JsonObject) -> None:
        relays = self._relays[self._slot_of(request).config.slot]
        name = request.get("link")
        if name is not None and name not in relays:
            raise Refused(f"link {name!r} is unknown; known: {', '.join(relays)}")
        values = {k: v for k, v in request.items() if k not in ("id", "op", "slot", "link")}
        faults = faults_from(values)
        for relay in relays.values() if name is None else [relays[name]]:
            relay.arm(faults)
        client.answer(request, {})

    def _window_cut(self, client: Client, request: JsonObject) -> None:
        cut = request.get("cut")
        if not isinstance(cut, bool):
            raise Refused(f"cut: {cut!r}, wanted true or false")
        self._window_of(self._slot_of(request).config.slot).set_cut(cut)
        client.answer(request, {})

    def _window_corrupt(self, client: Client, request: JsonObject) -> None:
        flips = _integer(request, "flips", 0, FLIPS_LIMIT)
        seed = _integer(request, "seed", 0, 2**64 - 1)
        self._window_of(self._slot_of(request).config.slot).set_corrupt(flips, seed)
        client.answer(request, {})

    def _shutdown(self, client: Client, request: JsonObject) -> None:
        self._told_when_off.append((client, request))
        self.stop()

    def _slot_of(self, request: JsonObject) -> Slot:
        number = request.get("slot")
        slot = self._slots.get(number) if isinstance(number, int) else None
        if slot is None or isinstance(number, bool):
            known = ", ".join(map(str, self._slots)) or "none"
            raise Refused(f"slot {number!r} is not on this board; known: {known}")
        return slot

    def _window_of(self, number: int) -> SharedWindow:
        window = self._windows.get(number)
        if window is None:
            raise Unavailable(f"slot {number} has no window (window_bytes = 0)")
        return window


def _integer(request: JsonObject, key: str, low: int, high: int) -> int:
    value: Any = request.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise Refused(f"{key}: {value!r}, wanted an integer in {low}..{high}")
    return value


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
        loop = MiniLoop()
        keeper = Keeper(loop, config)
        _watch_signals(loop, keeper.stop)
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
