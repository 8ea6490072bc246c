"""VFIO without a device: layouts against a compiler's, capability chains, and what is missing."""

import errno
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.loop import Loop
from hal.errors import Absent, Refused, StoreFull, Unavailable
from hal.linux import _vfio_cdef as vfio
from hal.linux import vfio_group, vfio_iommu
from hal.linux.clock import LinuxClock
from hal.linux.vfio import VfioHost
from hal.linux.vfio_group import Places, group_of, members, open_fds
from hal.pci_ports import PciAddress

EDU = PciAddress.parse("0000:03:00.0")
STRUCTS = {  # ours -> the kernel's
    name: name
    for name in (
        "vfio_info_cap_header", "vfio_group_status", "vfio_device_info", "vfio_region_info",
        "vfio_irq_info", "vfio_irq_set", "vfio_pci_dependent_device", "vfio_pci_hot_reset_info",
        "vfio_pci_hot_reset", "vfio_iommu_type1_info", "vfio_iova_range",
        "vfio_iommu_type1_info_cap_iova_range", "vfio_iommu_type1_dma_map",
        "vfio_iommu_type1_dma_unmap",
    )
}  # fmt: skip
NUMBERS = {
    "VFIO_GET_API_VERSION": vfio.VFIO_GET_API_VERSION,
    "VFIO_CHECK_EXTENSION": vfio.VFIO_CHECK_EXTENSION,
    "VFIO_SET_IOMMU": vfio.VFIO_SET_IOMMU,
    "VFIO_GROUP_GET_STATUS": vfio.VFIO_GROUP_GET_STATUS,
    "VFIO_GROUP_SET_CONTAINER": vfio.VFIO_GROUP_SET_CONTAINER,
    "VFIO_GROUP_GET_DEVICE_FD": vfio.VFIO_GROUP_GET_DEVICE_FD,
    "VFIO_DEVICE_GET_INFO": vfio.VFIO_DEVICE_GET_INFO,
    "VFIO_DEVICE_GET_REGION_INFO": vfio.VFIO_DEVICE_GET_REGION_INFO,
    "VFIO_DEVICE_GET_IRQ_INFO": vfio.VFIO_DEVICE_GET_IRQ_INFO,
    "VFIO_DEVICE_SET_IRQS": vfio.VFIO_DEVICE_SET_IRQS,
    "VFIO_DEVICE_RESET": vfio.VFIO_DEVICE_RESET,
    "VFIO_DEVICE_GET_PCI_HOT_RESET_INFO": vfio.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO,
    "VFIO_DEVICE_PCI_HOT_RESET": vfio.VFIO_DEVICE_PCI_HOT_RESET,
    "VFIO_IOMMU_GET_INFO": vfio.VFIO_IOMMU_GET_INFO,
    "VFIO_IOMMU_MAP_DMA": vfio.VFIO_IOMMU_MAP_DMA,
    "VFIO_IOMMU_UNMAP_DMA": vfio.VFIO_IOMMU_UNMAP_DMA,
    "VFIO_TYPE1_IOMMU": vfio.TYPE1_IOMMU,
    "VFIO_TYPE1v2_IOMMU": vfio.TYPE1V2_IOMMU,
    "VFIO_UNMAP_ALL": vfio.UNMAP_ALL,
    "VFIO_GROUP_FLAGS_VIABLE": vfio.GROUP_FLAGS_VIABLE,
    "VFIO_DEVICE_FLAGS_RESET": vfio.DEVICE_FLAGS_RESET,
    "VFIO_DEVICE_FLAGS_PCI": vfio.DEVICE_FLAGS_PCI,
    "VFIO_REGION_INFO_FLAG_MMAP": vfio.REGION_FLAG_MMAP,
    "VFIO_REGION_INFO_FLAG_CAPS": vfio.REGION_FLAG_CAPS,
    "VFIO_REGION_INFO_CAP_SPARSE_MMAP": vfio.REGION_CAP_SPARSE_MMAP,
    "VFIO_PCI_ROM_REGION_INDEX": vfio.PCI_ROM_REGION,
    "VFIO_PCI_CONFIG_REGION_INDEX": vfio.PCI_CONFIG_REGION,
    "VFIO_IRQ_INFO_EVENTFD": vfio.IRQ_INFO_EVENTFD,
    "VFIO_IRQ_SET_DATA_NONE": vfio.IRQ_SET_DATA_NONE,
    "VFIO_IRQ_SET_DATA_EVENTFD": vfio.IRQ_SET_DATA_EVENTFD,
    "VFIO_IRQ_SET_ACTION_MASK": vfio.IRQ_SET_ACTION_MASK,
    "VFIO_IRQ_SET_ACTION_UNMASK": vfio.IRQ_SET_ACTION_UNMASK,
    "VFIO_IRQ_SET_ACTION_TRIGGER": vfio.IRQ_SET_ACTION_TRIGGER,
    "VFIO_PCI_INTX_IRQ_INDEX": vfio.PCI_INTX_IRQ,
    "VFIO_PCI_MSI_IRQ_INDEX": vfio.PCI_MSI_IRQ,
    "VFIO_PCI_MSIX_IRQ_INDEX": vfio.PCI_MSIX_IRQ,
    "VFIO_PCI_ERR_IRQ_INDEX": vfio.PCI_ERR_IRQ,
    "VFIO_PCI_REQ_IRQ_INDEX": vfio.PCI_REQ_IRQ,
    "VFIO_IOMMU_INFO_PGSIZES": vfio.IOMMU_INFO_PGSIZES,
    "VFIO_IOMMU_INFO_CAPS": vfio.IOMMU_INFO_CAPS,
    "VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE": vfio.TYPE1_INFO_CAP_IOVA_RANGE,
    "VFIO_DMA_MAP_FLAG_READ": vfio.DMA_MAP_FLAG_READ,
    "VFIO_DMA_MAP_FLAG_WRITE": vfio.DMA_MAP_FLAG_WRITE,
    "VFIO_DMA_UNMAP_FLAG_ALL": vfio.DMA_UNMAP_FLAG_ALL,
}


