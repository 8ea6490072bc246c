"""A whole card in one process, on the virtual kernel: the real daemon and the real modules.

    world = World(seed=7)                 the board of `mock_4`; nothing runs yet
    world.boot()                          daemon started, every module LEASED
    world.submit(documents.workload(...)) through the control socket's own methods
    world.wait_running("shop/web/0")      as the judge sees it, not as the card says
    world.kill_daemon(); world.run(0.3); world.start_daemon()
    world.settle()                        wanted = decided = running, and it stays so

Time is virtual. Every step is watched by the judge (`tools/sim/judge.py`). A failure names the
seed; the same seed gives the same run.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from firmware.api import Api
from firmware.board import load_board
from firmware.board_types import Board
from firmware.card import Card, CardPorts
from firmware.card_hardware import HardwarePorts
from firmware.control_socket import ControlSocket
from firmware.journal import JournalError
from firmware.lease import LeaseState
from firmware.loop import Loop
from firmware.rpc import Dispatcher, MethodTable, Role, RolePolicy
from firmware.supervision import SupervisionTiming
from firmware.workload import Component, Workload, instance_name
from hal.errors import HalError
from hal.mock.blobs import MockBlobs
from hal.mock.disk import Disk
from hal.mock.entropy import MockEntropy
from hal.mock.journal import MockJournal
from hal.mock.kernel import VirtualKernel
from hal.mock.power import MockPower
from hal.mock.program import Launch
from hal.mock.unix_server import MockUnixSocket
from hal.service_ports import PeerCredentials
from tools.sim.judge import Judge
from tools.sim.module import SimModule
from tools.sim.pcie import SimPcie
from tools.sim.smbus import SimSmbus

SECOND: Final = 1_000_000_000
EXIT_START_FAILED: Final = 3  # firmware.app's
EXIT_CRASHED: Final = 1  # Python's, after an exception that nobody has caught
RESTART_NS: Final = 500_000_000  # the supervisor's back-off after that
CRASH_RESTART_NS: Final = SupervisionTiming().restart_delay_ns
STEPS_WITHOUT_TIME: Final = 20_000  # a loop that runs hot shows at once
LOOK_NS: Final = 20_000_000  # between two looks at whether the card is at rest
CALM_LOOK_NS: Final = 200_000_000
DAEMON: Final = "daemon"
PROGRAM: Final = "firmware.app"
BOARD: Final = load_board("mock_4", run_dir="/run/apf")


@dataclass(slots=True, eq=False)  # one connection is no other
class Operator:
    """The caller of the control socket's methods: an admin who reads everything."""

    role: Role = Role.ADMIN
    peer: PeerCredentials = field(default_factory=lambda: PeerCredentials(pid=1, uid=0, gid=0))

    def notify(self, method: str, params: Mapping[str, object]) -> bool:
        return True

    def discard(self, fds: object) -> None: ...

    def on_room(self, call: Callable[[], None]) -> None: ...

    def on_close(self, call: Callable[[], None]) -> None: ...


class Crash(Exception):
    """What a fault throws into a handler of the daemon (D2): it ends of it, as firmware.app does.
    Any other exception is a bug, and ends the run."""


