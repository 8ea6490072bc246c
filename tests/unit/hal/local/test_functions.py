"""Descriptors of PCI functions that the keeper holds; /dev/null stands for the kernel's files."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from firmware.loop import Loop
from hal.errors import HalError, PeerGone, Refused, Unavailable
from hal.linux.clock import LinuxClock
from hal.linux.vfio_group import VfioFds
from hal.local import functions
from hal.local.client import KeeperReply
from hal.local.functions import HELD_LIMIT, HeldFunctions, fds_of
from hal.pci_ports import PciAddress

FIRST, SECOND, OTHER = (PciAddress(0, 3, 0, 0), PciAddress(0, 3, 0, 1), PciAddress(0, 4, 0, 0))
GROUPS = {FIRST: 7, SECOND: 7, OTHER: 8}


def null() -> int:
    return os.open("/dev/null", os.O_RDONLY)


class Bench:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clock = LinuxClock()
        self.loop = Loop(self.clock)
        self.held = HeldFunctions(self.loop)
        self.opened: list[PciAddress] = []
        monkeypatch.setattr(functions, "group_of", lambda address, _places: GROUPS[address])
        monkeypatch.setattr(functions, "open_fds", self._open)
        monkeypatch.setattr(functions, "open_device", lambda _group, address: self._fd(address))

    def _fd(self, address: PciAddress) -> int:
        self.opened.append(address)
        return null()

    def _open(self, address: PciAddress, _places: object) -> VfioFds:
        if address == OTHER:
            raise Unavailable("bound to nvme")
        return VfioFds(
            group=GROUPS[address],
            container_fd=null(),
            group_fd=null(),
            device_fd=self._fd(address),
            iommu=3,
        )

    def ask(self, address: PciAddress) -> VfioFds:
        got: list[VfioFds | HalError] = []
        self.held.submit_fds(address, lambda found: (got.append(found), self.loop.stop()))
        self.loop.run()
        [found] = got
        if isinstance(found, HalError):
            raise found
        return found


def is_open(fd: int) -> bool:
    return Path(f"/proc/self/fd/{fd}").exists()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    made = Bench(monkeypatch)
    yield made
    made.held.close()
    made.loop.close()
    made.clock.close()


def test_a_function_is_opened_once_and_given_each_time(bench: Bench) -> None:
    first = bench.ask(FIRST)
    assert bench.ask(FIRST) is first
    assert bench.opened == [FIRST]
    assert bench.held.addresses == ["0000:03:00.0"]
    bench.held.close()
    assert not any(map(is_open, (first.device_fd, first.group_fd, first.container_fd)))


def test_functions_of_one_group_share_it_until_the_last_goes(bench: Bench) -> None:
    first, second = bench.ask(FIRST), bench.ask(SECOND)
    assert (first.group_fd, first.container_fd) == (second.group_fd, second.container_fd)
    assert first.device_fd != second.device_fd
    bench.held.release(FIRST)
    assert not is_open(first.device_fd)
    assert is_open(second.group_fd)
    bench.held.release(SECOND)
    bench.held.release(SECOND)
    assert not any(map(is_open, (second.group_fd, second.container_fd, second.device_fd)))


def test_what_can_not_be_opened_is_not_held(bench: Bench) -> None:
    with pytest.raises(Unavailable, match="nvme"):
        bench.ask(OTHER)
    assert bench.held.addresses == []


def test_no_more_than_so_many_are_held(bench: Bench) -> None:
    fds = VfioFds(group=1, container_fd=-1, group_fd=-1, device_fd=-1, iommu=3)
    bench.held._held = {PciAddress(1, n, 0, 0): fds for n in range(HELD_LIMIT)}
    with pytest.raises(Refused, match="held already"):
        bench.ask(FIRST)
    bench.held._held = {}


def test_an_answer_that_is_none_is_told_and_its_descriptors_closed() -> None:
    fds = (null(), null())
    with pytest.raises(PeerGone, match="gave 2 descriptors"):
        fds_of(KeeperReply(result={"group": 7, "iommu": 3}, fds=fds))
    assert not any(map(is_open, fds))
    with pytest.raises(PeerGone):
        fds_of(KeeperReply(result={"group": "7"}, fds=()))
    good = fds_of(KeeperReply(result={"group": 7, "iommu": 3}, fds=(1, 2, 3)))
    assert (good.container_fd, good.group_fd, good.device_fd, good.iommu) == (1, 2, 3, 3)
