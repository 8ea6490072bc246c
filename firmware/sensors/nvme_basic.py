"""A drive by its basic management command.

Ref: `protocol.nvme_mi.basic`. Block reads with a packet error code; a drive needs no driver and
no queue for it, and answers in every power state in which its management interface is on.
"""

from firmware.sensors.steps import At, Readings, Steps
from protocol.nvme_mi.basic import (
    COMMAND_IDENTITY,
    COMMAND_STATUS,
    DriveIdentity,
    DriveStatus,
)


class NvmeBasic:
    """One drive, at 0x6A."""

    part = "nvme_basic"

    def __init__(self, at: At) -> None:
        self.at = at

    def identify(self) -> Steps[str]:
        block = yield from self.at.read_block(COMMAND_IDENTITY)
        found = DriveIdentity.from_bytes(block)
        return f"NVMe {found.vendor_id:04x} {found.serial_number}"

    def configure(self) -> Steps[None]:
        """Nothing."""
        yield from ()

    def read(self) -> Steps[Readings]:
        """`temp_mdegc` is None where the drive has no data; `smart_warnings` has a bit for each
        warning that is on."""
        status = DriveStatus.from_bytes((yield from self.at.read_block(COMMAND_STATUS)))
        return {
            "temp_mdegc": status.temp_mdegc,
            "life_used_percent": status.percentage_drive_life_used,
            "smart_warnings": ~status.smart_warnings & 0xFF,
            "ready": int(not status.drive_not_ready),
            "functional": int(status.drive_functional),
        }
