"""A few threads for disk work that would hold the loop up (DESIGN D7).

A job runs on a worker; its result comes back on the loop's thread. Bounds: `threads` jobs at a
time, `waiting_limit` more in the queue, beyond that a request is refused with Unavailable.
"""

from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from typing import Final, TypeAlias, TypeVar

from hal.errors import DeadlinePassed, HalError, Unavailable
from hal.linux.oserror import hal_error
from hal.ports import Done, Reactor

T = TypeVar("T")

# A job calls it at every step (a chunk, a file); raises DeadlinePassed when it must stop.
Check: TypeAlias = Callable[[], None]

THREADS: Final = 2  # one long hash may not hold up the next unpack
WAITING_LIMIT: Final = 256


class Workers:
    """A bounded pool. All methods are called on the loop's thread."""

    def __init__(
        self, reactor: Reactor, *, threads: int = THREADS, waiting_limit: int = WAITING_LIMIT
    ) -> None:
        self._reactor = reactor
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="apf-disk")
        self._limit = threads + waiting_limit
        self._open = 0  # jobs whose result has not come back
        self._closing = False

    def submit(self, what: str, job: Callable[[Check], T], deadline_ns: int, done: Done[T]) -> None:
        """Run `job(check)` on a thread; `what` names it in errors.

        An OSError of the job becomes its HalError. Any other exception is a bug of ours: it is
        raised on the loop's thread, where the supervisor's policy is.
        """
        if self._closing or self._open >= self._limit:
            state = "closing" if self._closing else f"full ({self._open} jobs)"
            refusal = Unavailable(f"{what}: the disk workers are {state}; try again later")
            self._reactor.post(lambda: done(refusal))
            return
        self._open += 1
        check = partial(self._check, what, deadline_ns)
        future = self._pool.submit(_checked, job, check)
        future.add_done_callback(
            lambda ended: self._reactor.post(partial(self._deliver, what, ended, done))
        )

    def close(self) -> None:
        """Stop at the next check of each job and wait for that."""
        self._closing = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _check(self, what: str, deadline_ns: int) -> None:
        if self._closing:
            raise DeadlinePassed(f"{what}: given up, the program is stopping")
        late_ns = self._reactor.now_ns() - deadline_ns
        if late_ns >= 0:
            raise DeadlinePassed(f"{what}: not finished, {late_ns // 1_000_000} ms past deadline")

    def _deliver(self, what: str, ended: "Future[T]", done: Done[T]) -> None:
        self._open -= 1
        result: T | HalError
        try:
            result = ended.result()
        except HalError as exc:
            result = exc
        except OSError as exc:
            result = hal_error(exc, what)
        except CancelledError:
            result = DeadlinePassed(f"{what}: given up, the program is stopping")
        done(result)


def _checked(job: Callable[[Check], T], check: Check) -> T:
    check()  # it may have waited in the queue past its deadline
    return job(check)
