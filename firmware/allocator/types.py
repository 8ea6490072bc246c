"""What the allocator is asked, and what it answers. Integers only: equal input, equal answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

WHOLE_MILLI: Final = 1000  # a whole accelerator
# The order of `vector`: milli-cores, bytes, bytes, Mbit/s, Mbit/s of storage, slots of the window.
DIMENSIONS: Final = ("cpu", "memory", "nvme", "link", "nvme_bandwidth", "windows")
Vector: TypeAlias = tuple[int, int, int, int, int, int]
NOTHING: Final[Vector] = (0, 0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceleratorDemand:
    """`count` different units of a kind, of each `milli` thousandths. Model None is any; "a|b" is
    one of two."""

    kind: str
    model: str | None = None
    count: int = 1
    milli: int = WHOLE_MILLI

    def takes(self, model: str) -> bool:
        """Whether a unit of this model will do."""
        return self.model is None or self.model == model or model in self.model.split("|")


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceleratorPool:
    """Equal units on one CNM. A `fabric` unit is given to components of its own CNM only, until
    the fabric manager can attach it elsewhere; the scope is kept for it."""

    kind: str
    model: str
    count: int
    scope: str = "local"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class AcceleratorUnit:
    """A unit, or a share of it, that an instance was given."""

    kind: str
    model: str
    index: int  # from 0, within (kind, model) of its CNM
    milli: int
    scope: str = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What one instance reserves. The hints are what it was measured to use, if that is more:
    they steer the choice between CNMs and never the question whether it fits."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    nvme_bytes: int = 0
    link_mbit: int = 0
    nvme_mbit: int = 0
    window_slots: int = 0
    accelerators: tuple[AcceleratorDemand, ...] = ()
    hint_cpu_milli: int = 0
    hint_memory_bytes: int = 0

    @property
    def vector(self) -> Vector:
        return (
            self.cpu_milli,
            self.memory_bytes,
            self.nvme_bytes,
            self.link_mbit,
            self.nvme_mbit,
            self.window_slots,
        )

    @property
    def expected_cpu_milli(self) -> int:
        return max(self.cpu_milli, self.hint_cpu_milli)

    @property
    def expected_memory_bytes(self) -> int:
        return max(self.memory_bytes, self.hint_memory_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What a CNM has in all."""

    cpu_milli: int
    memory_bytes: int
    nvme_bytes: int = 0
    link_mbit: int = 0
    nvme_mbit: int = 0
    window_slots: int = 0
    accelerators: tuple[AcceleratorPool, ...] = ()

    @property
    def vector(self) -> Vector:
        return (
            self.cpu_milli,
            self.memory_bytes,
            self.nvme_bytes,
            self.link_mbit,
            self.nvme_mbit,
            self.window_slots,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CnmView:
    """A CNM as the allocator sees it. `why_not` says why it takes nothing new ("" if it does)."""

    id: str
    arch: str
    capacity: Capacity
    labels: Mapping[str, str]
    runtimes: frozenset[str] = frozenset()
    why_not: str = ""
    load_cpu_milli: int = 0  # measured, 0 when not known
    load_memory_bytes: int = 0
    power_headroom_mw: int | None = None  # below its power limit; None when not known
    thermal_headroom_mc: int | None = None  # milli-degrees C below its throttle point


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """Where an instance may go."""

    workload: str = ""
    component: str = ""
    arch: str | None = None
    runtimes: frozenset[str] = frozenset()  # any of these; empty: any at all
    labels: tuple[tuple[str, str], ...] = ()  # the CNM must carry all of them
    spread: bool = False  # rather where fewer instances of this component are
    together: frozenset[str] = frozenset()  # components of this workload, on the same CNM
    companions: tuple[tuple[str, Demand], ...] = ()  # room for those of `together` that are to come
    group: tuple[tuple[str, int], ...] = ()  # instances wanted of it and of those of `together`
    max_per_cnm: int = 0  # instances of this component; 0 is no limit
    exclude: frozenset[str] = frozenset()  # CNM ids


NO_CONSTRAINTS: Final = Constraints()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The CNM that was chosen."""

    cnm: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unplaceable:
    """No CNM will do now; why not, for each of them."""

    reasons: Mapping[str, str]


class DoesNotFit(Exception):
    """A commit was refused; nothing was changed."""

    def __init__(self, instance: str, cnm: str, reason: str) -> None:
        super().__init__(f"{instance} on {cnm}: {reason}")
        self.instance = instance
        self.cnm = cnm
        self.reason = reason
