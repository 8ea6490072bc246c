"""Composition root of the card daemon: `python -m firmware.app --board FILE --run DIR --state DIR`.

The only place in firmware, beside firmware/cnm/app.py, that names concrete backends.
"""

import argparse
import gc
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType

from firmware import rpc
from firmware.api import Api
from firmware.black_box import BlackBox
from firmware.board import BoardError, load_board
from firmware.board_types import Board, Slot
from firmware.card import Card, CardPorts
from firmware.card_hardware import HardwarePorts
from firmware.control_socket import ControlSocket
from firmware.fields import FieldError
from firmware.flight_recorder import RING_BYTES
from firmware.journal import JournalError, Kind
from firmware.loop import Loop
from firmware.mover import mover_argv, open_mailbox
from firmware.recorded import open_recorder, recorded
from firmware.watchdog import Watchdog
from hal.errors import HalError, Unavailable
from hal.linux.blobs import LinuxBlobStore
from hal.linux.cgroup import CgroupTree
from hal.linux.children import Children
from hal.linux.clock import LinuxClock
from hal.linux.cxl_sysfs import LinuxCxlBus
from hal.linux.entropy import LinuxEntropy
from hal.linux.files import LinuxFiles
from hal.linux.journal import SqliteJournal
from hal.linux.mover import Mover
from hal.linux.notify import open_notifier
from hal.linux.pci_bus import LinuxPciBus
from hal.linux.pci_window import why_absent
from hal.linux.serial import SerialLine
from hal.linux.slot_power import LinuxSlotPower, slot_switch
from hal.linux.spawner import LinuxSpawner
from hal.linux.trace_memory import MappedTraceMemory, stack_of_the_last
from hal.linux.unix_server import UnixServer, group_id
from hal.linux.workers import Workers
from hal.local.client import KeeperClient
from hal.local.hostview import LocalHostView
from hal.local.power import LocalPower
from hal.local.window import submit_open_window
from hal.ports import ByteStream, Done, Doorbell, Spawner, Window
from hal.registry import Registry, World, parse_spec

EXIT_START_FAILED = 3
TRACE_FILE = "daemon.trace"
STACK_FILE = "daemon.stack"
CRASHES = "crashes"
EXIT_KEEPER_LOST = 5
# Written even when the disk is full: without a new epoch and their grants a daemon that is started
# then could keep nothing of what runs (DESIGN section 4, rules 2 and 4).
ESSENTIAL_KINDS = (Kind.META, Kind.CNM)
COLLECT_AFTER = (20_000, 20, 20)  # objects more than before; collections of the younger ones
OPERATORS_GROUP = "apf"  # its members may run workloads


class LocalSlotPorts:
    """A slot of the local board: ttys by path, the window from the keeper."""

    def __init__(self, slot: Slot, run: Path, client: KeeperClient) -> None:
        self._slot = slot
        self._run = run
        self._client = client

    def open_mc(self) -> ByteStream:
        return self._serial(self._slot.mc)

    def open_agent(self) -> ByteStream:
        return self._serial(self._slot.agent)

    def _serial(self, text: str) -> ByteStream:
        spec = parse_spec(text.replace("${run}", str(self._run)))
        return SerialLine(spec.target, baud=int(spec.options.get("baud", "115200")))

    def open_window(self, deadline_ns: int, done: Done[tuple[Window, Doorbell]]) -> None:
        submit_open_window(self._client, self._slot.slot, deadline_ns, done)


class LinuxSlotPorts:
    """A slot of a card on real devices: what its spec strings name. Its window is a mover's."""

    def __init__(
        self,
        slot: Slot,
        registry: Registry,
        spawner: Spawner,
        open_mover: Callable[[str], Mover],
    ) -> None:
        self._slot = slot
        self._registry = registry
        self._spawner = spawner
        self._open_mover = open_mover
        self._mover: Mover | None = None  # started when the module's agent is there

    def open_mc(self) -> ByteStream:
        return self._open(self._slot.mc)

    def open_agent(self) -> ByteStream:
        return self._open(self._slot.agent)

    def _open(self, text: str) -> ByteStream:
        if text.startswith("mailbox:"):
            return open_mailbox(text, self._spawner)
        return self._registry.open_stream(text)

    def open_window(self, deadline_ns: int, done: Done[tuple[Window, Doorbell]]) -> None:
        slot = self._slot
        if self._mover is None:
            self._mover = self._open_mover(f"{slot.window}&bytes={slot.window_bytes}")
        self._mover.submit_open(deadline_ns, done)


