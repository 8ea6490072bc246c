"""Each rule of DESIGN section 4 that guards against overlap, left out: what the proof must find.

A rule is left out by a class of `broken.py` or by one of the model's switches. Each has its own
weather: there an overlap must be found, and with the rule there is none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from firmware.board_types import Timing
from firmware.loop import MS
from tools.sim.leases.broken import (
    AnyHello,
    AsksAnew,
    EpochLater,
    FromAdmission,
    GenerationLater,
    GrantedLater,
    GrantsToSuspects,
    GrantsUnread,
    NoBootIds,
    NoDrift,
    NoEpochs,
    NoGenerations,
    NoHold,
    NoStopTime,
    NoTombstones,
    NoWait,
    NoWaitAtStart,
    RevocableFence,
    SameEpochAfterFence,
    SilenceIsProof,
    StopIsEnough,
    TrustsTheGuard,
    from_receipt,
)
from tools.sim.leases.run import Rules
from tools.sim.leases.weather import MODULES, Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Without:
    """One rule left out. `focus` is the weather in which it is needed: there an overlap must be
    found within RUNS seeds, and with the rule none in as many."""

    rule: str
    text: str
    rules: Rules
    focus: Mapping[str, Any]


RUNS: Final = 300
SECOND: Final = 1_000 * MS
EXACT: Final[dict[str, Any]] = {  # every moment is where the lease's arithmetic puts it
    "card_ppm": Timing().clock_rate_ppm,
    "module_ppm": (-Timing().clock_rate_ppm,) * MODULES,
    "power_fence": (False,) * MODULES,
    "loss": 0.0,
    "duplicate": 0.0,
    "fast": 1.0,
    "worst_stop": 1.0,
    "disk_ns": 0,
    "disk_refuses": 0.0,
    "faults": (Fault(SECOND // 4, "cut", 0, 60 * SECOND),),
    "horizon_ns": 7 * SECOND,
}
STALE: Final = {  # what was sent comes once more, much later
    "power_fence": (False,) * MODULES,
    "fast": 1.0,
    "loss": 0.0,
    "duplicate": 0.9,
    "disk_ns": 0,
    "disk_refuses": 0.0,
    "horizon_ns": 9 * SECOND,
}
THERE: Final = Fault(SECOND // 10, "migrate", 0)
BACK_AND_FORTH: Final = (THERE, Fault(3 * SECOND // 5, "migrate", 0))


def _unheard(at_ns: int) -> Fault:
    """From then on nobody hears what comes up again on the module that was left."""
    return Fault(at_ns, "mute", 1, 60 * SECOND)


POWERED: Final = {"power_fence": (True,) * MODULES, "power_stuck": 0.0, "fast": 1.0, "loss": 0.0}
RETURNS: Final = (  # fenced by the wait, heard again in the same boot, used again, lost again
    Fault(SECOND // 10, "cut", 0, 15 * SECOND // 2),
    Fault(19 * SECOND // 2, "migrate", 0),
    Fault(12 * SECOND, "cut", 0, 60 * SECOND),
    Fault(12 * SECOND, "crash", 0),
)


def _without(rule: str, text: str, focus: Mapping[str, Any], **changes: Any) -> Without:
    return Without(rule=rule, text=text, rules=Rules(**changes), focus=focus)


_ALL: Final = (
    _without(
        "1 boot id",
        "a CNM takes what was meant for an earlier boot",
        {**STALE, "faults": (THERE, Fault(SECOND, "reboot", 1), _unheard(3 * SECOND))},
        binding=NoBootIds,
    ),
    _without(
        "1 random",
        "a CNM's boot id is the same at each boot",
        {**STALE, "faults": (THERE, Fault(SECOND, "reboot", 1), _unheard(3 * SECOND))},
        boot_ids_repeat=True,
    ),
    _without(
        "1 epoch",
        "a CNM obeys a daemon that is gone",
        {
            **STALE,
            "faults": (*BACK_AND_FORTH, Fault(6 * SECOND // 5, "crash", 0), _unheard(3 * SECOND)),
        },
        binding=NoEpochs,
    ),
    _without(
        "1 generation",
        "a CNM obeys a lower generation",
        {**STALE, "faults": (*BACK_AND_FORTH, _unheard(3 * SECOND // 2))},
        table=NoGenerations,
    ),
    _without(
        "2 epoch",
        "the epoch is used before it is on disk",
        {
            **STALE,
            "faults": (
                Fault(SECOND // 10, "crash", 0),
                Fault(5 * SECOND // 2, "migrate", 0),
                Fault(3 * SECOND, "migrate", 0),
                Fault(18 * SECOND // 5, "crash", 0),
                _unheard(5 * SECOND),
            ),
            "horizon_ns": 12 * SECOND,
        },
        decisions=EpochLater,
    ),
    _without(
        "2 generation",
        "g is used before it is on disk",
        {
            **STALE,
            "duplicate": 0.0,
            "disk_ns": 3 * SECOND,
            "faults": (THERE, Fault(SECOND // 2, "crash", 0)),
        },
        decisions=GenerationLater,
    ),
    _without(
        "2 granted",
        "grants before that is on disk",
        {**EXACT, "faults": RETURNS, "horizon_ns": 17 * SECOND},
        decisions=GrantedLater,
    ),
    _without(
        "3 sending",
        "a lease counts from the receipt of its grant",
        {
            **EXACT,
            "late_grants": 0.5,
            "faults": (Fault(3 * SECOND, "mute", 0, 60 * SECOND),),
            "horizon_ns": 12 * SECOND,
        },
        guard=from_receipt,
    ),
    _without(
        "4 guard",
        "the guard hangs with the agent",
        {**EXACT, "faults": (Fault(SECOND // 4, "agent_pause", 0), *EXACT["faults"])},
        guard_is_the_agents=True,
    ),
    _without("4 S", "W without the time that a stop takes", EXACT, timing=NoStopTime()),
    _without("5 drift", "W without (1+r)/(1-r)", EXACT, timing=NoDrift()),
    _without("5 receipt", "W from when the grants began", {}, lease=FromAdmission),
    _without("8 suspect", "a SUSPECT gets grants", {}, lease=GrantsToSuspects),
    _without(
        "8 irrevocable",
        "a FENCING gets grants",
        {
            **POWERED,
            "power_stuck": 1.0,
            "faults": (Fault(SECOND // 4, "cut", 0, 5 * SECOND // 2),),
            "horizon_ns": 9 * SECOND,
        },
        lease=RevocableFence,
    ),
    _without(
        "9a tombstone",
        "a CNM forgets what it stopped",
        {**STALE, "faults": (*BACK_AND_FORTH, _unheard(3 * SECOND // 2))},
        table=NoTombstones,
    ),
    _without(
        "9a stopped",
        "a module that is not heard is as good as one that stopped",
        {"faults": (Fault(SECOND // 4, "cut", 0, 60 * SECOND),)},
        inventory=StopIsEnough,
    ),
    _without(
        "9b hold",
        "power-good read low once",
        {**POWERED, "faults": (Fault(SECOND // 4, "glitch", 0),)},
        lease=NoHold,
    ),
    _without("9c wait", "silence is enough", EXACT, lease=NoWait),
    _without(
        "9c power",
        "the wait counts where the power can be cut",
        {
            **POWERED,
            "late_grants": 0.0,
            "faults": (Fault(SECOND // 4, "init_pause", 0, 20 * SECOND),),
            "horizon_ns": 12 * SECOND,
        },
        lease=TrustsTheGuard,
    ),
    _without(
        "9c epoch",
        "a late command finds the boot that was fenced with a lease again",
        {
            **STALE,
            "beat_ns": 700 * MS,
            "late_grants": 0.0,
            "loss": 0.2,
            "faults": (
                Fault(SECOND // 20, "deaf", 0, 11 * SECOND),
                Fault(7 * SECOND, "mute", 0, 29 * SECOND // 5),
            ),
            "horizon_ns": 17 * SECOND,
        },
        decisions=SameEpochAfterFence,
    ),
    _without(
        "9d boot id",
        "any HELLO of a SUSPECT proves",
        {"faults": (Fault(SECOND // 4, "mute", 0, SECOND),)},
        lease=AnyHello,
        discovery=AsksAnew,
    ),
    _without(
        "9 boot",
        "a booting CNM starts what ran",
        {"faults": (Fault(SECOND // 4, "reboot", 0),)},
        boots_start_what_ran=True,
    ),
    _without(
        "10 silence",
        "dead links are a dead module",
        {**POWERED, "faults": (Fault(SECOND // 4, "cut", 0, 60 * SECOND),)},
        lease=SilenceIsProof,
    ),
    _without(
        "11 wait",
        "W is over at the start",
        {
            **EXACT,
            "faults": (
                Fault(SECOND // 4, "cut", 0, 60 * SECOND),
                Fault(SECOND // 4, "crash", 0),
            ),
        },
        lease=NoWaitAtStart,
    ),
    _without(
        "11 read",
        "grants before the inventory was read",
        {**STALE, "faults": (Fault(SECOND // 4, "migrate", 0), Fault(SECOND // 2, "crash", 0))},
        discovery=GrantsUnread,
    ),
)
WITHOUT: Final[Mapping[str, Without]] = {item.rule: item for item in _ALL}
