"""What a board file says, as typed objects; `firmware.board` reads and checks the file.

The lease numbers are DESIGN section 4: rules 5 to 7 compute from `Timing` alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Final

from firmware.board_hardware import Device, Hardware, PowerStep, SlotPcie
from protocol.mctp.serial_frame import Dialect

PPM: Final = 1_000_000
FENCE_WAIT_STEP_MS: Final = 100  # W is rounded up to this: 5,512 becomes 5,600 (rule 7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """P, L, S, r and their company (DESIGN section 4)."""

    heartbeat_ms: int = 100  # P
    lease_ms: int = 5000  # L
    stop_ms: int = 500  # S, worst
    clock_rate_ppm: int = 1000  # r
    watchdog_ms: int = 2000
    suspect_ms: int = 1000
    off_hold_ms: int = 100
    telemetry_ms: int = 1000
    lost_rounds: int = 3  # m
    round_trip_ms: int = 100
    loop_stall_ms: int = 100
    restart_ms: int = 500  # the supervisor's back-off and the exec
    ready_ms: int = 1000  # journal read, board adopted, first grant (section 6: the must)

    @property
    def fence_wait_min_ms(self) -> int:
        """Rule 5: the least W, (L + S)(1 + r)/(1 - r)."""
        return self._stretched_ms(self.lease_ms + self.stop_ms)

    @property
    def fence_wait_ms(self) -> int:
        """Rule 7: the W to use, rounded up."""
        return -(-self.fence_wait_min_ms // FENCE_WAIT_STEP_MS) * FENCE_WAIT_STEP_MS

    @property
    def lease_min_rounds_ms(self) -> int:
        """Rule 6, first half: a lease outlives m lost rounds and a stalled loop."""
        rounds_ms = (self.lost_rounds + 1) * self.heartbeat_ms
        return self._stretched_ms(rounds_ms + self.round_trip_ms + self.loop_stall_ms)

    @property
    def lease_min_restart_ms(self) -> int:
        """Rule 6, second half: a lease outlives a crash of the daemon."""
        back_ms = self.watchdog_ms + self.restart_ms + self.ready_ms
        return self._stretched_ms(back_ms + 2 * self.heartbeat_ms + self.round_trip_ms)

    def _stretched_ms(self, span_ms: int) -> int:
        """A span on the slowest clock as the fastest one counts it, rounded up."""
        return -(-span_ms * (PPM + self.clock_rate_ppm) // (PPM - self.clock_rate_ppm))


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """When a CNM counts as loaded: above `high` for `hold_ms`, until below `low`."""

    cpu_high_percent: int = 85
    cpu_low_percent: int = 60
    memory_high_percent: int = 90
    memory_low_percent: int = 75
    hold_ms: int = 3000
    cooldown_ms: int = 10_000  # between two moves off the same CNM
    rest_ms: int = 60_000  # an instance that was moved by the card itself stays so long
    room_ms: int = 5000  # so long something waits before others move for it
    moves_per_hour: int = 120  # that nobody asked for by name, on the whole card; 0: none
    tidy_ms: int = 0  # between two looks at whether accelerators ought to be tidied up; 0: none
    preemptions_per_hour: int = 0  # instances stopped for others of a higher priority; 0: none
    temp_high_mdegc: int = 95_000
    temp_low_mdegc: int = 85_000


TIMING_LIMITS: Final = {  # (least, most)
    "heartbeat_ms": (10, 10_000),
    "lease_ms": (100, 600_000),
    "stop_ms": (10, 60_000),
    "clock_rate_ppm": (0, 100_000),
    "off_hold_ms": (1, 10_000),
    "telemetry_ms": (50, 60_000),
    "lost_rounds": (0, 100),
}
TIMING_LIMIT: Final = (1, 600_000)
THRESHOLD_LIMITS: Final = {
    item.name: (0, 100) if item.name.endswith("_percent") else (0, 600_000)
    for item in fields(Thresholds)
} | {"preemptions_per_hour": (0, 1000)}
MAX_TENANTS: Final = 256
MAX_TENANT_WEIGHT: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class BoardAccelerator:
    kind: str
    model: str
    count: int
    scope: str  # "local" to its CNM, or on the "fabric"


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """What the CNM in a slot is made of; on real hardware the CNM itself says so."""

    arch: str  # OCI name
    cores_milli: int
    memory_bytes: int
    nvme_bytes: int
    link_mbit: int
    runtimes: tuple[str, ...]
    labels: Mapping[str, str]
    accelerators: tuple[BoardAccelerator, ...]
    dialect: Dialect | None = None  # of its serial lines; None: the card's, whichever that is
    nvme_mbit: int = 0  # of its drives, which no module tells by itself; 0: not known


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    slot: int
    id: str
    mc: str  # spec string of the control link to the management controller
    agent: str  # and of the one to the agent
    window: str
    window_bytes: int
    power: str
    module: Module
    pcie: SlotPcie | None = None  # its port, and the link that it must come up with
    devices: tuple[Device, ...] = ()  # on SMBus, of this slot alone
    power_steps: tuple[PowerStep, ...] = ()  # in order; switching off undoes the sets backwards


@dataclass(frozen=True, slots=True, kw_only=True)
class Board:
    name: str
    kind: str  # "local", "mock", "linux" (a card on real devices) or "cnm" (a module's own view)
    description: str
    vendor_id: int
    timing: Timing
    thresholds: Thresholds
    slots: tuple[Slot, ...]
    files: tuple[str, ...]  # the board file and those it inherits from
    outside_ttys: tuple[str, ...]  # serial lines that the keeper does not make
    hardware: Hardware = field(default_factory=Hardware)
    tenants: Mapping[str, int] | None = None  # name -> weight; None: who waits is not told apart