def linux_ports(
    board: Board, run: Path, state: Path, loop: Loop, clock: LinuxClock, client: KeeperClient
) -> CardPorts:
    """The ports of a card whose board is of real devices."""
    workers = Workers(loop)
    registry = Registry(World(reactor=loop, keeper=client))
    spawner = LinuxSpawner(Children(loop), CgroupTree.detect())

    def open_mover(window: str) -> Mover:
        spec = parse_spec(window)
        absent = partial(why_absent, spec.scheme, spec.target)
        argv_of = partial(mover_argv, run=str(run))
        return Mover(window, spawner, loop, argv_of, say=_say, absent=absent)

    switches = {slot.slot: slot_switch(slot.power) for slot in board.slots}
    return CardPorts(
        entropy=LinuxEntropy(),
        power=LinuxSlotPower(switches, loop, workers),
        journal=SqliteJournal(state / "journal.db", loop, essential=ESSENTIAL_KINDS),
        blobs=LinuxBlobStore(state / "blobs", loop, workers),
        host=None,  # a module's processes are its own kernel's
        slots={
            slot.id: LinuxSlotPorts(slot, registry, spawner, open_mover) for slot in board.slots
        },
        runc_roots={},
        wall_ns=clock.wall_ns,
        hardware=HardwarePorts(
            smbus=registry.open_smbus,
            pci=LinuxPciBus(loop),
            cxl=LinuxCxlBus(),
            memdev=lambda name: registry.open_cxl(f"cxl:{name}"),
        ),
    )


def local_ports(
    board: Board, run: Path, state: Path, loop: Loop, clock: LinuxClock, client: KeeperClient
) -> CardPorts:
    """The ports of a card whose board is this machine."""
    workers = Workers(loop)
    return CardPorts(
        entropy=LinuxEntropy(),
        power=LocalPower(client),
        journal=SqliteJournal(state / "journal.db", loop, essential=ESSENTIAL_KINDS),
        blobs=LinuxBlobStore(state / "blobs", loop, workers),
        host=LocalHostView(client),
        slots={slot.id: LocalSlotPorts(slot, run, client) for slot in board.slots},
        runc_roots={slot.id: str(run / "cnm" / slot.id / "runc") for slot in board.slots},
        wall_ns=clock.wall_ns,
    )


def spare_the_collector() -> None:
    """Have Python look for cycles less often. What this process makes all the time (frames,
    messages, timers) is freed when its last user lets go of it; one wait that brings 700 events
    would else start a search each time, and at a start each tenth of them goes through all that a
    thousand modules have. Measured there: a tenth of the daemon's processor time."""
    gc.set_threshold(*COLLECT_AFTER)


def main(argv: list[str] | None = None) -> int:
    """Run the daemon until it is told to stop; the exit status."""
    parser = argparse.ArgumentParser(prog="apf-card", description="The card daemon.")
    parser.add_argument("--board", required=True)
    parser.add_argument("--run", required=True, type=Path)
    parser.add_argument("--state", required=True, type=Path)
    parser.add_argument("--safe", action="store_true", help="keep what runs, refuse new work")
    parser.add_argument("--record", type=Path, help="write every call on a port to this file")
    args = parser.parse_args(argv)
    try:
        return _run(args.board, args.run, args.state, safe=args.safe, record=args.record)
    except (HalError, JournalError, FieldError, BoardError) as exc:
        sys.stderr.write(f"apf-card: {exc}\n")
        return EXIT_START_FAILED


def _run(board_name: str, run: Path, state: Path, *, safe: bool, record: Path | None = None) -> int:
    board = load_board(board_name, run_dir=str(run))
    if board.kind not in ("local", "linux"):
        raise Unavailable(
            f"board {board.name} is of kind {board.kind}: a daemon runs on kinds local and linux; "
            "mock boards live inside tests and the simulator, cnm boards are for a module's init"
        )
    spare_the_collector()
    clock = LinuxClock()
    box = _open_black_box(run, state, clock)
    try:
        code = _serve(board, run, state, clock, box, safe=safe, record=record)
    except (HalError, JournalError, FieldError, BoardError) as exc:
        if box is not None:
            box.recorder.end(f"could not start: {exc}")
        raise
    if box is not None:
        box.recorder.end(f"ends with status {code}")
    return code


