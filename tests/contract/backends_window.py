"""The rows of windows in memory that both ends map as a whole (`hal.bar_layout`).

The BAR is a file here, laid out in a directory that looks like sysfs; in a virtual machine the HIL
cases run the same suites on a real function (tests/hil/cases/window.py).
"""

from pathlib import Path
from typing import Any

import pytest

from hal.bar_layout import HEADER_PAGE_BYTES
from hal.linux.pci_window import BarWindow, open_mapped_window, open_pci_window
from hal.linux.polled_bell import PolledBell
from hal.ports import Reactor
from tests.contract import rigs

BAR_BYTES = 256 * 1024 + HEADER_PAGE_BYTES


def backends(port: str) -> list[Any]:
    rows = {
        "window": [
            pytest.param(bar_window, id="linux-pci"),
            pytest.param(mapped_window, id="linux-map"),
        ],
        "doorbell": [pytest.param(polled_bell, id="linux-polled")],
    }
    return rows.get(port, [])


def fake_function(sysfs: Path, address: str = "0000:01:00.0", size: int = BAR_BYTES) -> Path:
    """A function in a directory as sysfs has it; BAR 2 is prefetchable memory in a file."""
    device = sysfs / address
    device.mkdir(parents=True)
    start = 0xFE00_0000
    none = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n"
    bar = f"{start:#018x} {start + size - 1:#018x} {0x0014_220C:#018x}\n"
    (device / "resource").write_text(none * 2 + bar + none * 10)
    (device / "resource2").write_bytes(bytes(size))
    (device / "enable").write_text("0")
    (device / "config").write_bytes(bytes.fromhex("f41a1011") + bytes(60))
    return device


def pair_of(a: BarWindow, b: BarWindow) -> rigs.WindowRig:
    def close() -> None:
        a.close()
        b.close()

    return rigs.WindowRig(a=a, b=b, close=close)


def bar_window(tmp_path: Path, reactor: Reactor) -> rigs.WindowRig:
    fake_function(tmp_path)
    target = "0000:01:00.0/bar2"
    return pair_of(
        open_pci_window(target, "a", sysfs=tmp_path), open_pci_window(target, "b", sysfs=tmp_path)
    )


def mapped_window(tmp_path: Path, reactor: Reactor) -> rigs.WindowRig:
    path = tmp_path / "shared"
    path.write_bytes(bytes(BAR_BYTES))
    return pair_of(open_mapped_window(str(path), "a"), open_mapped_window(str(path), "b"))


def polled_bell(tmp_path: Path, reactor: Reactor) -> rigs.DoorbellRig:
    """The death of an end does not show on it: nothing of the far end is there but its memory."""
    windows = mapped_window(tmp_path, reactor)
    a, b = (PolledBell(window, reactor) for window in (windows.a, windows.b))

    def close() -> None:
        for bell in (a, b):
            reactor.unwatch(bell.handle)
            bell.close()
        windows.close()

    return rigs.DoorbellRig(a=a, b=b, close=close)
