"""How a mock completes a `submit`: after virtual time, on the loop, or with DeadlinePassed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from hal.errors import DeadlinePassed, HalError
from hal.ports import Done

if TYPE_CHECKING:
    from hal.mock.node import Node

T = TypeVar("T")


def run_later(
    node: Node,
    duration_ns: int,
    deadline_ns: int,
    work: Callable[[], T | HalError],
    done: Done[T],
) -> None:
    """Do `work` after `duration_ns` and complete with what it returns or the HalError it raises.
    Past its deadline it is not done at all; neither when the node has died by then."""
    kernel, post = node.kernel, node.poster()
    incarnation = node.incarnation
    end_ns = kernel.now_ns + duration_ns
    limit_ns = node.clock.kernel_ns(deadline_ns)

    def finish() -> None:
        if node.incarnation != incarnation:
            return
        try:
            result = work()
        except HalError as exc:
            result = exc
        post(lambda: done(result))

    if limit_ns is not None and limit_ns < end_ns:
        error = DeadlinePassed(f"{node.name}: needs {duration_ns} ns, the deadline is nearer")
        kernel.at(limit_ns, lambda: post(lambda: done(error)))
    else:
        kernel.at(end_ns, finish)
