"""Every queue, table and log of every program stays below its bound (I6).

Looked at on a slow clock, a part of the modules each time: what piles up stays piled up long enough
to be seen, and a queue that is emptied within a turn has done no harm.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, TypeAlias

from firmware.cnm import lease_guard, local_stream, staging, tombstones
from firmware.cnm.instances import INSTANCES_LIMIT
from firmware.control_socket import MAX_CONNECTIONS
from firmware.deployer import BURIED_KEPT, FAILURES_KEPT
from firmware.endpoint import REPLIES_KEPT, TAGS, WAITING_LIMIT, Endpoint
from firmware.events import MAX_SUBSCRIPTIONS, RING_EVENTS
from firmware.journal import MAX_IN_FLIGHT
from firmware.link import QUEUE_PACKETS
from firmware.profiler import MAX_PROFILES
from firmware.transfer_queue import ACTIVE_MAX, QUEUE_MAX
from hal.mock.kernel import VirtualKernel
from hal.mock.unix_server import BACKLOG
from tools.sim.invariants.names import Fail, Invariant

MAILBOX_MOST: Final = 4096  # far below the loop's own limit: a pile-up shows early
TIMERS_MOST: Final = 1024  # of any loop, and so many more for
TIMERS_A_SLOT: Final = 128  # each module that it looks after
CONTEXTS_MOST: Final = 16  # of a Reassembler, its default
HANDLES_MOST: Final = 64  # of any node, and as many more for each module that it looks after
WORDS_MOST: Final = 512  # different counters of one link: words are ours, so they are few

Size: TypeAlias = tuple[str, int, int]  # what, how many, at most


class Bounds:
    """Give it the programs as they are now, as often as you like."""

    def __init__(self, kernel: VirtualKernel, fail: Fail) -> None:
        self._kernel = kernel
        self._fail = fail

    def look(self, sizes: Iterable[Size], of: str) -> None:
        """Raises Violation for the first that is over."""
        for what, size, most in sizes:
            if size > most:
                self._fail(Invariant.BOUND, f"{of}: {what}: {size}, at most {most}")

    def card(self, card: Any, control: Any, slots: int, instances: int) -> None:
        """The daemon's own tables; `instances` that it was ever told of at once."""
        self.look(_card_sizes(card, instances), "daemon")
        if control is not None:
            self.look([("connections", len(control._connections), MAX_CONNECTIONS)], "daemon")
        self.look(self.loop_sizes("daemon", slots), "daemon")

    def card_end(self, cnm: Any) -> None:
        """What the daemon keeps for one module."""
        for end in (cnm.mc, cnm.agent):
            self.look(_endpoint_sizes(end), f"daemon, {end.name}")
        self.look(_session_sizes(cnm), f"daemon, {cnm.id}")

    def module(self, init: Any, agent: Any, nodes: Sequence[str], name: str) -> None:
        """A module's init and agent."""
        for node in nodes:
            self.look(self.loop_sizes(node, 0), node)
        if init is not None:
            self.look(_endpoint_sizes(init.endpoint), f"{name}/init")
            self.look(_init_sizes(init), f"{name}/init")
        if agent is not None:
            if agent._endpoint is not None:
                self.look(_endpoint_sizes(agent._endpoint), f"{name}/agent")
            self.look(
                [
                    ("staging jobs", len(agent._stager._jobs), staging.JOBS_LIMIT),
                    ("requests to init", len(agent._init._pending), local_stream.REQUESTS_LIMIT),
                ],
                f"{name}/agent",
            )

    def loop_sizes(self, node: str, slots: int) -> Iterator[Size]:
        """A program's loop, and what it holds open."""
        found = self._kernel.nodes.get(node)
        loop: Any = None if found is None else found.loop
        if found is None or loop is None:
            return
        yield "mailbox", len(loop._mailbox), MAILBOX_MOST
        yield "timers", len(loop._timers), TIMERS_MOST + slots * TIMERS_A_SLOT
        callers = MAX_CONNECTIONS + BACKLOG if slots else 0  # of those whom the card serves
        yield "open handles", len(found.handles), HANDLES_MOST * (1 + slots) + callers


def _endpoint_sizes(end: Endpoint) -> Iterator[Size]:
    link: Any = end.link
    yield "requests waiting", len(end._waiting), WAITING_LIMIT
    yield "requests outstanding", len(end._pending), TAGS
    yield "answers kept", len(end._replies), REPLIES_KEPT
    yield "link queue", len(link._queue), QUEUE_PACKETS
    yield "messages being put together", link._reassembler.open_messages, CONTEXTS_MOST
    yield "counters", len(end.counters) + len(link.counters), WORDS_MOST


def _card_sizes(card: Any, instances: int) -> Iterator[Size]:
    yield "events", len(card.events._ring), RING_EVENTS
    yield "subscriptions", len(card.events._subscriptions), MAX_SUBSCRIPTIONS
    yield "journal batches in flight", card.journal.in_flight, MAX_IN_FLIGHT
    yield "pending decisions", len(card.decisions.pending), instances
    yield "assignments", len(card.decisions.assignments), instances
    yield "deployments kept as failed", len(card.deployer._failures), FAILURES_KEPT
    yield "removals kept", len(card.deployer._buried), BURIED_KEPT
    yield "profiles", len(card.profiler), MAX_PROFILES
    yield "what waits", len(card.reconciler.waiting), instances
    yield "what is to be looked at", len(card.reconciler._dirty), instances


def _session_sizes(cnm: Any) -> Iterator[Size]:
    yield "instances observed", len(cnm.observed), INSTANCES_LIMIT
    yield "usages", len(cnm.usage), INSTANCES_LIMIT
    if cnm.transfers is not None:
        for queue in (cnm.transfers._pusher, cnm.transfers._puller):
            yield "transfers", len(queue._active), ACTIVE_MAX
            yield "transfers waiting", len(queue._waiting), QUEUE_MAX


def _init_sizes(init: Any) -> Iterator[Size]:
    yield "instances", len(init.table._instances), INSTANCES_LIMIT
    yield "heartbeats out", len(init.guard._sent_ns), lease_guard.MAX_OUTSTANDING
    yield "tombstones", len(init.table._tombstones._stones), tombstones.LIMIT
