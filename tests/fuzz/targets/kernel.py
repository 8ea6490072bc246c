"""What a kernel says: uevents, sysfs of PCI and CXL, replies of VFIO's and CXL's calls."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from hal.errors import HalError, Refused, Unavailable
from hal.linux import (
    _vfio_cdef,
    cxl_ioctl,
    cxl_sysfs,
    pci_sysfs,
    pci_window,
    vfio_irq,
    vfio_region,
    vfio_reset,
)
from hal.linux.cxl_sysfs import LinuxCxlBus
from hal.linux.uevents import parse_uevent
from hal.linux.vfio_iommu import Type1Space
from hal.pci_ports import PciAddress
from tests.fuzz.reader import Reader
from tests.fuzz.target import Check, Target

UEVENT: Final = (
    b"change@/devices/pci0000:00/0000:00:1c.3/0000:04:00.0\0ACTION=change\0"
    b"DEVPATH=/devices/pci0000:00/0000:00:1c.3/0000:04:00.0\0SUBSYSTEM=pci\0"
    b"ERROR_EVENT=BEGIN_RECOVERY\0DEVICE_ONLINE=0\0PCI_SLOT_NAME=0000:04:00.0\0SEQNUM=2113\0"
)


def uevent(_scratch: Path) -> Check:
    def check(data: bytes) -> bool:
        found = parse_uevent(data)
        if found is None:
            return False
        assert found.action
        assert found.path.startswith("/")
        assert found.values["ACTION"] == found.action
        texts = [f"{found.action}@{found.path}", *(f"{k}={v}" for k, v in found.values.items())]
        assert parse_uevent("\0".join(texts).encode() + b"\0") == found
        try:
            address = PciAddress.parse(found.values.get("PCI_SLOT_NAME", ""))
        except Refused:
            return True
        assert PciAddress.parse(str(address)) == address
        return True

    return check


class Played:
    """Stands for the module `fcntl`: a kernel whose replies are bytes of the input."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def ioctl(self, _fd: int, _request: int, reply: Any, _mutate: bool = True) -> int:
        room = memoryview(reply)
        data = self._reader.take(min(len(room), self._reader.number(2)))
        room[: len(data)] = data
        return 0


@contextmanager
def played(reader: Reader, *modules: Any) -> Iterator[None]:
    """These modules' calls go to that kernel."""
    before = [module.fcntl for module in modules]
    for module in modules:
        module.fcntl = Played(reader)
    try:
        yield
    finally:
        for module, real in zip(modules, before, strict=True):
            module.fcntl = real


def vfio(_scratch: Path) -> Check:
    """Replies with chains of capabilities, and lists that say how long they are."""

    def check(data: bytes) -> bool:
        reader, good = Reader(data), False
        kind = reader.byte() % 5
        if kind == 0:
            offset, reply = reader.number(2), reader.rest()
            found = _vfio_cdef.capabilities(reply, offset)
            assert all(reply.endswith(chain) for chain in found.values())
            return bool(found)
        with played(reader, _vfio_cdef, vfio_reset):
            try:
                good = _VFIO[kind - 1]()
            except HalError as exc:
                str(exc).encode()
        return good

    return check


def _region() -> bool:
    info = vfio_region.region_info(3, 0)
    if info is None:
        return False
    assert info.region.size_bytes > 0
    try:
        assert vfio_region.check_bar("BAR 0", info, 4096).region.size_bytes >= 4096
    except Unavailable:
        return True
    return True


def _container() -> bool:
    space = Type1Space(-1, 3)
    page = space.page_bytes
    assert page & (page - 1) == 0
    for first, last in space.iova.ranges:
        assert 0 <= first <= last < 1 << 64
    iova = space.iova.allocate(page)
    assert iova % page == 0
    space.iova.free(iova)
    return True


def _bus() -> bool:
    found = vfio_reset._hot_reset_info(3)
    assert len(found) <= 256
    return all(str(PciAddress.parse(at)) == at for _group, at in found)