def _serve(
    board: Board,
    run: Path,
    state: Path,
    clock: LinuxClock,
    box: BlackBox | None,
    *,
    safe: bool,
    record: Path | None = None,
) -> int:
    loop = Loop(clock, on_fault=box.recorder.on_fault if box else None)
    client = KeeperClient(run, loop)
    if board.kind == "linux":
        ports = linux_ports(board, run, state, loop, clock, client)
    else:
        ports = local_ports(board, run, state, loop, clock, client)
    if record is not None:
        ports = recorded(ports, open_recorder(record, loop.now_ns))
    card = Card(board, loop, ports, safe_mode=safe)
    notifier = open_notifier()
    watchdog = Watchdog(loop, notifier, on_withheld=box.on_withheld if box else _nothing)
    if box is not None:
        box.listen(loop, card)
    status = {"code": 0}
    keeper_pid = _read_pid(run / "keeper.pid")

    def pids() -> Mapping[str, int | None]:
        return {
            "daemon_pid": os.getpid(),
            "keeper_pid": keeper_pid,
            "supervisor_pid": _read_pid(run / "supervisor.pid"),
        }

    table = rpc.MethodTable()
    api = Api(card, pids=pids, last_crash=box.last_crash) if box else Api(card, pids=pids)
    api.register(table)
    full = rpc.error_line(None, rpc.busy("no_descriptors", "the daemon can open nothing more now"))
    listener = UnixServer(str(run / "apf.sock"), gid=socket_gid(), full_answer=full)
    server = ControlSocket(loop, listener, rpc.Dispatcher(table), _roles())

    def stop(code: int) -> None:
        status["code"] = code
        notifier.send("STOPPING=1")
        loop.stop()

    def started(error: JournalError | None) -> None:
        if error is not None:
            sys.stderr.write(f"apf-card: {error}\n")
            stop(EXIT_START_FAILED)
            return
        server.start()
        watchdog.start()
        notifier.send("READY=1")
        if box is not None:
            box.say_crash(card)

    def on_signal(number: int) -> None:
        if box is not None:
            box.on_signal(number)
        stop(0)

    card.on_shutdown = _ask_supervisor(run, lambda: stop(0))
    client.on_lost(lambda _error: stop(EXIT_KEEPER_LOST))
    loop.post(lambda: card.start(started))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: loop.post(lambda: on_signal(number)))
    loop.run()
    server.close()
    card.hardware.close()
    card.journal.close()
    return status["code"]


def _say(text: str) -> None:
    sys.stderr.write(f"apf-card: {text}\n")
    sys.stderr.flush()


def _nothing() -> None:
    pass


def _open_black_box(run: Path, state: Path, clock: LinuxClock) -> BlackBox | None:
    """None where it can't be had: that must not keep a card from working."""
    try:
        stack = stack_of_the_last(run / STACK_FILE)
        box = BlackBox(
            MappedTraceMemory(run / TRACE_FILE, RING_BYTES),
            LinuxFiles(state / CRASHES),
            now_ns=clock.now_ns,
            wall_ns=clock.wall_ns(),
            pid=os.getpid(),
            reason=os.environ.get("APF_START_REASON", ""),
            stack=stack,
        )
    except HalError as exc:
        sys.stderr.write(f"apf-card: no flight recorder: {exc}\n")
        return None
    before = sys.excepthook

    def hook(kind: type[BaseException], exc: BaseException, trace: TracebackType | None) -> None:
        box.recorder.note_fault(exc)
        before(kind, exc, trace)

    sys.excepthook = hook
    return box


def _ask_supervisor(run: Path, alone: Callable[[], None]) -> Callable[[], None]:
    """Shutting down is the supervisor's work: it stops the daemon, then the keeper."""

    def ask() -> None:
        pid = _read_pid(run / "supervisor.pid")
        if pid is not None and pid == os.getppid():
            os.kill(pid, signal.SIGTERM)
        else:
            alone()

    return ask


def socket_gid() -> int | None:
    """The operators' group, where there is one and we may give the socket to it (chown(2)): else
    only root and our own user could open it."""
    gid = group_id(OPERATORS_GROUP)
    return gid if os.geteuid() == 0 or gid in os.getgroups() else None


def _roles() -> rpc.RolePolicy:
    gid = group_id(OPERATORS_GROUP)
    gids = frozenset() if gid is None else frozenset({gid})
    return rpc.RolePolicy(admin_uids=frozenset({0, os.getuid()}), operate_gids=gids)


def _read_pid(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    sys.exit(main())
