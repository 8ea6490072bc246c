"""`hal.cxl_ports.CxlMemdev` on /dev/cxl/memN: one worker thread for the mailbox.

The kernel has commands of its own for some opcodes only; for events it has none at all (since 6.3
it reads them itself and tells them as trace events), so that they are NotOffered here.
"""

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from hal.cxl_ports import (
    OPCODE_MAX,
    CxlCommand,
    CxlMemdevInfo,
    CxlReply,
    DriverMissing,
    NotOffered,
    NotPermitted,
    RawRefused,
)
from hal.errors import DeadlinePassed, DeviceGone, HalError, Refused, Unavailable
from hal.linux import cxl_ioctl
from hal.linux.cxl_sysfs import DEVICES, memdev_info, why_no_memdev
from hal.linux.workers import Check, Workers
from hal.ports import Done, Reactor

DEV: Final = Path("/dev/cxl")
PENDING_LIMIT: Final = 64  # commands that wait for one mailbox


class LinuxCxlMemdev:
    """All methods are called on the loop's thread."""

    def __init__(
        self, name: str, reactor: Reactor, *, devices: Path = DEVICES, dev: Path = DEV
    ) -> None:
        """Raises DriverMissing, NotPermitted, Unavailable: each says what is missing."""
        self._name = name
        self._reactor = reactor
        self._fd = _open(name, devices, dev)
        self._pending = 0
        self._closed = False
        self.late_results = 0  # came after their deadline, and were dropped
        try:
            self.info: CxlMemdevInfo = memdev_info(devices / name)
            known = cxl_ioctl.query(self._fd)
        except OSError as exc:
            os.close(self._fd)
            raise cxl_ioctl.failure(exc, name, 0, raw=False) from exc
        except HalError:
            os.close(self._fd)
            raise
        self._takes_raw = cxl_ioctl.ID_RAW in known
        self._ids = {
            opcode: number for opcode, number in cxl_ioctl.OPCODES.items() if number in known
        }
        self._workers = Workers(reactor, threads=1, waiting_limit=PENDING_LIMIT)

    def opcodes(self) -> Sequence[int]:
        """Those of this kernel's table, sorted."""
        return sorted(self._ids)

    def submit(self, command: CxlCommand, deadline_ns: int, done: Done[CxlReply]) -> None:
        """A command that hangs holds the worker for up to 2 s, not the loop."""
        refusal = self._refusal(command)
        if refusal is not None:
            self._reactor.post(lambda: done(refusal))
            return
        what = f"/dev/cxl/{self._name}: opcode {command.opcode:04X}h"
        self._pending += 1
        given = False

        def give(result: CxlReply | HalError) -> None:
            nonlocal given
            if given:
                self.late_results += 1
                return
            given = True
            cancel()
            done(result)

        def came(result: CxlReply | HalError) -> None:
            self._pending -= 1
            if self._closed and isinstance(result, DeadlinePassed):
                result = DeviceGone(f"{what}: closed before it was sent")
            give(result)

        def expire() -> None:
            give(DeadlinePassed(f"{what}: no answer in time; it may still take effect"))

        cancel = self._reactor.call_at(deadline_ns, expire)
        self._workers.submit(what, lambda check: self._run(command, check), deadline_ns, came)

    def close(self) -> None:
        """Waits for a command that is in the kernel: 2 s at most."""
        if not self._closed:
            self._closed = True
            self._workers.close()
            with contextlib.suppress(OSError):  # the device went first
                os.close(self._fd)

    def _run(self, command: CxlCommand, check: Check) -> CxlReply:
        """On the worker."""
        number = cxl_ioctl.ID_RAW if command.raw else self._ids[command.opcode]
        payload = command.payload
        if command.opcode == cxl_ioctl.SET_PARTITION_INFO and not command.raw:
            payload = payload.ljust(cxl_ioctl.SET_PARTITION_BYTES, b"\0")
        try:
            return cxl_ioctl.send(
                self._fd, number, command.opcode, payload, self.info.payload_max_bytes
            )
        except OSError as exc:
            raise cxl_ioctl.failure(exc, self._name, command.opcode, raw=command.raw) from exc

    def _refusal(self, command: CxlCommand) -> HalError | None:
        what = f"/dev/cxl/{self._name}: opcode {command.opcode:04X}h"
        limit = self.info.payload_max_bytes
        if self._closed:
            return DeviceGone(f"{what}: the port was closed")
        if not 0 < command.opcode <= OPCODE_MAX:
            return Refused(f"{what}: want an opcode of 0001h to FFFFh")
        if len(command.payload) > limit:
            return Refused(f"{what}: payload of {len(command.payload)} bytes, at most {limit}")
        if self._pending >= PENDING_LIMIT:
            return Unavailable(f"{what}: {PENDING_LIMIT} commands wait already; try again later")
        if command.raw and not self._takes_raw:
            return RawRefused(
                f"{what}: this kernel takes no raw commands (CONFIG_CXL_MEM_RAW_COMMANDS)"
            )
        if not command.raw and command.opcode not in self._ids:
            known = ", ".join(f"{opcode:04X}h" for opcode in self.opcodes())
            return NotOffered(f"{what}: this kernel has no command for it, only for {known}")
        return None


def _open(name: str, devices: Path, dev: Path) -> int:
    try:
        return os.open(dev / name, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise DriverMissing(why_no_memdev(name, devices, dev)) from exc
    except PermissionError as exc:
        raise NotPermitted(
            f"{dev / name}: {exc.strerror}: run as root, or have a udev rule give it to our group"
        ) from exc
    except OSError as exc:
        raise cxl_ioctl.failure(exc, name, 0, raw=False) from exc
