"""PCI functions that the keeper holds for the daemon (DESIGN D12): closing the last copy of a VFIO
device's descriptor disables the function and resets it, so a daemon that dies must not be the last.

The daemon asks for container, group and device, works on its copies (`VfioHost.adopt`), and says
when it is through with a function for good (`vfio_release`), which an orderly removal waits for.
"""

import os
from typing import Final

from hal.errors import HalError, PeerGone, Refused
from hal.linux.vfio import VfioFunction, VfioHost
from hal.linux.vfio_group import Places, VfioFds, group_of, open_device, open_fds
from hal.linux.workers import Check, Workers
from hal.local import wire
from hal.local.client import KeeperClient, KeeperReply
from hal.pci_ports import PciAddress
from hal.ports import Done, Reactor

HELD_LIMIT: Final = 64  # functions; a card has some per slot
OPEN_LIMIT_NS: Final = 30_000_000_000  # opening resets the function: up to a second and more


class HeldFunctions:
    """The keeper's copies. On its loop; opening runs on one worker."""

    def __init__(self, reactor: Reactor, *, places: Places = Places()) -> None:  # noqa: B008
        self._reactor, self._places = reactor, places
        self._held: dict[PciAddress, VfioFds] = {}
        self._workers: Workers | None = None

    @property
    def addresses(self) -> list[str]:
        return [str(address) for address in sorted(self._held)]

    def submit_fds(self, address: PciAddress, done: Done[VfioFds]) -> None:
        """The descriptors stay the keeper's; opened at the first asking. Raises Refused."""
        if address not in self._held and len(self._held) >= HELD_LIMIT:
            raise Refused(f"{address}: {HELD_LIMIT} PCI functions are held already")

        def job(_check: Check) -> VfioFds:
            return self._held.get(address) or self._open(address)

        def opened(result: VfioFds | HalError) -> None:
            if isinstance(result, VfioFds):
                self._held[address] = result
            done(result)

        if self._workers is None:
            self._workers = Workers(self._reactor, threads=1, waiting_limit=HELD_LIMIT)
        deadline_ns = self._reactor.now_ns() + OPEN_LIMIT_NS
        self._workers.submit(f"opening {address}", job, deadline_ns, opened)

    def release(self, address: PciAddress) -> None:
        """Let go of one; not held is a success."""
        found = self._held.pop(address, None)
        if found is None:
            return
        os.close(found.device_fd)
        if not any(other.group == found.group for other in self._held.values()):
            os.close(found.group_fd)
            os.close(found.container_fd)

    def close(self) -> None:
        """Let go of all: they are disabled and reset."""
        if self._workers is not None:
            self._workers.close()
        for address in list(self._held):
            self.release(address)

    def _open(self, address: PciAddress) -> VfioFds:
        """On the worker. A group that is open for another function of it is used again."""
        number = group_of(address, self._places)
        for fds in list(self._held.values()):
            if fds.group == number:
                return VfioFds(
                    group=number,
                    container_fd=fds.container_fd,
                    group_fd=fds.group_fd,
                    device_fd=open_device(fds.group_fd, address),
                    iommu=fds.iommu,
                )
        return open_fds(address, self._places)


def submit_open_function(
    client: KeeperClient,
    host: VfioHost,
    address: PciAddress,
    deadline_ns: int,
    done: Done[VfioFunction],
) -> None:
    """The daemon's end: a function on copies of the keeper's descriptors."""

    def replied(reply: KeeperReply | HalError) -> None:
        if isinstance(reply, HalError):
            done(reply)
            return
        try:
            made = host.adopt(address, fds_of(reply))
        except HalError as exc:
            done(exc)
            return
        done(made)

    client.request("vfio", {"address": str(address)}, deadline_ns, replied)


def submit_release_function(
    client: KeeperClient, address: PciAddress, deadline_ns: int, done: Done[None]
) -> None:
    """Have the keeper let go of a function that was closed here."""

    def replied(reply: KeeperReply | HalError) -> None:
        done(reply if isinstance(reply, HalError) else None)

    client.request("vfio_release", {"address": str(address)}, deadline_ns, replied)


def fds_of(reply: KeeperReply) -> VfioFds:
    """Raises PeerGone for an answer that is none."""
    group, iommu = reply.result.get("group"), reply.result.get("iommu")
    if len(reply.fds) != 3 or not isinstance(group, int) or not isinstance(iommu, int):
        wire.close_all(reply.fds)
        raise PeerGone(
            f"the keeper gave {len(reply.fds)} descriptors for a PCI function, wanted 3, in "
            f"{reply.result}"
        )
    container_fd, group_fd, device_fd = reply.fds
    return VfioFds(
        group=group,
        container_fd=container_fd,
        group_fd=group_fd,
        device_fd=device_fd,
        iommu=iommu,
    )