class RpcFailure(Exception):
    """The daemon refused a request; `code` is its stable word."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(error["message"])
        self.code: str = error["data"]["code"]
        self.data: Mapping[str, Any] = error["data"]


class World:
    """The card, its modules, and what a test does to them."""

    def __init__(self, seed: int = 1, *, board: Board = BOARD, slots: int | None = None) -> None:
        """`slots`: only the first so many of the board's."""
        self.board = replace(board, slots=board.slots[:slots])
        self.kernel = VirtualKernel(seed, step_limit=STEPS_WITHOUT_TIME)
        self.seed = seed
        self.disk = Disk(self.kernel, "card disk")
        self.components: dict[str, Component] = {}  # by instance, of all that was ever submitted
        self.kernel.node(DAEMON)  # first: a daemon and its modules at one instant, in this order
        self.modules = {
            slot.id: SimModule(self.kernel, self.board, slot) for slot in self.board.slots
        }
        self.smbus = self._smbus()
        self.pcie = self._pcie()
        self.judge = Judge(self.kernel, self.disk, self.components, self.board)
        self.judge.daemon_ns = self.kernel.node(DAEMON).clock.now_ns
        self.judge.card = lambda: self.card_or_none
        self.judge.control = lambda: self.control
        self.judge.modules = self.modules
        for module in self.modules.values():
            module.on_fault = self.judge.unhandled
        self.card_or_none: Card | None = None
        self.daemons = 0  # ever started
        self.start_errors: list[str] = []  # why daemons ended before they were ready
        self.events: list[Any] = []  # of all daemons, in order
        self.socket = MockUnixSocket(self.kernel, "apf.sock")
        self.control: ControlSocket | None = None  # of the daemon that runs
        self._dispatcher: Dispatcher | None = None
        self.kernel.register_program(PROGRAM, self._daemon)

    def _smbus(self) -> SimSmbus | None:
        """Of a board that has one."""
        if not self.board.hardware.segments:
            return None
        devices = [device for slot in self.board.slots for device in slot.devices]
        return SimSmbus(self.kernel, self.board.hardware, devices)

    def _pcie(self) -> SimPcie | None:
        """Of a board whose slots have ports."""
        if not any(slot.pcie is not None for slot in self.board.slots):
            return None
        return SimPcie(self.kernel, self.board.slots, self.modules)

    @property
    def start_error(self) -> str | None:
        """What the last daemon said that did not get ready."""
        return self.start_errors[-1] if self.start_errors else None

    # --- time ---

    @property
    def now_s(self) -> float:
        return self.kernel.now_ns / SECOND

    def run(self, seconds: float) -> None:
        self.kernel.run_for(int(seconds * SECOND))

    def run_until(
        self, predicate: Callable[[], object], limit_s: float = 30, what: str = ""
    ) -> float:
        """Run until it holds; the virtual seconds that it took. Fails with the seed."""
        start_ns = self.kernel.now_ns
        if not self.kernel.run_until(lambda: bool(predicate()), int(limit_s * SECOND)):
            self.fail(f"{what or 'the wait'}: not within {limit_s} s")
        return (self.kernel.now_ns - start_ns) / SECOND

    def fail(self, text: str) -> None:
        """Raises, with the seed and the state of the card."""
        rows = json.dumps(self.ps_or_nothing(), indent=1)[:6000]
        cnms = [f"{c.id} {c.state}" for c in self.card.inventory] if self.card_or_none else []
        said = "\n".join(f"  {e.mono_ms} {e.code} {e.text}" for e in self.events[-30:])
        self.judge.fail("not as wanted", f"{text}\n{rows}\n{cnms}\nevents:\n{said}")

    # --- the daemon ---

    @property
    def card(self) -> Card:
        assert self.card_or_none is not None, "no daemon runs"
        return self.card_or_none

    def _daemon(self, launch: Launch) -> None:
        """What firmware.app does, over the mock."""
        node = launch.node
        loop = Loop(node.clock, on_fault=lambda exc: self._crashed(launch, exc))
        launch.kernel.attach(node.name, loop)
        self.daemons += 1
        self.judge.daemon_starts()
        card = Card(
            self.board,
            loop,
            CardPorts(
                entropy=MockEntropy(node),
                power=MockPower(node),
                journal=self.judge.store(MockJournal(node, self.disk)),
                blobs=MockBlobs(node, self.disk),
                host=None,  # a card of hardware: pids are those of its modules
                slots={name: module.ports(node) for name, module in self.modules.items()},
                runc_roots={},
                wall_ns=node.clock.wall_ns,
                hardware=HardwarePorts(
                    smbus=partial(self.smbus.open, node) if self.smbus is not None else None,
                    pci=self.pcie.open(node) if self.pcie is not None else None,
                ),
            ),
            safe_mode=False,
        )
        table = MethodTable()
        Api(card, pids=dict).register(table)
        dispatcher = self._dispatcher = self.judge.dispatcher(table)
        control = self.control = ControlSocket(
            loop, self.socket.listen(node), dispatcher, RolePolicy(admin_uids=frozenset({0}))
        )
        self.card_or_none = card
        subscription = card.events.subscribe(0, self._on_event)
        assert subscription is not None

        def started(error: object) -> None:
            if error is not None:  # firmware.app ends, and its supervisor starts another
                self.start_errors.append(str(error))
                launch.exit(EXIT_START_FAILED)
                self._stopped()
                self.kernel.after(RESTART_NS, self.start_daemon)
                return
            control.start()
            self.judge.daemon_is_up()

        def start() -> None:
            try:
                card.start(started)
            except (HalError, JournalError) as exc:  # as firmware.app: a journal it can't read
                started(exc)

        loop.post(start)

    def _crashed(self, launch: Launch, exc: BaseException) -> bool:
        if not isinstance(exc, Crash):
            return self.judge.unhandled(launch.node.name, exc)
        launch.exit(EXIT_CRASHED)
        self._stopped()
        self.kernel.after(CRASH_RESTART_NS, self.start_daemon)
        return True

    def _on_event(self, event: Any) -> bool:
        self.events.append(event)
        self.judge.event(event)
        return True

    def start_daemon(self) -> None:
        """Start one, unless one runs; what is on the disk is what it knows."""
        if DAEMON not in self.kernel.programs.running:
            self.kernel.programs.launch(PROGRAM, node=DAEMON)

    def kill_daemon(self) -> None:
        """SIGKILL. What runs on the modules goes on."""
        self.kernel.kill(DAEMON)
        self._stopped()

    def _stopped(self) -> None:
        self.card_or_none = self.control = self._dispatcher = None

    def restart_daemon(self, after_s: float = 0.3) -> None:
        """Killed now, and started by its supervisor a little later."""
        self.kill_daemon()
        self.run(after_s)
        self.start_daemon()

    def boot(self, limit_s: float = 10) -> float:
        """Start the daemon; wait until every module is LEASED."""
        self.start_daemon()
        return self.wait_leased(limit_s=limit_s)

    def wait_leased(self, *names: str, limit_s: float = 30) -> float:
        wanted = names or tuple(self.modules)
        return self.run_until(
            lambda: all(self.lease(name) is LeaseState.LEASED for name in wanted),
            limit_s,
            f"{', '.join(wanted)} leased",
        )

    def lease(self, cnm: str) -> LeaseState | None:
        found = self.card_or_none.inventory.get(cnm) if self.card_or_none else None
        return found.lease.state if found else None

    # --- the control socket ---

    def begin(self, method: str, fds: list[int] | None = None, **params: Any) -> list[Any]:
        """Send a request; the list gets its response when there is one."""
        assert self._dispatcher is not None, "no daemon runs"
        answers: list[Any] = []
        line = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        self._dispatcher.dispatch(
            line.encode(), Operator(), fds or [], lambda raw: answers.append(json.loads(raw))
        )
        return answers

    def call(self, method: str, fds: list[int] | None = None, **params: Any) -> Any:
        """Send a request and wait for its result. Raises RpcFailure."""
        answers = self.begin(method, fds, **params)
        self.run_until(lambda: answers, 10, f"an answer to {method}")
        if "error" in answers[0]:
            raise RpcFailure(answers[0]["error"])
        return answers[0]["result"]

    def know(self, document: Mapping[str, Any]) -> Workload:
        """Have the judge know what a workload's instances reserve."""
        workload = Workload.from_json(document)
        for component in workload.components:
            for index in range(component.replicas):
                self.components[instance_name(workload.name, component.name, index)] = component
        return workload

    def submit(self, document: Mapping[str, Any]) -> None:
        """Accepted, and on disk. Raises RpcFailure."""
        self.know(document)
        self.call("workload.submit", workload=document)

    def remove(self, name: str) -> None:
        self.call("workload.remove", name=name)

    def migrate(self, instance: str, to: str | None = None) -> str:
        """Decided; the target."""
        return str(self.call("instance.migrate", instance=instance, to=to)["to"])

    def import_image(self, manifest: Mapping[str, Any], layers: list[bytes]) -> None:
        """As `apf image import` does it."""
        ref = manifest["ref"]
        node = self.kernel.node(DAEMON)
        missing = self.call("image.begin", ref=ref, manifest=manifest)["missing"]
        for layer, data in zip(manifest["layers"], layers, strict=True):
            if layer["digest"] in missing:
                fd = self.kernel.open_file(data, node)
                self.call(
                    "image.blob",
                    [fd],
                    ref=ref,
                    digest=layer["digest"],
                    size_bytes=layer["size_bytes"],
                )
        self.call("image.commit", ref=ref)

    def ps(self) -> dict[str, dict[str, Any]]:
        """What the card says, by instance."""
        return {row["instance"]: row for row in self.card.views.instances(None)}

    def ps_or_nothing(self) -> dict[str, dict[str, Any]]:
        return self.ps() if self.card_or_none is not None else {}

    def codes(self, instance: str | None = None, cnm: str | None = None) -> list[str]:
        """The events so far, narrowed."""
        return [
            str(event.code)
            for event in self.events
            if (instance is None or event.instance == instance)
            and (cnm is None or event.cnm == cnm)
        ]

    # --- what runs ---

    def running(self) -> dict[str, tuple[str, int, int]]:
        """instance -> (CNM, generation, pid), as it really is."""
        return self.judge.running()

    def where(self, instance: str) -> str | None:
        found = self.running().get(instance)
        return found[0] if found else None

    def wait_running(self, *instances: str, limit_s: float = 30) -> float:
        return self.run_until(
            lambda: set(instances) <= set(self.running()), limit_s, f"{instances} running"
        )

    def wait_phase(self, instance: str, phase: str, limit_s: float = 30) -> float:
        return self.run_until(
            lambda: self.ps_or_nothing().get(instance, {}).get("phase") == phase,
            limit_s,
            f"{instance} {phase}",
        )

    # --- being at rest ---

    def unsettled(self) -> str:
        """Why the card is not at rest, or "": what is wanted is what is decided and what runs."""
        card = self.card_or_none
        if card is None or not card.ready:
            return "the daemon is not ready"
        running = self.running()
        deleted = [r.workload.name for r in card.decisions.workloads.values() if r.deleted]
        if deleted:
            return f"{deleted[0]} is still being removed"
        if card.decisions.pending:
            return f"decisions on their way: {sorted(card.decisions.pending)}"
        if card.deployer._jobs:
            return f"jobs under way: {sorted(card.deployer._jobs)}"
        wanted: set[str] = set()
        rows = self.ps()
        for name, row in rows.items():
            wanted.add(name)
            found = running.get(name)
            if row["phase"] == "RUNNING":
                if found is None or found[:2] != (row["cnm"], row["generation"]):
                    return f"{name} is said to be {row['cnm']} g{row['generation']}, is {found}"
            elif row["phase"] in ("STOPPED", "FAILED", "PENDING") or waits_for_pending(row, rows):
                if found is not None:
                    return f"{name} is said to be {row['phase']}, and runs: {found}"
            else:
                return f"{name} is {row['phase']}: {row['reason']}"
        strays = set(running) - wanted
        if strays:
            return f"{sorted(strays)} run and are not wanted"
        for cnm in card.inventory:
            if cnm.lease.state in (LeaseState.SUSPECT, LeaseState.FENCING):
                return f"{cnm.id} is {cnm.state}"
        return ""

    def settle(self, limit_s: float = 90, *, stays_s: float = 2.0) -> float:
        """Run until the card is at rest and stays so; the virtual seconds until then."""
        start_ns = calm_since_ns = self.kernel.now_ns
        said = -1
        while True:  # looked at now and then: it is far dearer than a step
            why = self.unsettled() or ("something happened" if said != len(self.events) else "")
            said = len(self.events)
            now_ns = self.kernel.now_ns
            if why:
                calm_since_ns = now_ns + LOOK_NS
                if now_ns - start_ns >= limit_s * SECOND:
                    self.fail(f"not at rest within {limit_s:.0f} s: {why}")
            elif now_ns - calm_since_ns >= stays_s * SECOND:
                return (calm_since_ns - start_ns) / SECOND
            self.kernel.run_for(LOOK_NS if why else CALM_LOOK_NS)


def waits_for_pending(row: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> bool:
    """It is prepared, and what it depends on waits for room: that may last."""
    word, _, rest = str(row["reason"]).partition("waits for ")
    if word or not rest or row["phase"] != "STARTING":
        return False
    other = rest.partition(":")[0]
    return any(
        found["phase"] == "PENDING"
        for found in rows.values()
        if (found["workload"], found["component"]) == (row["workload"], other)
    )
