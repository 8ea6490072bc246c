"""One run and many: build a card and its modules, let the weather loose, judge what lived when."""

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from firmware.board_types import Timing
from firmware.cnm.lease_guard import CardBinding, LeaseGuard
from firmware.decisions import Decisions
from firmware.discovery import Discovery
from firmware.fencing import Fencing
from firmware.inventory import Cnm, Inventory
from firmware.journal import Kind
from firmware.lease import CardLease
from protocol.apf import Ctx, Grant
from tools.sim.leases.between import Disk, Net, Power
from tools.sim.leases.card import DIGEST, NAME, CardLife, ModelDecisions
from tools.sim.leases.clockwork import MS, Kernel, Oscillator
from tools.sim.leases.cnm import Boot, EvictingTable, Module, prepared
from tools.sim.leases.weather import HOLDER, Fault, Weather, draw

CARD_UUID: Final = b"C" * 16
RESTART_NS: Final = 2_000 * MS
CUT_NS: Final = 14_000 * MS
CHAT_NS: Final = 300 * MS  # an agent's telemetry
PAUSE_NS: Final = 9_000 * MS
TIMING: Final = Timing()
LINKS: Final = (("mc",), ("agent",), ("mc", "agent"), ("mc", "agent"))
WAYS: Final = {"cut": ("up", "down"), "mute": ("up",), "deaf": ("down",)}


def _telemetry(_card: CardLife) -> None:
    """Says that its agent lives, and no more."""


def plain_guard(binding: CardBinding, _now_ns: Callable[[], int]) -> LeaseGuard:
    return LeaseGuard(binding)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """The classes of both ends. A rule is left out by another class or a switch of the model."""

    timing: Timing = TIMING
    lease: type[CardLease] = CardLease
    fencing: type[Fencing] = Fencing
    discovery: type[Discovery] = Discovery
    decisions: type[Decisions] = ModelDecisions
    inventory: type[Inventory] = Inventory
    cnm: type[Cnm] = Cnm
    binding: type[CardBinding] = CardBinding
    guard: Callable[[CardBinding, Callable[[], int]], LeaseGuard] = plain_guard
    table: type[EvictingTable] = EvictingTable
    guard_is_the_agents: bool = False  # rule 4
    boot_ids_repeat: bool = False  # rule 1
    boots_start_what_ran: bool = False  # rule 9


