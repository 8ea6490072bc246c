"""CXL memory as a window: a region is made by hand, through sysfs alone, and mapped.

A machine of its own: a region needs cxl_pmem, which keeps the labels to itself. Linux 6.1 makes
regions of persistent memory only; such a region is an NVDIMM to the kernel, and its memory is
mapped through a device-dax over a namespace. Ref: Documentation/ABI/testing/sysfs-bus-cxl and
Documentation/driver-api/nvdimm/nvdimm.rst of Linux 6.1.
"""

import time
from pathlib import Path
from typing import Any, Final

from hal.cxl_ports import Claimed, CxlRegion
from hal.errors import Unavailable
from hal.linux.cxl_sysfs import DEVICES, LinuxCxlBus, memdev_at
from hal.registry import Registry
from hal.registry import World as Openers
from protocol.cxl.codes import Opcode
from protocol.cxl.memory import SetLsaRequest
from tests.contract.worlds import RealWorld
from tests.hil.case import Context, Evidence, case
from tests.hil.cases.cxl import Mailbox, prepare
from tests.hil.machines import device, memory
from tools.rig.qemu import Machine

ND: Final = Path("/sys/bus/nd/devices")
SIZE: Final = 256 << 20
REGION_UUID: Final = "0f1e2d3c-4b5a-4697-8877-665544332211"
NAMESPACE_UUID: Final = "1f1e2d3c-4b5a-4697-8877-665544332211"
DAX_UUID: Final = "2f1e2d3c-4b5a-4697-8877-665544332211"

CXL_REGION: Final = Machine(
    name="cxl-region",
    memory_mib=1024,
    properties="cxl=on,cxl-fmw.0.targets.0=cxl.1,cxl-fmw.0.size=4G",
    options=(
        *memory("cxlmem", "256M"),
        *memory("cxllabels", "1M"),
        *device("pxb-cxl,id=cxl.1,bus_nr=52"),
        *device("cxl-rp,id=cxlport,bus=cxl.1,port=0,chassis=0,slot=20"),
        # With one port the kernel takes a host bridge to pass everything through, as the
        # specification says; QEMU 7.2's wants its decoder set (it learnt better in 8.0).
        *device("cxl-rp,id=cxlport2,bus=cxl.1,port=1,chassis=0,slot=21"),
        *device("cxl-type3,id=cxl0,bus=cxlport,memdev=cxlmem,lsa=cxllabels"),
    ),
)


def write(path: Path, text: str) -> None:
    """Sysfs: one line in one write. AssertionError names the attribute that the kernel refused."""
    try:
        path.write_text(text + "\n")
    except OSError as exc:
        raise AssertionError(f"writing {text!r} to {path}: {exc}") from exc


def make_region() -> CxlRegion:
    """All of the device's memory in one region, its decoders committed."""
    decoders = LinuxCxlBus().scan().decoders
    [root] = [DEVICES / found.name for found in decoders if found.kind == "root"]
    [end] = [DEVICES / found.name for found in decoders if found.kind == "endpoint"]
    name = (root / "create_pmem_region").read_text().strip()
    write(root / "create_pmem_region", name)
    write(end / "mode", "pmem")
    write(end / "dpa_size", hex(SIZE))
    region = DEVICES / name
    write(region / "uuid", REGION_UUID)
    write(region / "interleave_ways", "1")
    write(region / "interleave_granularity", "256")
    write(region / "size", hex(SIZE))
    write(region / "target0", end.name)
    write(region / "commit", "1")
    write(Path("/sys/bus/cxl/drivers/cxl_region/bind"), name)
    [found] = LinuxCxlBus().scan().regions
    return found


def make_dax(ctx: Context) -> None:
    """A namespace over the whole region, and a device-dax over it, its pages described in the
    host's own memory."""
    ctx.wait(lambda: list(ND.glob("namespace*")), "the region's namespace")
    [namespace] = sorted(ND.glob("namespace*"))
    write(namespace / "uuid", NAMESPACE_UUID)
    region = namespace.resolve().parent
    write(namespace / "size", (region / "available_size").read_text().strip())
    seed = ND / (region / "dax_seed").read_text().strip()
    write(seed / "uuid", DAX_UUID)
    write(seed / "mode", "ram")
    write(seed / "namespace", namespace.name)
    write(Path("/sys/bus/nd/drivers/dax_pmem/bind"), seed.name)
    ctx.wait(lambda: list(Path("/dev").glob("dax*")), "the dax device's file")


def labels_are_claimed(address: str) -> str:
    """What a write to the labels gives while the kernel uses them: nothing is written."""
    mailbox = Mailbox(address)
    try:
        request = SetLsaRequest(offset=0, data=b"ours").to_bytes()
        mailbox.good(Opcode.SET_LSA, request)
    except Claimed as exc:
        return str(exc)
    finally:
        mailbox.close()
    raise AssertionError("labels were written under cxl_pmem's feet")


@case(on=CXL_REGION, deadline_s=180)
def a_cxl_region_carries_a_window(ctx: Context) -> Evidence:
    address = prepare(ctx)
    for module in ("cxl_pmem", "libnvdimm", "nd_pmem", "dax_pmem", "device_dax"):
        ctx.modprobe(module)
    region = make_region()
    claimed = labels_are_claimed(address)
    assert (region.size_bytes, region.committed) == (SIZE, True)
    why = ""
    try:
        LinuxCxlBus().map_region(region.name, "a")
    except Unavailable as exc:
        why = str(exc)
    assert "no dax device" in why
    make_dax(ctx)
    world = RealWorld()
    registry = Registry(Openers(reactor=world.reactor))
    numbers: dict[str, Any] = {"region": region.name, "size_bytes": region.size_bytes}
    try:
        a, bell_a = registry.open_shared_window(f"cxl:{region.name}?side=a")
        b, bell_b = registry.open_shared_window(f"cxl:{region.name}?side=b")
        data = bytes(range(256)) * 64
        began = time.monotonic()
        a.write(4096, data)
        a.publish(0, 7)
        assert b.acquire(0) == 7
        assert bytes(b.read(4096, len(data))) == data
        b.write(0, data[::-1])
        assert bytes(a.read(0, len(data))) == data[::-1]
        numbers |= {"copied_bytes": 2 * len(data), "ms": int((time.monotonic() - began) * 1000)}
        for item in (bell_a, bell_b, a, b):
            item.close()
    finally:
        world.close()
    [found] = LinuxCxlBus().scan().regions
    numbers |= {"dax": " ".join(found.dax), "labels": claimed}
    return Evidence(
        driver="cxl_region, cxl_pmem, dax_pmem",
        device=f"{memdev_at(address)} at {address}",
        numbers=numbers,
    )
