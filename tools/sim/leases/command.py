"""`apf sim --lease-proof N`: many runs on all cores, and what they gave."""

import multiprocessing
import os
from collections.abc import Callable
from typing import Any, Final

from firmware import lease
from tools.errors import BadUsage
from tools.output import Output
from tools.sim.leases.run import Proof, prove

CHUNK: Final = 250  # runs that one process does before it says how they went
SHOWN_MOST: Final = 20


def prove_leases(
    out: Output, runs: int, first_seed: int, jobs: int, tell: Callable[[int, int], None]
) -> int:
    """1 when two generations lived at once; `tell` is told the runs done and the violations.
    Raises BadUsage where the firmware is compiled."""
    if not str(lease.__file__).endswith(".py"):
        raise BadUsage(
            "compiled_firmware",
            f"the lease proof leaves rules out of the firmware's classes, which {lease.__file__} "
            "does not allow: run it without the compiled modules in PYTHONPATH",
        )
    chunks = [
        (seed, min(CHUNK, first_seed + runs - seed))
        for seed in range(first_seed, first_seed + runs, CHUNK)
    ]
    proof = Proof()
    context = multiprocessing.get_context("fork")
    with context.Pool(jobs or len(os.sched_getaffinity(0))) as pool:
        for part in pool.imap_unordered(_chunk, chunks):
            proof.add(part)
            tell(proof.runs, len(proof.violations))
    out.data("lease_proof", to_json(proof), lambda: _show(out, proof))
    return 1 if proof.violations else 0


def _chunk(chunk: tuple[int, int]) -> Proof:
    first, count = chunk
    return prove(count, first_seed=first, stop_at=count)


def to_json(proof: Proof) -> dict[str, Any]:
    return {
        "runs": proof.runs,
        "runs_per_cpu_s": round(proof.runs_per_s, 1),
        "cpu_s": round(proof.seconds, 3),
        "events": proof.events,
        "starts": proof.failovers,
        "violations": [
            {"seed": seed, "at_s": overlap.at_ns / 1e9, "living": list(overlap.living)}
            for seed, overlap in sorted(proof.violations)
        ],
    }


def _show(out: Output, proof: Proof) -> None:
    out.print(
        f"{proof.runs} runs, {proof.events} events, {proof.failovers} starts of a generation, "
        f"{proof.runs_per_s:.0f} runs per CPU second: {len(proof.violations)} overlaps"
    )
    for seed, overlap in sorted(proof.violations)[:SHOWN_MOST]:
        out.print(f"seed {seed}: {overlap}; again: apf sim --lease-proof 1 --seeds {seed}")
