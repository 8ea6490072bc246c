"""The rig itself: what is promised to every other case."""

import os
from pathlib import Path

from tests.hil.case import Context, Evidence, case
from tests.hil.machines import CARD


@case(on=CARD, smoke=True)
def the_guest_runs_a_stock_kernel_with_an_iommu(ctx: Context) -> Evidence:
    groups = len(list(Path("/sys/kernel/iommu_groups").iterdir()))
    assert groups > 0, "no IOMMU groups: is intel_iommu=on?"
    assert ctx.host("query-status")["running"] is True
    address = ctx.pci("8086:2918")  # ICH9's LPC bridge
    return Evidence(
        driver=ctx.driver(address) or "none",
        device=address,
        numbers={"iommu_groups": groups, "kernel": os.uname().release},
    )


@case(on=CARD)
def a_guest_writes_into_its_own_memory_only(ctx: Context) -> Evidence:
    """The root is an overlay whose lower side is a read-only mount of the host's files."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    root = next(mount for mount in mounts if mount[1] == "/")
    assert root[2] == "overlay", root
    assert all("rw" not in mount[3].split(",") for mount in mounts if mount[2] == "9p"), mounts
    assert not [mount for mount in mounts if mount[2].startswith(("ext", "xfs", "nfs", "fuse"))]
    links = sorted(path.name for path in Path("/sys/class/net").iterdir())
    assert links == ["lo"], f"a network: {links}"
    return Evidence(driver="overlay", device="/", numbers={"mounts": len(mounts)})
