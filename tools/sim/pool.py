"""Seeds on all cores: a few processes that are given one seed at a time.

A process that dies, or that takes longer than `SEED_LIMIT_S` for a seed, costs that seed only: its
outcome says so, as a violation, and another process takes the next one. Leaving the generator, by
Ctrl-C for instance, ends all of them.
"""

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, ForkProcess
from typing import Final, Protocol

from tools.sim.run import Found, Outcome

SEED_LIMIT_S: Final = 900.0  # of real time, for one seed
JOBS_MOST: Final = 256
LOOK_S: Final = 1.0  # at least so often at the clock
JOIN_S: Final = 5.0


class Clock(Protocol):
    """Real time, for the limit."""

    def now_ns(self) -> int: ...


@dataclass(slots=True, eq=False)
class _Worker:
    process: ForkProcess
    pipe: Connection
    seed: int | None = None
    since_ns: int = 0


def run_all(
    seeds: Iterable[int],
    run: Callable[[int], Outcome],
    *,
    clock: Clock,
    jobs: int = 0,
    limit_s: float = SEED_LIMIT_S,
    look_s: float = LOOK_S,
) -> Iterator[Outcome]:
    """The outcomes as they come, in any order; one for each seed. `jobs` 0: one a core."""
    waiting = iter(seeds)
    context = multiprocessing.get_context("fork")
    gc.collect()
    gc.freeze()  # the processes share what is there now, and never look through it
    workers: list[_Worker] = []
    try:
        for _ in range(min(jobs or cores(), JOBS_MOST)):
            workers.append(_start(context, run, workers))
        for worker in workers:
            _next(worker, waiting, clock)
        while any(worker.seed is not None for worker in workers):
            for index, worker in enumerate(workers):
                outcome = _look(worker, clock, limit_s)
                if outcome is None:
                    continue
                yield outcome
                if worker.seed is not None:  # it died of its seed
                    worker = workers[index] = _start(context, run, workers)
                _next(worker, waiting, clock)
            busy = [worker for worker in workers if worker.seed is not None]
            wait([end for one in busy for end in (one.pipe, one.process.sentinel)], timeout=look_s)
    finally:
        for worker in workers:
            _end(worker)
        gc.unfreeze()


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def _start(
    context: ForkContext, run: Callable[[int], Outcome], others: Sequence[_Worker]
) -> _Worker:
    ours, theirs = context.Pipe()
    inherited = [ours, *(other.pipe for other in others)]  # the parent's ends
    process = context.Process(target=_work, args=(theirs, inherited, run), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process=process, pipe=ours)


def _work(pipe: Connection, inherited: Sequence[Connection], run: Callable[[int], Outcome]) -> None:
    """A process: seeds in, outcomes out, until the other end closes, or its holder has died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that was asked ends the others
    for end in inherited:
        end.close()
    while True:
        try:
            seed = pipe.recv()
        except EOFError:
            return
        outcome = run(seed)
        gc.collect()
        pipe.send(outcome)


def _next(worker: _Worker, waiting: Iterator[int], clock: Clock) -> None:
    worker.seed = next(waiting, None)
    if worker.seed is not None:
        worker.since_ns = clock.now_ns()
        worker.pipe.send(worker.seed)


def _look(worker: _Worker, clock: Clock, limit_s: float) -> Outcome | None:
    """The outcome of its seed, if there is one; the seed stays set where the process has died."""
    if worker.seed is None:
        return None
    if worker.pipe.poll():
        try:
            outcome: Outcome = worker.pipe.recv()
        except (EOFError, ConnectionResetError):
            return _lost(worker)
        worker.seed = None
        return outcome
    if not worker.process.is_alive():
        return _lost(worker)
    if clock.now_ns() - worker.since_ns > limit_s * 1e9:
        _end(worker)
        return _failed(worker.seed, "no end", f"not done after {limit_s:.0f} s of real time")
    return None


def _lost(worker: _Worker) -> Outcome:
    _end(worker)
    assert worker.seed is not None
    return _failed(worker.seed, "the process died", f"exit status {worker.process.exitcode}")


def _failed(seed: int, invariant: str, text: str) -> Outcome:
    return Outcome(seed=seed, violation=Found(invariant=invariant, at_s=0.0, text=text, detail=""))


def _end(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.terminate()
    worker.process.join(JOIN_S)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()
