"""The machines that cases run on. Few of them, as each is a boot: a new device goes into CARD
unless its presence disturbs others. A case that needs another one may define it in its module."""

from typing import Final

from tools.rig.qemu import Machine

# hot-plug by the port itself (pciehp), as on hardware, not by ACPI
NATIVE_HOTPLUG: Final = (
    "-global",
    "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
)


def device(text: str) -> tuple[str, str]:
    """One -device, on the root bus unless it names another: a machine with a second root (CXL)
    has no default one."""
    return ("-device", text if "bus=" in text else f"{text},bus=pcie.0")


def port(number: int, window_mib: int = 0) -> tuple[str, str]:
    """A root port `portN` with room for a BAR of `window_mib` to be plugged in."""
    room = f",pref64-reserve={window_mib}M" if window_mib else ""
    # fixed functions of one slot: addresses stay the same whatever else is added
    return device(
        f"pcie-root-port,id=port{number},chassis={number},slot={number},"
        f"addr=1c.{number - 1},multifunction=on{room}"
    )


def memory(name: str, size: str, path: str = "{run}") -> tuple[str, str]:
    """Memory that a device shows, in a file so that others can map it too."""
    return (
        "-object",
        f"memory-backend-file,id={name},size={size},mem-path={path}/{name},share=on",
    )


# 0000:00:1c.0-3 root ports port1 (window ivshmem, BAR2 16 MiB), port2 and port3 (empty, for
# hot-plug), port4 (NVMe); edu; i801 SMBus with QEMU's eight EEPROMs at 0x50; a CXL memory device
# behind a switch of one; an emulated IOMMU with interrupt remapping.
CARD: Final = Machine(
    name="card",
    memory_mib=1536,
    properties="cxl=on,cxl-fmw.0.targets.0=cxl.1,cxl-fmw.0.size=4G",
    options=(
        *NATIVE_HOTPLUG,
        *("-device", "intel-iommu,intremap=on"),
        *device("edu,id=edu0,addr=3.0"),
        *port(1),
        *port(2, 64),
        *port(3, 64),
        *port(4),
        *memory("window", "16M"),
        *device("ivshmem-plain,id=window0,memdev=window,bus=port1"),
        *("-blockdev", "null-co,node-name=disk,size=67108864,read-zeroes=on"),
        *device("nvme,id=nvme0,serial=APF0001,drive=disk,bus=port4"),
        *memory("cxlmem", "256M"),
        *memory("cxllabels", "1M"),
        *device("pxb-cxl,id=cxl.1,bus_nr=52"),
        *device("cxl-rp,id=cxlport,bus=cxl.1,port=0,chassis=0,slot=20"),
        *device("cxl-upstream,id=cxlup,bus=cxlport"),
        *device("cxl-downstream,id=cxldown,bus=cxlup,port=0,chassis=0,slot=21"),
        *device("cxl-type3,id=cxl0,bus=cxldown,memdev=cxlmem,lsa=cxllabels"),
    ),
    kernel_args="intel_iommu=on",
)
