"""What the card says is true and no flood (I10): every kind of fault leaves a trace, an event's
code keeps to its rate, and at rest `ps` and `cnm ls` are what the models are.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from firmware.events import RATE_BURST, RATE_PER_S
from hal.mock.slot import Slot
from tools.sim.invariants.names import Fail, Invariant
from tools.sim.invariants.spread import Injected

SILENT_MOST: Final = 20  # of one id in a run, none of them seen to have done anything
LIVE_STATES: Final = frozenset({"LEASED", "DRAINING"})


class Told:
    """What was said, and what of it was to be said."""

    def __init__(self, fail: Fail) -> None:
        self._fail = fail
        self._injections: dict[str, list[Injected]] = {}  # by id
        self._left: dict[str, tuple[int, float]] = {}  # code -> when, and how many more may come

    def injected(self, injection: Injected) -> None:
        """One more that is to be reported."""
        if not injection.cut_short:
            self._injections.setdefault(injection.id, []).append(injection)

    def unseen(self) -> Counter[str]:
        """By id: how many of the faults so far have left no trace."""
        return Counter(
            {
                name: count
                for name, found in self._injections.items()
                if (count := sum(not injection.seen() for injection in found))
            }
        )

    def finish(self) -> None:
        """Raises Violation for a kind of fault of which nothing was ever seen."""
        for name, count in self.unseen().items():
            if count == len(self._injections[name]) >= SILENT_MOST:
                text = self._injections[name][0].text
                self._fail(Invariant.SILENT, f"{name} ({text}): {count} times, never seen")

    def daemon_starts(self) -> None:
        """Its event log is new, and so are its rates."""
        self._left.clear()

    def event(self, code: str, mono_ms: int) -> None:
        """One was recorded, at `mono_ms` of the daemon's clock. Raises Violation for a flood."""
        was_ms, left = self._left.get(code, (mono_ms, float(RATE_BURST)))
        left = min(RATE_BURST, left + max(0, mono_ms - was_ms + 1) * RATE_PER_S / 1000) - 1
        self._left[code] = (mono_ms, left)
        if left < -1:
            self._fail(
                Invariant.FLOOD, f"{code}: more than {RATE_BURST} at once and {RATE_PER_S} a second"
            )

    def at_any_time(
        self, rows: Sequence[Mapping[str, Any]], ever: Callable[[str, int], bool]
    ) -> None:
        """`ps` while things happen: RUNNING means that it was seen to run. Raises Violation."""
        for row in rows:
            name, generation = row["instance"], row["generation"]
            if row["phase"] == "RUNNING" and not ever(name, generation):
                self._fail(
                    Invariant.UNTRUE, f"ps says that {name} g{generation} runs; it never did"
                )

    def at_rest(
        self,
        rows: Sequence[Mapping[str, Any]],
        cnms: Sequence[Mapping[str, Any]],
        running: Mapping[str, tuple[str, int, int]],
        slots: Mapping[str, Slot],
        fresh: Collection[str] = (),
    ) -> None:
        """`ps` and `cnm ls` against the models; `fresh` has only just started, so the card may
        not have heard of it, nor of what runs where it has not read the inventory yet. Raises
        Violation."""
        said = {row["instance"]: row for row in rows}
        heard = {row["id"] for row in cnms if row["state"] in LIVE_STATES}
        for name, (cnm, generation, _) in running.items():
            if name in fresh or cnm not in heard:
                continue
            row = said.get(name)
            if row is None or row["phase"] != "RUNNING":
                phase = "not in ps" if row is None else row["phase"]
                self._fail(Invariant.UNTRUE, f"{name} runs on {cnm} and is {phase}")
            if (row["cnm"], row["generation"]) != (cnm, generation):
                self._fail(
                    Invariant.UNTRUE,
                    f"{name} runs on {cnm} as generation {generation}; ps says {row['cnm']}, "
                    f"{row['generation']}",
                )
        for name, row in said.items():
            if row["phase"] == "RUNNING" and name not in running:
                self._fail(Invariant.UNTRUE, f"ps says that {name} runs; nothing does")
        for row in cnms:
            slot = slots[row["id"]]
            if row["state"] in LIVE_STATES and not slot.power_good:
                self._fail(Invariant.UNTRUE, f"{slot.id} is {row['state']} and has no power")
            if row["state"] == "OFF" and slot.power_good:
                self._fail(Invariant.UNTRUE, f"{slot.id} is OFF and has power")