def _vectors() -> bool:
    return vfio_irq.irq_count(3, 2) > 0


_VFIO: Final[tuple[Callable[[], bool], ...]] = (_region, _container, _bus, _vectors)


def cxl_call(_scratch: Path) -> Check:
    """Answers of a CXL memory device's two calls."""

    def check(data: bytes) -> bool:
        reader = Reader(data)
        room = reader.byte()
        with played(reader, cxl_ioctl):
            known = cxl_ioctl.query(3)
            assert len(known) <= cxl_ioctl.QUERY_LIMIT
            assert 0 not in known
            reply = cxl_ioctl.send(3, 2, 0x4000, b"in", room)
        assert len(reply.payload) <= room
        return bool(known) and reply.return_code == 0

    return check


class Files:
    """A tree of small files, some of them written over by an input and put back after it."""

    def __init__(self, top: Path, files: dict[str, str]) -> None:
        self.top, self._good = top, files
        for name, text in files.items():
            path = top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text + "\n")
        self._names = list(files)
        self._changed: set[str] = set()

    def change(self, reader: Reader) -> None:
        """What the last input wrote is as it was; what this one says is written."""
        for name in self._changed:
            (self.top / name).write_text(self._good[name] + "\n")
        self._changed.clear()
        while reader.left:
            name = reader.choice(self._names)
            kind = reader.byte() % 4
            data = reader.piece() if kind else _ODD[reader.byte() % len(_ODD)]
            if kind == 1:
                data = self._good[name].encode() + data
            (self.top / name).write_bytes(data)
            self._changed.add(name)


_ODD: Final = (
    *(b"", b"\n", b"-1", b"0x", b"0xffffffffffffffff", b"(null)", b"\xff\xfe", b"0x1_0", b"1_0"),
    *(b"9" * 5000, b"0x" + b"f" * 4000, b"\xd9\xa3", b"\0", b" 1 2", b"0b11", b"1e3", b"255"),
)
PORT, DRIVE = "0000:00:1c.3", "0000:04:00.0"
_RESOURCE: Final = (
    "0x00000000fe200000 0x00000000fe203fff 0x0000000000142204\n"
    "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
    "0x0000000000004000 0x000000000000401f 0x0000000000040101"
)
_PCI_FILES: Final = {
    **{
        f"devices/pci0000:00/{PORT}/{DRIVE}/{name}": text
        for name, text in {
            "vendor": "0x1b36",
            "device": "0x0010",
            "class": "0x010802",
            "subsystem_vendor": "0x1af4",
            "subsystem_device": "0x1100",
            "revision": "0x02",
            "numa_node": "1",
            "current_link_speed": "32.0 GT/s PCIe",
            "current_link_width": "4",
            "max_link_speed": "32.0 GT/s PCIe",
            "max_link_width": "4",
            "resource": _RESOURCE,
            "aer_dev_correctable": "RxErr 1\nBadTLP 2\nTOTAL_ERR_COR 3",
            "aer_dev_nonfatal": "DLP 0\nTOTAL_ERR_NONFATAL 4",
            "aer_dev_fatal": "TOTAL_ERR_FATAL 5",
        }.items()
    },
    **{
        f"bus/pci/slots/4/{name}": text
        for name, text in {
            "address": "0000:04:00",
            "power": "1",
            "adapter": "1",
            "cur_bus_speed": "32.0 GT/s PCIe",
        }.items()
    },
}