ALL_RULES: Final = Rules()
NO_FOCUS: Final[Mapping[str, Any]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Two generations lived at the same true moment."""

    at_ns: int
    living: tuple[str, ...]

    def __str__(self) -> str:
        return f"at {self.at_ns / 1e9:.6f} s lived {' and '.join(self.living)}"


class Run:
    """One seed's world."""

    def __init__(
        self, seed: int, rules: Rules = ALL_RULES, focus: Mapping[str, Any] = NO_FOCUS
    ) -> None:
        self.rules = rules
        self.timing = rules.timing
        rng = random.Random(seed)  # noqa: S311  a simulation's dice
        self.weather: Weather = draw(rng, self.timing, focus)
        self.kernel = Kernel(rng)
        self.overlaps: list[Overlap] = []
        self.failovers = 0  # generations that went live after the first
        self._live: dict[tuple[str, str], int] = {}
        self.modules: Mapping[str, Module] = {
            module.name: module
            for module in (
                Module(self, index, ppm) for index, ppm in enumerate(self.weather.module_ppm)
            )
        }
        self.net = Net(self)
        self.disk = Disk(self)
        self.power = Power(self)
        self.card: CardLife | None = None
        self.lives = 0  # of the daemon
        self._card_clock = Oscillator(self.kernel, self.weather.card_ppm, 1 << 40)
        self._set_up()

    # --- the judge ---

    def goes_live(self, module: str, key: str) -> None:
        self.failovers += 1
        self._live[module, key] = self.kernel.now
        if len(self._live) > 1:
            living = tuple(f"{key} on {module}" for module, key in self._live)
            self.overlaps.append(Overlap(at_ns=self.kernel.now, living=living))

    def is_dead(self, module: str, key: str) -> None:
        self._live.pop((module, key), None)

    def live_on(self, module: str) -> str:
        return next((key for name, key in self._live if name == module), "")

    # --- the beginning ---

    def _set_up(self) -> None:
        meta = self.disk.image[Kind.META]
        meta["epoch"] = {"value": 1}
        meta["card_uuid"] = {"value": CARD_UUID.hex()}
        meta["generation"] = {"value": 1}
        boots = [module.start() for module in self.modules.values()]
        for boot in boots:
            boot.binding.introduce(CARD_UUID, 1)
            boot.guard.on_heartbeat_sent(0, boot.init.now_ns())
            boot.on_grant(
                Grant(
                    card_uuid=CARD_UUID,
                    epoch=1,
                    boot_id=boot.identity.boot_id,
                    seq=0,
                    lease_ms=self.timing.lease_ms,
                )
            )
            self.disk.image[Kind.CNM][boot.name] = {
                "boot_id": boot.identity.boot_id.hex(),
                "state": "leased",
            }
        self._place_first(boots[0])
        self.card = CardLife(self, self._card_clock)
        self.card.warm()
        for boot in boots:
            boot.later(boot.quick(self.weather.beat_ns), boot.beat)
        for fault in self.weather.faults:
            self.kernel.at(fault.at_ns, partial(self._fault, fault))

    def _place_first(self, boot: Boot) -> None:
        """Generation 1 runs on the first module."""
        ctx = Ctx(card_uuid=CARD_UUID, epoch=1, boot_id=boot.identity.boot_id)
        boot.table.stage(ctx, NAME, 1, spec_digest=DIGEST)
        boot.table.prepared(NAME, 1, prepared(NAME, 1))
        boot.table.start(ctx, NAME, 1)
        place = {"cnm": boot.name, "boot_id": boot.identity.boot_id.hex(), "generation": 1}
        self.disk.image[Kind.ASSIGNMENT][NAME] = {
            "instance": NAME,
            "workload": "w",
            "component": "c",
            "index": 0,
            "place": place,
            "target": None,
            "why": "",
            "restarts": 0,
            "ending": None,
            "volumes": [],
            "flushed": 0,
        }

    # --- faults ---

    def _at(self, index: int) -> str:
        names = list(self.modules)
        if index == HOLDER:
            return next((module for module, _key in self._live), names[0])
        return names[index]

    def _fault(self, fault: Fault) -> None:
        rng, name = self.kernel.rng, self._at(fault.module)
        module = self.modules[name]
        boot = module.boot
        hold_ns = self.timing.off_hold_ms * MS
        match fault.what:
            case "cut" | "mute" | "deaf":
                links = LINKS[-1] if fault.span_ns else rng.choice(LINKS)
                if fault.what == "deaf":  # to grants: commands come by the agent's link
                    links = LINKS[0]
                span_ns = fault.span_ns or int(rng.random() * CUT_NS)
                for link in links:
                    self.net.cut(name, link, WAYS[fault.what], span_ns)
            case "crash":
                self._crash_card()
            case "pause":
                self._freeze_card(int(rng.random() ** 2 * PAUSE_NS))
            case "agent_pause" if boot is not None:
                boot.agent.freeze(int(rng.random() * PAUSE_NS))
            case "init_pause" if boot is not None:  # with its guard, not with its agent
                boot.init.freeze(fault.span_ns)
                for after_ns in range(0, fault.span_ns, CHAT_NS):
                    self._later(after_ns, lambda: self.net.to_card(name, "agent", _telemetry))
            case "reboot" if boot is not None:
                module.crash()
                self._later(rng.random() * 2_000 * MS, module.boot_again)
            case "glitch":
                self._dip(name)
            case "brown_out":  # a dip, and a daemon that is held up before it hears of its end
                self._dip(name)
                held_ns = int(rng.random() * 4 * hold_ns)
                self._later(rng.random() * hold_ns / 4, lambda: self._freeze_card(held_ns))
            case "power_loss":
                self.power.cut(name)
            case "migrate" if self.card is not None:
                self.card.host.run(self.card.migrate)
            case "exit" if boot is not None:
                boot.runtime.exit_one()
            case _:
                return

    def _later(self, span_ns: float, call: Callable[[], None]) -> None:
        self.kernel.at(self.kernel.now + int(span_ns), call)

    def _dip(self, name: str) -> None:
        """Power goes, and returns before it must have done harm."""
        self.power.cut(name)
        back_ns = self.kernel.rng.random() * self.timing.off_hold_ms * MS * 0.9
        self._later(back_ns, lambda: self.power.restore(name))

    def _freeze_card(self, span_ns: int) -> None:
        if self.card is not None:
            self.card.host.freeze(span_ns)

    def _crash_card(self) -> None:
        if self.card is None:
            return
        self.card.die()
        self.card = None
        self.disk.crash()
        back_ns = int(self.kernel.rng.random() ** 2 * RESTART_NS)
        self.kernel.at(self.kernel.now + back_ns, self._start_card)

    def _start_card(self) -> None:
        self.card = CardLife(self, self._card_clock)
        self.card.start()

    def go(self) -> None:
        self.kernel.run(self.weather.horizon_ns)


def run_once(seed: int, rules: Rules = ALL_RULES, focus: Mapping[str, Any] = NO_FOCUS) -> Run:
    """One seed, to its end. `focus` fixes a part of the weather."""
    run = Run(seed, rules, focus)
    run.go()
    return run


@dataclass(slots=True)
class Proof:
    """What many runs gave."""

    runs: int = 0
    events: int = 0
    failovers: int = 0  # starts of a generation; each is a chance for an overlap
    seconds: float = 0.0  # of CPU time
    violations: list[tuple[int, Overlap]] = field(default_factory=list)  # with their seeds

    def add(self, other: "Proof") -> None:
        self.runs += other.runs
        self.events += other.events
        self.failovers += other.failovers
        self.seconds += other.seconds
        self.violations += other.violations

    @property
    def runs_per_s(self) -> float:
        return self.runs / self.seconds if self.seconds else 0.0


def prove(
    runs: int,
    *,
    first_seed: int = 0,
    rules: Rules = ALL_RULES,
    focus: Mapping[str, Any] = NO_FOCUS,
    stop_at: int = 10,
    tell: Callable[[Proof], None] = lambda _proof: None,
) -> Proof:
    """Seeds from `first_seed` on, until `stop_at` have shown an overlap. `tell` each 500."""
    proof = Proof()
    begin = time.process_time()
    gc.collect()
    gc.freeze()  # what is here stays: the collector need not look at it after each run
    for seed in range(first_seed, first_seed + runs):
        run = run_once(seed, rules, focus)
        proof.runs += 1
        proof.events += run.kernel.events
        proof.failovers += run.failovers
        if run.overlaps:
            proof.violations.append((seed, run.overlaps[0]))
        if proof.runs % 500 == 0 or run.overlaps:
            proof.seconds = time.process_time() - begin
            tell(proof)
        if len(proof.violations) >= stop_at:
            break
    gc.unfreeze()
    proof.seconds = time.process_time() - begin
    return proof
