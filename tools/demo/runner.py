"""The steps in order, each with its time and its proofs; the first that does not hold ends it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from subprocess import SubprocessError

from hal.errors import HalError
from tools.demo.breaking import Breaker
from tools.demo.context import Context
from tools.demo.errors import StepFailed
from tools.demo.evidence import evidence
from tools.demo.report import Progress, StepResult
from tools.demo.waits import MS
from tools.errors import ToolError

Proofs = Iterator[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """`run` yields each proof when it has it, and raises StepFailed."""

    name: str
    claim: str
    run: Callable[[Context], Proofs]


def run_steps(
    steps: Sequence[Step], context: Context, breaker: Breaker, progress: Progress
) -> list[StepResult]:
    """The results up to the first bad one."""
    results: list[StepResult] = []
    for step in steps:
        result = StepResult(step=step.name)
        results.append(result)
        progress.begin(step.name, step.claim)
        start_ns = context.clock.now_ns()
        try:
            breaker.before(step.name, context)
            for proof in step.run(context):
                result.proof.append(proof)
                progress.proof(proof)
        except (StepFailed, ToolError, HalError, OSError, SubprocessError) as exc:
            text = exc.text if isinstance(exc, StepFailed) else f"{type(exc).__name__}: {exc}"
            seen = evidence(context)
            result.proof.append(f"{text}; {seen}" if seen else text)
            progress.proof(result.proof[-1])
        else:
            result.ok = True
        result.ms = (context.clock.now_ns() - start_ns) // MS
        progress.end(result)
        if not result.ok:
            break
    return results