def test_layouts_and_numbers_are_the_kernels(tmp_path: Path) -> None:
    compiler = shutil.which("gcc")
    if compiler is None or not Path("/usr/include/linux/vfio.h").exists():
        pytest.skip("no compiler, or no <linux/vfio.h> (linux-libc-dev)")
    lines = [
        f'printf("{name} %zu\\n", __builtin_offsetof(struct {name}, {field}));'
        for name in STRUCTS
        for field, _ in vfio.ffi.typeof(f"struct {name}").fields
    ]
    lines += [f'printf("{name} %zu\\n", sizeof(struct {name}));' for name in STRUCTS]
    lines += [f'printf("{name} %zu\\n", (size_t){name});' for name in NUMBERS]
    program = "#include <stdio.h>\n#include <linux/vfio.h>\nint main(void) {\n%s\nreturn 0; }\n"
    (tmp_path / "layout.c").write_text(program % "\n".join(lines))
    subprocess.run([compiler, "-o", "layout", "layout.c"], cwd=tmp_path, check=True, timeout=60)
    theirs = subprocess.run(
        [tmp_path / "layout"], capture_output=True, text=True, check=True, timeout=10
    ).stdout.splitlines()
    ours = [
        f"{name} {vfio.ffi.offsetof(f'struct {name}', field)}"
        for name in STRUCTS
        for field, _ in vfio.ffi.typeof(f"struct {name}").fields
    ]
    ours += [f"{name} {vfio.ffi.sizeof(f'struct {name}')}" for name in STRUCTS]
    ours += [f"{name} {value}" for name, value in NUMBERS.items()]
    assert ours == theirs


def test_capabilities_are_found_along_their_chain() -> None:
    reply = bytearray(64)
    struct.pack_into("<HHI", reply, 24, 7, 1, 40)
    struct.pack_into("<HHI", reply, 40, 9, 1, 0)
    found = vfio.capabilities(bytes(reply), 24)
    assert sorted(found) == [7, 9]
    assert found[9] == bytes(reply[40:])
    assert vfio.capabilities(bytes(reply), 0) == {}
    struct.pack_into("<HHI", reply, 40, 9, 1, 24)  # round in a circle
    assert sorted(vfio.capabilities(bytes(reply), 24)) == [7, 9]


@given(st.binary(max_size=100), st.integers(0, 1 << 32))
def test_a_chain_of_any_bytes_ends(reply: bytes, offset: int) -> None:
    for held in vfio.capabilities(reply, offset).values():
        assert len(held) <= len(reply)


def test_the_ranges_of_an_iommu_are_read_and_no_more_than_are_there() -> None:
    held = struct.pack("<HHIII4Q", 1, 1, 0, 2, 0, 0, 0xFEDF_FFFF, 0xFEF0_0000, (1 << 39) - 1)
    assert vfio_iommu._ranges({1: held}) == [(0, 0xFEDF_FFFF), (0xFEF0_0000, (1 << 39) - 1)]
    assert vfio_iommu._ranges({1: held[:-16]}) == [(0, 0xFEDF_FFFF)]
    assert vfio_iommu._ranges({1: held[:4]}) == []
    assert vfio_iommu._ranges({}) == []


