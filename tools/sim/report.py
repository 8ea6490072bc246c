"""What many seeds have come to: for programs (INTERFACES.md, `sim`) and for people."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Final

from tools.output import Output
from tools.sim.faults import CLASSES, Fault
from tools.sim.plan import Plan
from tools.sim.run import Outcome, sim_board
from tools.sim.shrink import Shrunk

SHOWN_VIOLATIONS: Final = 20
SHOWN_STEPS: Final = 40
SHOWN_CHARS: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked for; how one seed of it is run again."""

    board: str
    hours: float
    heartbeat_hz: float
    words: str  # of --faults
    faults: Sequence[Fault]

    @property
    def acting(self) -> list[Fault]:
        """Those that are modelled, and that this board has something for."""
        board = sim_board(self.board)
        return [f for f in self.faults if f.inject is not None and f.fits(board)]

    def replay(self, seed: int, shrunk: Shrunk | None = None) -> str:
        """The command line."""
        steps = ""
        if shrunk is not None:
            steps = " --steps " + (",".join(str(n) for n in shrunk.numbers) or "none")
        return (
            f"apf sim --board {self.board} --replay {seed} --hours {self.hours:g} "
            f"--heartbeat-hz {self.heartbeat_hz:g} --faults {self.words}{steps}"
        )


