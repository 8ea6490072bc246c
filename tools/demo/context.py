"""What the steps share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from firmware.board_types import Board, Slot
from hal.ports import Clock
from tools.demo import observe, observe_card
from tools.demo.apf import Apf, Row
from tools.demo.errors import hold
from tools.demo.mode import Mode
from tools.demo.places import DemoPlaces
from tools.demo.sampler import Sampler, is_first
from tools.demo.waits import MS, POLL_MS, wait_for
from tools.errors import ToolError
from tools.waiting import why_waiting

HERE: Final = Path(__file__).resolve().parent
SHOP: Final = "shop"
ROOT_MARK: Final = "# root"  # ends the lines of a Compose file that only root can honour

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Context:
    """One run. What a step learned and a later one needs is at the end."""

    demo: DemoPlaces
    apf: Apf
    clock: Clock
    board: Board
    board_source: str  # its name or file, as it was given
    mode: Mode
    token: str
    patience_ms: int
    data: str  # where components find their data: a volume's mount, or a plain directory
    say: Callable[[str], None]
    cgroup: str = ""  # /apf/RUN_ID once the keeper has said it
    fence: str = ""  # "power" or "lease"
    normal: Mapping[str, Any] = field(default_factory=dict)  # the normal form of the shop
    submitted_ns: int = 0  # when the shop was

    # --- the board ---

    def slot(self, cnm: str) -> Slot:
        return next(slot for slot in self.board.slots if slot.id == cnm)

    @property
    def accelerated(self) -> list[str]:
        """CNMs with an accelerator, by the board file."""
        return [slot.id for slot in self.board.slots if slot.module.accelerators]

    # --- workloads ---

    def compose(self, name: str) -> Path:
        """A Compose file of ours as this machine can have it."""
        source = HERE / f"{name}.yaml"
        if self.mode.root:
            return source
        lines = source.read_text().splitlines(keepends=True)
        place = self.demo.top / source.name
        place.write_text("".join(line for line in lines if not line.rstrip().endswith(ROOT_MARK)))
        return place

    def component(self, name: str) -> Mapping[str, Any]:
        """Of the shop's normal form."""
        parts: Sequence[Mapping[str, Any]] = self.normal["components"]
        return next(part for part in parts if part["name"] == name)

    def instances(self) -> list[str]:
        """The shop's, by its normal form."""
        return [
            f"{SHOP}/{part['name']}/{index}"
            for part in self.normal["components"]
            for index in range(part["replicas"])
        ]

    def services(self) -> list[str]:
        """Those that go on for ever."""
        return [name for name in self.instances() if "/seed/" not in name]

    def volume_dir(self, cnm: str, volume: str) -> Path:
        """The hot tier's directory of a volume on a CNM."""
        return self.demo.cnm_state(cnm) / "volumes" / volume.replace("/", "@")

    # --- looking ---

    def sampler(self) -> Sampler:
        return Sampler(self.clock, self.token)

    def wait(
        self,
        what: str,
        look: Callable[[], T | None],
        *,
        timeout_ms: int | None = None,
        every_ms: int = POLL_MS,
        seen: Callable[[], str] = lambda: "",
    ) -> T:
        """As `wait_for`, with this run's patience."""
        return wait_for(
            self.clock,
            what,
            look,
            timeout_ms=self.patience_ms if timeout_ms is None else timeout_ms,
            every_ms=every_ms,
            seen=seen,
        )

    def rows(self, workload: str = SHOP) -> dict[str, Row]:
        return {row.instance: row for row in self.apf.ps(workload)}

    def up(self, names: Sequence[str], workload: str = SHOP) -> dict[str, Row] | None:
        """Their rows when the card claims that all of them are up."""
        rows = self.rows(workload)
        good = all(name in rows and rows[name].up for name in names)
        return {name: rows[name] for name in names} if good else None

    def wait_up(
        self,
        names: Sequence[str],
        workload: str = SHOP,
        look: Callable[[], object] = lambda: None,
    ) -> dict[str, Row]:
        """Until the card claims it and /proc agrees: the same process, one copy."""

        def check() -> dict[str, Row] | None:
            look()
            return self.up(names, workload)

        rows = self.wait(
            f"{len(names)} instances of {workload} up", check, seen=lambda: self.late(workload)
        )
        self.agree(rows)
        return rows

    def agree(self, rows: Mapping[str, Row]) -> None:
        """What `ps` says of each running instance is what /proc shows. Raises StepFailed."""
        found = self.sampler().look()
        for name, row in rows.items():
            if row.phase != "RUNNING":
                continue
            ticks = observe.start_ticks(row.pid)
            hold(
                ticks == row.start_ticks,
                f"{name}: ps names process {row.pid} (start {row.start_ticks}), /proc shows "
                + (f"start {ticks}" if ticks is not None else "no such process"),
            )
            copies = found.get(name, {})
            hold(len(copies) == 1, f"{name}: {len(copies)} copies in /proc ({', '.join(copies)})")
            pids = {item.pid for items in copies.values() for item in items}
            hold(row.pid in pids, f"{name}: process {row.pid} does not carry its name")

    def late(self, workload: str) -> str:
        """The instances that are not up, and why, as the card says."""
        return self._ask(
            lambda: "; ".join(
                [why_waiting(row.raw) for row in self.apf.ps(workload) if not row.up][:6]
            )
        )

    def shown(self, workload: str) -> str:
        """Where everything is, as the card says."""
        return self._ask(
            lambda: ", ".join(
                f"{row.instance} {row.phase} on {row.cnm}" for row in self.apf.ps(workload)
            )
        )

    @staticmethod
    def _ask(question: Callable[[], str]) -> str:
        """For a failure's text: that nobody answers is an answer too."""
        try:
            return question()
        except ToolError as exc:
            return exc.text

    def emptiest(self, other_than: str) -> str:
        """The CNM with least processor time given away, by `apf cnm ls`; not an accelerated one
        where there is a choice."""
        used = {
            name: (name in self.accelerated, row["used"]["cpu_milli"], name)
            for name, row in self.apf.cnms().items()
            if name != other_than
        }
        return min(used, key=lambda name: used[name])

    def alive(self) -> dict[str, dict[int, int]]:
        """Instance -> pid -> start ticks of its first process: what must not change."""
        found: dict[str, dict[int, int]] = {}
        for item in observe.processes(token=self.token):
            if is_first(item):
                found.setdefault(item.instance, {})[item.pid] = item.start_ticks
        return found

    def where(self) -> dict[str, str]:
        """Instance -> the CNM that its cgroup names; without cgroups the one whose init is its
        ancestor."""
        inits = observe_card.by_cnm(self.demo.run, observe_card.INIT)
        by_pid = {item.pid: cnm for cnm, item in inits.items()}
        return {
            item.instance: observe.cnm_of(item.cgroup)
            or observe_card.cnm_by_parents(item.pid, by_pid)
            for item in observe.processes(token=self.token)
        }

    def wait_leased(self) -> dict[str, dict[str, Any]]:
        """Until every CNM is LEASED; the rows of `apf cnm ls`."""

        def leased() -> dict[str, dict[str, Any]] | None:
            rows = self.apf.cnms()
            return rows if all(row["state"] == "LEASED" for row in rows.values()) else None

        return self.wait(f"{len(self.board.slots)} CNMs LEASED", leased)

    def timer(self) -> "Timer":
        """Runs from now on."""
        return Timer(clock=self.clock, start_ns=self.clock.now_ns())

    @property
    def since_submit_ms(self) -> int:
        return (self.clock.now_ns() - self.submitted_ns) // MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Timer:
    clock: Clock
    start_ns: int

    @property
    def ms(self) -> int:
        return (self.clock.now_ns() - self.start_ns) // MS