def test_too_little_memory_that_may_be_pinned_is_said_with_its_limit() -> None:
    error = vfio_iommu._map_error(OSError(errno.ENOMEM, "x"), 0x10000, 4096)
    assert isinstance(error, StoreFull)
    assert "RLIMIT_MEMLOCK" in str(error)
    assert isinstance(vfio_iommu._map_error(OSError(errno.ENOSPC, "x"), 0, 0), StoreFull)
    assert isinstance(vfio_iommu._map_error(OSError(errno.EINVAL, "x"), 0, 0), Refused)


# --- what is missing on the way ---


@pytest.fixture
def places(tmp_path: Path) -> Places:
    found = Places(sys=tmp_path / "sys", dev=tmp_path / "dev")
    found.device(EDU).mkdir(parents=True)
    (found.dev / "vfio").mkdir(parents=True)
    return found


def in_group(places: Places, address: PciAddress, driver: str, group: int = 13) -> None:
    device = places.device(address)
    device.mkdir(parents=True, exist_ok=True)
    folder = places.sys / "kernel/iommu_groups" / str(group)
    (folder / "devices").mkdir(parents=True, exist_ok=True)
    (folder / "devices" / str(address)).symlink_to(device)
    (device / "iommu_group").symlink_to(folder)
    if driver:
        (places.sys / "bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
        (device / "driver").symlink_to(places.sys / "bus/pci/drivers" / driver)


def test_no_such_function(places: Places) -> None:
    with pytest.raises(Absent, match="no such PCI function"):
        group_of(PciAddress(0, 9, 9, 0), places)


def test_no_iommu(places: Places) -> None:
    with pytest.raises(Unavailable, match="intel_iommu=on"):
        group_of(EDU, places)
    (places.sys / "class/iommu/dmar0").mkdir(parents=True)
    with pytest.raises(Unavailable, match="no IOMMU unit covers it"):
        group_of(EDU, places)


@pytest.mark.parametrize(("driver", "words"), [("nvme", "bound to nvme"), ("", "to no driver")])
def test_another_driver(places: Places, driver: str, words: str) -> None:
    in_group(places, EDU, driver)
    with pytest.raises(Unavailable, match=words):
        group_of(EDU, places)


def test_no_vfio_in_the_kernel(places: Places) -> None:
    in_group(places, EDU, "vfio-pci")
    assert group_of(EDU, places) == 13
    with pytest.raises(Unavailable, match="modprobe vfio-pci"):
        open_fds(EDU, places)


def test_no_permission(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    in_group(places, EDU, "vfio-pci")

    def refuse(*_args: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(vfio_group.os, "open", refuse)
    with pytest.raises(Unavailable, match=f"denied for uid {os.geteuid()}"):
        open_fds(EDU, places)


def test_a_group_that_somebody_has_open(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> int:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(vfio_group.os, "open", refuse)
    with pytest.raises(Unavailable, match="another process drives this IOMMU group"):
        vfio_group._open_group(13, EDU, places)


def test_a_group_without_an_iommu_is_not_used(places: Places) -> None:
    (places.dev / "vfio/noiommu-13").write_text("")
    with pytest.raises(Unavailable, match="could reach all memory"):
        vfio_group._open_group(13, EDU, places)


def test_a_group_that_is_not_viable_names_who_spoils_it(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_group(places, EDU, "vfio-pci")
    in_group(places, PciAddress(0, 3, 1, 0), "ahci")
    in_group(places, PciAddress(0, 3, 2, 0), "")
    in_group(places, PciAddress(0, 3, 3, 0), "pcieport")
    assert len(members(13, places)) == 4
    monkeypatch.setattr(vfio_group.vfio, "call", lambda *_args: 0)  # the status: not viable
    with pytest.raises(Unavailable, match=r"drives 0000:03:01\.0 \(ahci\); bind all"):
        vfio_group._check_viable(13, 99, EDU, places)


def test_interrupt_remapping_that_is_off(places: Places) -> None:
    parameter = places.sys / "module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
    parameter.parent.mkdir(parents=True)
    parameter.write_text("N\n")
    error = vfio_group._set_iommu_error(OSError(errno.EPERM, "x"), EDU, places)
    assert "interrupt remapping is off" in str(error)
    assert "allow_unsafe_interrupts is N" in str(error)
    assert "remapping" not in str(vfio_group._set_iommu_error(OSError(5, "I/O"), EDU, places))


def test_a_host_opens_nothing_and_leaks_nothing_when_something_is_missing(places: Places) -> None:
    clock = LinuxClock()
    loop = Loop(clock)
    host = VfioHost(loop, places=places)
    in_group(places, EDU, "vfio-pci")
    (places.dev / "vfio/vfio").write_text("")  # opens, and is no container
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(Unavailable):
        host.open(EDU)
    assert len(os.listdir("/proc/self/fd")) == before
    assert host.group_fds() == {}
    loop.close()
    clock.close()