def pci_texts(scratch: Path) -> Check:
    """Attributes of a function and of a slot."""
    files = Files(scratch / "sys", _PCI_FILES)
    (files.top / "bus/pci/devices").mkdir(parents=True)
    real = files.top / "devices/pci0000:00" / PORT / DRIVE
    (files.top / "bus/pci/devices" / DRIVE).symlink_to(real)

    def check(data: bytes) -> bool:
        files.change(Reader(data))
        found, slots = pci_sysfs.scan(files.top), pci_sysfs.slots_of(files.top)
        for device in found:
            assert str(device.parent) == PORT
            assert len(device.bar_bytes) <= 6
            assert all(size >= 0 for size in device.bar_bytes)
            numbers = [device.vendor_id, device.device_id, device.class_code, device.revision]
            assert min(numbers) >= 0, "a kernel has no negative ids"
            assert device.link is None or min(dataclasses.astuple(device.link)) >= 0
        for index in range(3):
            try:
                start, size, flags = pci_window.bar_of(real, index)
            except Unavailable:
                continue
            assert min(start, size, flags) >= 0
        return bool(found) and bool(slots)

    return check


_CXL_FILES: Final = {
    "tree/root0/decoder0.0/start": "0x390000000",
    "tree/root0/decoder0.0/size": "0x10000000",
    "tree/root0/decoder0.0/interleave_ways": "1",
    "tree/root0/decoder0.0/interleave_granularity": "256",
    "tree/root0/decoder0.0/cap_ram": "1",
    "tree/root0/decoder0.0/cap_pmem": "0",
    "tree/root0/decoder0.0/region0/resource": "0x390000000",
    "tree/root0/decoder0.0/region0/size": "0x10000000",
    "tree/root0/decoder0.0/region0/mode": "ram",
    "tree/root0/decoder0.0/region0/uuid": "00000000-0000-0000-0000-000000000000",
    "tree/root0/decoder0.0/region0/commit": "1",
    "tree/0000:35:00.0/mem0/serial": "0x123",
    "tree/0000:35:00.0/mem0/firmware_version": "BWFW VERSION 00",
    "tree/0000:35:00.0/mem0/payload_max": "2048",
    "tree/0000:35:00.0/mem0/label_storage_size": "131072",
    "tree/0000:35:00.0/mem0/ram/size": "0x0",
    "tree/0000:35:00.0/mem0/pmem/size": "0x10000000",
    "tree/0000:35:00.0/mem0/numa_node": "0",
    "dax/dax0.0/resource": "0x390000000",
}
_CXL_LINKS: Final = (
    *("root0", "root0/decoder0.0", "root0/decoder0.0/region0", "0000:35:00.0/mem0"),
)


def cxl_texts(scratch: Path) -> Check:
    """Attributes of a memory device, a decoder, a region and a dax device."""
    files = Files(scratch / "cxl", _CXL_FILES)
    devices = files.top / "devices"
    devices.mkdir()
    for name in _CXL_LINKS:
        (devices / Path(name).name).symlink_to(files.top / "tree" / name)
    bus = LinuxCxlBus(devices=devices, dax=files.top / "dax")

    def check(data: bytes) -> bool:
        files.change(Reader(data))
        found = bus.scan()
        [memdev], [decoder], [region] = found.memdevs, found.decoders, found.regions
        sizes = [memdev.payload_max_bytes, memdev.volatile_bytes, memdev.persistent_bytes]
        assert min(*sizes, memdev.label_bytes, decoder.size_bytes, region.size_bytes) >= 0
        assert memdev.payload_max_bytes > 0
        assert decoder.port == "root0"
        assert cxl_sysfs.memdev_at("0000:35:00.0", devices) == "mem0"
        return bool(region.dax) and memdev.serial is not None

    return check


