"""A module as the allocator sees it: what it has, and why it takes nothing new."""

from firmware.allocator import AcceleratorPool, Capacity, CnmView
from firmware.inventory import Cnm
from firmware.window import RING_ENTRIES
from protocol.apf import CapabilitiesReply, Scope


def capacity_of(cnm: Cnm, capabilities: CapabilitiesReply) -> Capacity:
    """What a module says that it has, as the allocator counts it. How fast its drives are is in the
    board file, and its window is the card's own."""
    return Capacity(
        cpu_milli=capabilities.cores_milli,
        memory_bytes=capabilities.memory_bytes,
        nvme_bytes=capabilities.nvme_bytes,
        link_mbit=capabilities.link_mbit,
        nvme_mbit=cnm.config.module.nvme_mbit,
        window_slots=RING_ENTRIES,
        accelerators=tuple(
            AcceleratorPool(
                kind=item.kind,
                model=item.model,
                count=item.count,
                scope="fabric" if item.scope == Scope.FABRIC else "local",
            )
            for item in capabilities.accelerators
        ),
    )


def view_of(cnm: Cnm, capabilities: CapabilitiesReply) -> CnmView:
    """A module as the allocator sees it."""
    return CnmView(
        id=cnm.id,
        arch=capabilities.arch,
        capacity=capacity_of(cnm, capabilities),
        labels=dict(capabilities.labels),
        runtimes=frozenset(capabilities.runtimes),
        why_not=why_not(cnm),
    )


def is_alike(one: CnmView, other: CnmView) -> bool:
    """The same module as far as `CapabilitiesReply` tells: what it has, and what it may hold."""
    return (
        one.capacity == other.capacity
        and one.arch == other.arch
        and one.labels == other.labels
        and one.runtimes == other.runtimes
    )


def why_not(cnm: Cnm) -> str:
    """Why it takes nothing new; "" if it does."""
    if cnm.quarantine:
        return f"quarantined: {cnm.quarantine}"
    if cnm.draining:
        return "draining"
    if not cnm.schedulable:
        return f"state {cnm.state.value}"
    return ""
