"""What the demo says: a line as each step goes, and a table at the end."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tools.output import Output, human_ms, printable

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(slots=True, kw_only=True)
class StepResult:
    """One step: `proof` is what was observed, and at the end of a bad one what was not."""

    step: str
    ok: bool = False
    ms: int = 0
    proof: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "ok": self.ok, "ms": self.ms, "proof": list(self.proof)}


class Progress:
    """Lines on stderr as it goes. No colour where there is no terminal or NO_COLOR is set."""

    def __init__(self, total: int, console: "Console | None" = None) -> None:
        if console is None:
            from rich.console import Console

            console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
        self._console = console
        self._total = total
        self._number = 0

    def say(self, text: str) -> None:
        self._console.print(printable(text), style="dim", soft_wrap=True)

    def begin(self, step: str, claim: str) -> None:
        self._number += 1
        self._console.print(
            f"[{self._number:>2}/{self._total}] {step}: {claim}", style="bold", soft_wrap=True
        )

    def proof(self, text: str) -> None:
        self._console.print(f"        - {printable(text)}", soft_wrap=True)

    def end(self, result: StepResult) -> None:
        word, style = ("ok", "green") if result.ok else ("FAILED", "bold red")
        text = f"        {word} {human_ms(result.ms)}"
        self._console.print(text, style=style, soft_wrap=True)


def show(out: Output, results: Sequence[StepResult], verdict: str) -> None:
    """The table for people, or the list for programs; the verdict goes to stderr."""
    rows = [
        [item.step, "ok" if item.ok else "FAILED", human_ms(item.ms), _short(item)]
        for item in results
    ]
    out.data(
        "demo",
        [item.to_json() for item in results],
        lambda: out.table(["step", "result", "time", "observed from outside"], rows),
    )
    out.say(verdict)


def _short(item: StepResult) -> str:
    """A good step's first proof; a bad one's last words."""
    if not item.proof:
        return "-"
    return item.proof[0] if item.ok else item.proof[-1]


def verdict(results: Sequence[StepResult], planned: int, total_ms: int) -> tuple[bool, str]:
    """Did all hold, and the words for it: the first step that did not, and what was seen."""
    bad = next((item for item in results if not item.ok), None)
    if bad is not None:
        return False, f"demo: step {bad.step} did not hold: {bad.proof[-1] if bad.proof else '-'}"
    if len(results) < planned:
        return False, f"demo: {planned - len(results)} of {planned} steps were not reached"
    return True, f"demo: all {planned} steps held, {human_ms(total_ms)}"