@dataclass(slots=True)
class Report:
    """Grows by one outcome at a time; bounded by the number of seeds."""

    asked: Asked
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    shrunk: dict[int, tuple[Plan, Shrunk]] = field(default_factory=dict)

    def add(self, outcome: Outcome) -> None:
        self.outcomes[outcome.seed] = outcome

    @property
    def in_order(self) -> list[Outcome]:
        return [self.outcomes[seed] for seed in sorted(self.outcomes)]

    @property
    def violations(self) -> list[Outcome]:
        return [outcome for outcome in self.in_order if outcome.violation is not None]

    @property
    def trace_sha256(self) -> str:
        """Over the hashes of the seeds, in their order."""
        text = "".join(outcome.trace_sha256 for outcome in self.in_order)
        return hashlib.sha256(text.encode()).hexdigest()

    def counted(self, name: str) -> dict[str, int]:
        """`faults` or `injected`, over all seeds, for every modelled fault that was asked for."""
        total: Counter[str] = Counter()
        for outcome in self.in_order:
            total.update(getattr(outcome, name))
        return {fault.id: total[fault.id] for fault in self.asked.acting}

    def _idle(self) -> list[tuple[Fault, str]]:
        acting = self.asked.acting
        return [(f, f.not_modelled or f.fits_not) for f in self.asked.faults if f not in acting]

    def pairs(self) -> dict[str, int]:
        """By pair of classes: in how many seeds both acted at once."""
        total: Counter[tuple[str, str]] = Counter()
        for outcome in self.in_order:
            total.update(outcome.pairs)
        return {f"{a}+{b}": total[a, b] for a, b in self._possible_pairs()}

    def _possible_pairs(self) -> list[tuple[str, str]]:
        letters = {fault.id[0] for fault in self.asked.acting}
        return list(combinations(sorted(letters), 2))

    def to_json(self) -> dict[str, Any]:
        pairs = self.pairs()
        return {
            "board": self.asked.board,
            "hours": self.asked.hours,
            "heartbeat_hz": self.asked.heartbeat_hz,
            "seeds": len(self.outcomes),
            "simulated_s": round(sum(o.simulated_s for o in self.in_order), 3),
            "cpu_s": round(sum(o.cpu_s for o in self.in_order), 3),
            "speed_ratio": self.speed_ratio,
            "events": sum(o.events for o in self.in_order),
            "violations": [self._violation(outcome) for outcome in self.violations],
            "faults": self.counted("faults"),
            "injected": self.counted("injected"),
            "not_modelled": {f.id: why for f, why in self._idle()},
            "pairs": pairs,
            "pairs_missing": [pair for pair, count in pairs.items() if not count],
            "trace_sha256": self.trace_sha256,
        }

    @property
    def speed_ratio(self) -> float:
        """Simulated time by processor time."""
        cpu_s = sum(o.cpu_s for o in self.in_order)
        return round(sum(o.simulated_s for o in self.in_order) / cpu_s, 1) if cpu_s else 0.0

    def _violation(self, outcome: Outcome) -> dict[str, Any]:
        found = outcome.violation
        assert found is not None
        said: dict[str, Any] = {
            "seed": outcome.seed,
            "invariant": found.invariant,
            "at_s": round(found.at_s, 6),
            "text": found.text[:SHOWN_CHARS],
            "replay": self.asked.replay(outcome.seed),
            "shrunk": None,
        }
        if outcome.seed in self.shrunk:
            plan, shrunk = self.shrunk[outcome.seed]
            said["shrunk"] = {
                "steps": steps_of(plan, shrunk),
                "of": len(plan.steps),
                "runs": shrunk.runs,
                "whole": shrunk.whole,
                "replay": self.asked.replay(outcome.seed, shrunk),
            }
        return said

    # --- for people ---

    def show(self, out: Output) -> None:
        """On stdout."""
        data = self.to_json()
        out.fields(
            {
                "seeds": data["seeds"],
                "simulated": f"{data['simulated_s']:.0f} s",
                "processor": f"{data['cpu_s']:.1f} s",
                "speed": f"{data['speed_ratio']:g} x real time",
                "events": data["events"],
                "trace": data["trace_sha256"],
            }
        )
        self._show_faults(out, data)
        self._show_pairs(out, data["pairs"])
        for letter, why in _by_class(data["not_modelled"]).items():
            out.print(f"not modelled  {letter}: {why}")
        for violation in data["violations"][:SHOWN_VIOLATIONS]:
            self._show_violation(out, violation)
        more = len(data["violations"]) - SHOWN_VIOLATIONS
        if more > 0:
            out.print(f"and {more} more violations")
        out.print(f"violations  {len(data['violations'])}")

    def _show_faults(self, out: Output, data: Mapping[str, Any]) -> None:
        rows = []
        for letter, text in CLASSES.items():
            faults = {name: n for name, n in data["faults"].items() if name[0] == letter}
            if faults:
                acted = sum(n > 0 for n in faults.values())
                each = " ".join(f"{name}:{n}" for name, n in faults.items())
                total = sum(faults.values())
                rows.append([letter, text, f"{acted} of {len(faults)}", total, each])
        if rows:
            out.table(["class", "", "acted", "times", "by id"], rows)

    def _show_pairs(self, out: Output, pairs: Mapping[str, int]) -> None:
        if pairs:
            covered = [pair for pair, count in pairs.items() if count]
            out.print(f"pairs of classes  {len(covered)} of {len(pairs)}")
            missing = [pair for pair, count in pairs.items() if not count]
            if missing:
                out.print(f"pairs missing  {' '.join(missing)}")

    def _show_violation(self, out: Output, violation: Mapping[str, Any]) -> None:
        out.print("")
        out.print(
            f"violation  seed {violation['seed']}, {violation['at_s']:.3f} s: "
            f"{violation['invariant']}"
        )
        for line in str(violation["text"]).split("\n"):
            out.print(f"  {line}")
        out.print(f"  {violation['replay']}")
        shrunk = violation["shrunk"]
        if shrunk is not None:
            count = len(shrunk["steps"])
            end = "" if shrunk["whole"] else ", shorter ones were not tried"
            out.print(f"  {count} of {shrunk['of']} steps do ({shrunk['runs']} runs{end}):")
            for step in shrunk["steps"][:SHOWN_STEPS]:
                out.print(f"    {step['number']:>5} {step['at_s']:>10.3f} s {step['what']}")
            out.print(f"  {shrunk['replay']}")


def steps_of(plan: Plan, shrunk: Shrunk) -> list[dict[str, Any]]:
    """The steps that are left, for the report."""
    kept = set(shrunk.numbers)
    return [
        {"number": step.number, "at_s": round(step.at_ns / 1e9, 6), "what": step.what}
        for step in plan.steps
        if step.number in kept
    ]


def _by_class(not_modelled: Mapping[str, str]) -> dict[str, str]:
    """ids of one reason -> the reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in not_modelled.items():
        by_reason.setdefault(reason, []).append(name)
    return {" ".join(names): reason for reason, names in by_reason.items()}
