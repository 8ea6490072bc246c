"""`hal.smbus_ports.SmbusTarget` by the kernel's slave-mqueue: an adapter that is itself addressed.

Ref: the i2c-slave-mqueue backend (OpenBMC's kernels carry it; mainline and Debian do not): a device
`slave-mqueue` at the address with 0x1000 added, whose attribute of that name gives one write after
the other and is polled with EPOLLPRI. Needs I2C_FUNC_SLAVE in the adapter, and such a kernel: the
i801 and i2c-stub have neither, and are refused with what is missing. An epoll descriptor of our own
stands for the attribute, because a sysfs attribute is always "ready to read".
"""

import errno
import os
import select
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hal.errors import Refused, Unavailable
from hal.linux.oserror import hal_error
from hal.linux.smbus_wire import SYSFS
from hal.smbus_ports import ADDRESS_FIRST, ADDRESS_LAST, SmbusCapabilities, SmbusFunctions

OWN_ADDRESS: Final = 0x1000  # I2C_CLIENT_SLAVE in the address of a new device
FRAMES_AT_ONCE: Final = 64
FRAME_LIMIT_BYTES: Final = 512


class LinuxSmbusTarget:
    """One address of one adapter."""

    def __init__(
        self, number: int, address: int, capabilities: SmbusCapabilities, *, sysfs: Path = SYSFS
    ) -> None:
        """`capabilities` are those of the adapter's segment. Raises Unavailable, or Refused for
        an address that can't be."""
        if not ADDRESS_FIRST <= address <= ADDRESS_LAST:
            raise Refused(f"i2c-{number}: own address {address:#x} is reserved, or not 7 bits")
        if SmbusFunctions.TARGET not in capabilities.functions:
            raise Unavailable(
                f"i2c-{number}: {capabilities.adapter} can't be addressed (no I2C_FUNC_SLAVE): "
                "no MCTP over SMBus on it; use an adapter with target mode, or a serial link"
            )
        self._adapter = sysfs / f"i2c-{number}"
        self._address = address
        name = f"{number}-{OWN_ADDRESS | address:04x}"
        self._write("new_device", f"slave-mqueue {OWN_ADDRESS | address:#x}")
        path = self._adapter / name / "slave-mqueue"
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            self._write("delete_device", f"{OWN_ADDRESS | address:#x}")
            raise Unavailable(
                f"{path}: {exc.strerror}: this kernel has no i2c-slave-mqueue; want one that has, "
                "or AF_MCTP"
            ) from exc
        self._poll = select.epoll()
        try:
            self._poll.register(self._fd, select.EPOLLPRI | select.EPOLLERR)
        except OSError as exc:
            self.close()
            raise hal_error(exc, f"polling {path}") from exc

    @property
    def handle(self) -> int:
        return self._poll.fileno()

    def receive(self) -> Sequence[bytes]:
        found: list[bytes] = []
        while len(found) < FRAMES_AT_ONCE:
            try:
                frame = os.pread(self._fd, FRAME_LIMIT_BYTES, 0)
            except OSError as exc:
                if exc.errno in (errno.EAGAIN, errno.ENODATA):
                    break
                raise hal_error(exc, f"reading the writes to {self._address:#04x}") from exc
            if not frame:
                break
            found.append(frame)
        return found

    def close(self) -> None:
        """Give the address back. Twice is fine."""
        if self._fd < 0:
            return
        self._poll.close()
        os.close(self._fd)
        self._fd = -1
        self._write("delete_device", f"{OWN_ADDRESS | self._address:#x}")

    def _write(self, attribute: str, text: str) -> None:
        path = self._adapter / attribute
        try:
            path.write_text(text)
        except OSError as exc:
            raise hal_error(exc, f"writing {text!r} to {path}") from exc
