"""What a benchmark finds: one row a figure, and the goals of DESIGN section 6."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal, TypeAlias

Judged: TypeAlias = Literal["value", "ratio"]
LEFT_OUT: Final = "left out by --quick"
SIGNIFICANT_DIGITS: Final = 5  # nothing here is known better than that


class Better(StrEnum):
    LOWER = "lower"
    HIGHER = "higher"


class Reached(StrEnum):
    """Where a figure stands against its goal."""

    AIM = "aim"
    MUST = "must"
    MISSED = "missed"


class Unmeasured(Exception):
    """A figure can't be had on this machine; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What must and what should be reached. `judged` says by which number of the row."""

    must: float
    aim: float
    better: Better = Better.LOWER
    judged: Judged = "value"

    def plus(self, own: float) -> "Goal":
        """The goal of something that has to wait for `own` besides ("+ their own start")."""
        return Goal(
            must=self.must + own, aim=self.aim + own, better=self.better, judged=self.judged
        )


# DESIGN section 6, in its order and its units.
FRAME_US: Final = Goal(must=5, aim=2)
THOUSAND_CNMS_PERCENT: Final = Goal(must=20, aim=8)
SATURATION_PER_S: Final = Goal(must=50_000, aim=200_000, better=Better.HIGHER)
WINDOW_SHARE: Final = Goal(must=0.90, aim=0.98, better=Better.HIGHER, judged="ratio")
DETECTED_BY_EVENT_MS: Final = Goal(must=20, aim=5)
DETECTED_BY_SILENCE_MS: Final = Goal(must=330, aim=150)
COMMANDED_MS: Final = Goal(must=250, aim=50)
RUNNING_AGAIN_POWER_MS: Final = Goal(must=1_500, aim=700)
RUNNING_AGAIN_LEASE_MS: Final = Goal(must=6_500, aim=5_800)
MANAGING_AGAIN_MS: Final = Goal(must=1_000, aim=250)
RSS_MB: Final = Goal(must=48, aim=24)
READY_MS: Final = Goal(must=300, aim=100)
SIM_1_HZ: Final = Goal(must=1_000, aim=3_600, better=Better.HIGHER)
SIM_10_HZ: Final = Goal(must=100, aim=360, better=Better.HIGHER)

NONE: Final = Goal(must=0, aim=0)  # of what there must be none


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One row. `value` None: it could not be measured, `error` says why."""

    name: str  # "codec.frame"
    unit: str
    value: float | None = None
    baseline: float | None = None
    baseline_name: str | None = None
    goal: Goal | None = None
    error: str | None = None

    @property
    def ratio(self) -> float | None:
        """Value by baseline, where there are both."""
        if self.value is None or not self.baseline:
            return None
        return self.value / self.baseline

    @property
    def reached(self) -> Reached | None:
        """None where there is no goal, or nothing to hold against it."""
        goal = self.goal
        if goal is None:
            return None
        found = self.ratio if goal.judged == "ratio" else self.value
        if found is None:
            return None
        sign = -1 if goal.better is Better.HIGHER else 1
        if sign * found <= sign * goal.aim:
            return Reached.AIM
        return Reached.MUST if sign * found <= sign * goal.must else Reached.MISSED

    def to_json(self) -> dict[str, Any]:
        """The row of INTERFACES.md; besides it which number the goal is for and how it stands."""
        goal = self.goal
        row: dict[str, Any] = {
            "name": self.name,
            "value": rounded(self.value),
            "unit": self.unit,
            "baseline": rounded(self.baseline),
            "baseline_name": self.baseline_name,
            "ratio": rounded(self.ratio),
            "must": rounded(goal.must) if goal else None,
            "aim": rounded(goal.aim) if goal else None,
            "judged": str(goal.judged) if goal else None,
            "better": str(goal.better) if goal else None,
            "reached": str(self.reached) if self.reached else None,
        }
        if self.value is None:
            row["value_error"] = self.error or "it was not measured"
        return row


def rounded(value: float | None) -> float | None:
    """To SIGNIFICANT_DIGITS; integers stay integers."""
    if value is None:
        return None
    short = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    return int(short) if short.is_integer() else short
