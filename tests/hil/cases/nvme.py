"""A drive: enumerated, its registers read through a read-only mapping, its health by its own log.

Ref: NVM Express Base Specification 2.0: 3.1.3 (controller registers), 5.16 (Get Log Page),
5.16.1.3 (SMART / Health Information log); <linux/nvme_ioctl.h>; QEMU 7.2, hw/nvme/ctrl.c for what
its controller answers (model, 323 K).
"""

import ctypes
import fcntl
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.hil.case import PCI, Context, Evidence, case
from tests.hil.machines import CARD

_IDS: Final = "1b36:0010"
_SERIAL: Final = "APF0001"  # as the machine's definition gives it
_DRIVER: Final = Path("/sys/bus/pci/drivers/nvme")
_CLASS: Final = Path("/sys/class/nvme")

_REG_CAP, _REG_VS, _REG_CSTS = 0x00, 0x08, 0x1C
_REGISTERS_BYTES: Final = 0x1000
_CSTS_FATAL: Final = 1 << 1
_VERSION_1_4: Final = 0x0001_0400

_IOCTL_ADMIN: Final = 0xC0484E41  # _IOWR('N', 0x41, struct nvme_admin_cmd)
# opcode, flags, reserved, nsid, cdw2-3, metadata, addr, metadata_len, data_len, cdw10-15, timeout
_ADMIN: Final = struct.Struct("=BBHIIIQQIIIIIIIIII")
_GET_LOG_PAGE: Final = 0x02
_LOG_HEALTH: Final = 0x02
_LOG_BYTES: Final = 512
_ALL_NAMESPACES: Final = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True, kw_only=True)
class _Health:
    critical_warning: int
    temp_k: int
    spare_percent: int
    used_percent: int


@case(on=CARD, deadline_s=90)
def a_drive_is_enumerated_read_through_its_bar_and_healthy(ctx: Context) -> Evidence:
    ctx.modprobe("nvme")
    address = ctx.pci(_IDS)
    before = _when_live(ctx, address)
    # QEMU keeps no spare blocks, and says so by 0
    assert before == _Health(critical_warning=0, temp_k=323, spare_percent=0, used_percent=0)

    (_DRIVER / "unbind").write_text(address)  # the kernel maps no BAR that a driver holds
    try:
        cap, version, status = _read_registers(address)
    finally:
        Path("/sys/bus/pci/drivers_probe").write_text(address)
    assert version == _VERSION_1_4, f"VS {version:#x}"
    assert cap & 0xFFFF == 0x7FF, f"CAP {cap:#x}: QEMU's queues have 2,048 entries"
    assert not status & _CSTS_FATAL, f"CSTS {status:#x}"

    after = _when_live(ctx, address)
    assert after == before
    return Evidence(
        driver=ctx.driver(address),
        device=address,
        numbers={"version": f"{version:#x}", "temp_k": after.temp_k, "queue_entries": 0x800},
    )


def _read_registers(address: str) -> tuple[int, int, int]:
    function = PCI / address
    (function / "enable").write_text("1")  # as the driver has let go, nobody else does
    try:
        with (
            (function / "resource0").open("rb") as file,
            mmap.mmap(file.fileno(), _REGISTERS_BYTES, access=mmap.ACCESS_READ) as bar,
            memoryview(bar) as view,
            view.cast("I") as words,
        ):
            assert words.readonly
            cap = words[_REG_CAP // 4] | words[_REG_CAP // 4 + 1] << 32
            return cap, words[_REG_VS // 4], words[_REG_CSTS // 4]
    finally:
        (function / "enable").write_text("0")


def _when_live(ctx: Context, address: str) -> _Health:
    """Wait for the driver's controller of this function, and ask it."""

    def controller() -> Path | None:
        for path in _CLASS.glob("nvme*"):
            if (path / "device").resolve().name == address:
                return path if (path / "state").read_text().strip() == "live" else None
        return None

    ctx.wait(controller, f"a live controller of {address}", timeout_s=30)
    found = controller()
    assert found is not None
    assert (found / "serial").read_text().strip() == _SERIAL
    assert (found / "model").read_text().strip() == "QEMU NVMe Ctrl"
    return _health(Path("/dev") / found.name)


def _health(device: Path) -> _Health:
    log = ctypes.create_string_buffer(_LOG_BYTES)
    dwords = _LOG_BYTES // 4 - 1  # "0's based"
    command = bytearray(
        _ADMIN.pack(
            *(_GET_LOG_PAGE, 0, 0, _ALL_NAMESPACES, 0, 0, 0, ctypes.addressof(log)),
            *(0, _LOG_BYTES, _LOG_HEALTH | dwords << 16, 0, 0, 0, 0, 0, 10_000, 0),
        )
    )
    with device.open("r+b", buffering=0) as file:
        status = fcntl.ioctl(file, _IOCTL_ADMIN, command)
    assert status == 0, f"Get Log Page ended with status {status:#x}"
    warning, temp_k, spare, _threshold, used = struct.unpack_from("<BHBBB", log.raw)
    return _Health(critical_warning=warning, temp_k=temp_k, spare_percent=spare, used_percent=used)