def _vfio_seeds() -> Iterable[bytes]:
    cap = b"\x01\0\x01\0"
    yield b"\0\x08\0" + bytes(8) + cap + b"\x18\0\0\0" + bytes(8) + b"\x02\0\x01\0\0\0\0\0"
    yield b"\0\x04\0" + bytes(4) + cap + b"\x04\0\0\0" + bytes(8)
    region = _reply("vfio_region_info", flags=7, size=65536, offset=1 << 40)
    yield b"\1" + _said(region)
    head = _reply("vfio_region_info", flags=15, size=65536, cap_offset=32)[4:]
    more = b"\x38\0\0\0" + head + cap + b"\0\0\0\0" + bytes(16)
    yield b"\1" + _said(more[:32]) + _said(more)
    info = _reply("vfio_iommu_type1_info", flags=1, iova_pgsizes=0xFFFFF000)
    yield b"\2" + _said(info)
    size = _vfio_cdef.ffi.sizeof("struct vfio_iommu_type1_info")
    reply = bytearray(_reply("vfio_iommu_type1_info", flags=3, iova_pgsizes=4096, cap_offset=size))
    reply += cap + bytes(4) + b"\x02\0\0\0\0\0\0\0"
    for first, last in ((0, 0xFEDFFFFF), (0xFEF00000, (1 << 39) - 1)):
        reply += first.to_bytes(8, "little") + last.to_bytes(8, "little")
    reply[:4] = len(reply).to_bytes(4, "little")
    yield b"\2" + _said(bytes(reply[:size])) + _said(bytes(reply))
    yield b"\3" + _said(b"\x40\0\0\0\0\0\0\0\x02\0\0\0" + bytes(range(16)))
    yield b"\4" + _said(b"\x10\0\0\0\x01\0\0\0\x02\0\0\0\x20\0\0\0")


def _reply(name: str, **values: int) -> bytes:
    return bytes(_vfio_cdef.ffi.buffer(_vfio_cdef.struct(name, **values)))


def _said(data: bytes) -> bytes:
    return len(data).to_bytes(2, "little") + data


def _cxl_seeds() -> Iterable[bytes]:
    head = cxl_ioctl.QUERY_HEAD.pack(3, 0)
    table = b"".join(cxl_ioctl.COMMAND_INFO.pack(n, 0, 0, 0xFFFFFFFF) for n in range(3))
    sent = cxl_ioctl.SEND.pack(2, 0, 0x4000, 0, 0, 2, 0, 0, 16, 0, 0)
    yield b"\x40" + _said(head) + _said(head + table) + _said(sent)
    yield b"\x04" + _said(cxl_ioctl.QUERY_HEAD.pack(0xFFFFFFFF, 0)) + _said(b"") + _said(sent)


def _file_seeds(count: int) -> Iterable[bytes]:
    yield b""
    for index in range(count):
        yield bytes([index, 0, index, (index + 7) % count, 0, index * 5 % len(_ODD)])
        yield bytes([index, 2, 4]) + b"0x12"
        yield bytes([index, 1, 2]) + b"\n7"


TARGETS = (
    Target(
        name="uevent",
        text="an announcement of the kernel's",
        make=uevent,
        seeds=lambda: [UEVENT, UEVENT.replace(b"change", b"add"), b"libudev\0\xfe\xed\xca\xfe"],
        words=(b"\0", b"=", b"@/", b"ACTION=", b"PCI_SLOT_NAME="),
        max_bytes=600,
    ),
    Target(
        name="vfio",
        text="replies of VFIO: capability chains, ranges of the IOMMU, dependent devices",
        make=vfio,
        seeds=_vfio_seeds,
        max_bytes=600,
    ),
    Target(
        name="cxl_call",
        text="answers of a CXL memory device's calls in the kernel",
        make=cxl_call,
        seeds=_cxl_seeds,
        max_bytes=600,
    ),
    Target(
        name="pci_texts",
        text="sysfs of PCI: attributes of a function and of a slot",
        make=pci_texts,
        seeds=lambda: _file_seeds(len(_PCI_FILES)),
        words=(b"0x", b"GT/s", b"TOTAL_ERR_COR ", b"0000:04:00"),
        max_bytes=400,
    ),
    Target(
        name="cxl_texts",
        text="sysfs of CXL: attributes of devices, decoders and regions",
        make=cxl_texts,
        seeds=lambda: _file_seeds(len(_CXL_FILES)),
        words=(b"0x", b"ram", b"-"),
        max_bytes=400,
    ),
)
