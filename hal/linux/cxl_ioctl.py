"""The kernel's two calls on /dev/cxl/memN: which commands there are, and one command.

Ref: include/uapi/linux/cxl_mem.h and drivers/cxl/core/mbox.c of Linux 6.1 (command ids 1 to 20);
later kernels append ids. The kernel tells in a query what it knows, not what the device has.
"""

import errno
import fcntl
import struct
from collections.abc import Mapping
from typing import Final

from cffi import FFI  # type: ignore[import-untyped]  # cffi ships no types

from hal.cxl_ports import Claimed, CxlReply, Disabled, NotPermitted, RawRefused
from hal.errors import DeadlinePassed, DeviceGone, HalError, Refused, Unavailable

QUERY_COMMANDS: Final = 0x8008_CE01  # _IOR(0xCE, 1, 8 bytes)
SEND_COMMAND: Final = 0xC030_CE02  # _IOWR(0xCE, 2, 48 bytes)

QUERY_HEAD: Final = struct.Struct("<II")  # n_commands, rsvd
COMMAND_INFO: Final = struct.Struct("<IIII")  # id, flags, size_in, size_out
SEND: Final = struct.Struct("<IIHHIIIQIIQ")  # id flags raw.opcode raw.rsvd retval in{} out{}
VARIABLE: Final = 0xFFFF_FFFF  # a size that is not fixed
QUERY_LIMIT: Final = 256  # commands

ID_RAW: Final = 2
OPCODES: Final[Mapping[int, int]] = {  # opcode -> CXL_MEM_COMMAND_ID_*
    0x4000: 1,
    0x0400: 3,
    0x0200: 4,
    0x4100: 5,
    0x4102: 6,
    0x4200: 7,
    0x0401: 8,
    0x4101: 9,
    0x4103: 10,
    0x4201: 11,
    0x4202: 12,
    0x4203: 13,
    0x4204: 14,
    0x4300: 15,
    0x4301: 16,
    0x4302: 17,
    0x4303: 18,
    0x4304: 19,
    0x4305: 20,
}
# The kernel's table has one byte more for it than the specification (8.2.9.9.2.2).
SET_PARTITION_INFO: Final = 0x4101
SET_PARTITION_BYTES: Final = 10

_ffi: Final = FFI()
_GONE: Final = frozenset({errno.ENXIO, errno.ENODEV})
_SIZES: Final = frozenset({errno.EINVAL, errno.ENOMEM, errno.E2BIG})


def query(fd: int) -> dict[int, tuple[int, int]]:
    """id -> (input size, output size) of all commands that this kernel knows. Raises OSError."""
    head = bytearray(QUERY_HEAD.pack(0, 0))
    fcntl.ioctl(fd, QUERY_COMMANDS, head)
    count = min(QUERY_HEAD.unpack(head)[0], QUERY_LIMIT)
    answer = bytearray(QUERY_HEAD.size + count * COMMAND_INFO.size)
    QUERY_HEAD.pack_into(answer, 0, count, 0)
    fcntl.ioctl(fd, QUERY_COMMANDS, answer)
    found: dict[int, tuple[int, int]] = {}
    for number in range(count):
        entry = COMMAND_INFO.unpack_from(answer, QUERY_HEAD.size + number * COMMAND_INFO.size)
        if entry[0]:  # unused ids are all zeros
            found[entry[0]] = (entry[2], entry[3])
    return found


def send(fd: int, number: int, opcode: int, payload: bytes, room_bytes: int) -> CxlReply:
    """Send one command by its id and wait for the answer: up to 2 s, the kernel's own limit.
    `opcode` counts for ID_RAW only. Raises OSError."""
    answer = bytearray(room_bytes)
    with (
        _ffi.from_buffer(payload or b"\0") as source,
        _ffi.from_buffer(answer, require_writable=True) as target,
    ):
        raw = opcode if number == ID_RAW else 0
        call = bytearray(
            SEND.pack(
                number,
                0,
                raw,
                0,
                0,
                len(payload),
                0,
                int(_ffi.cast("uintptr_t", source)),
                room_bytes,
                0,
                int(_ffi.cast("uintptr_t", target)),
            )
        )
        fcntl.ioctl(fd, SEND_COMMAND, call)
    _id, _flags, _raw, _rsvd, retval, *_in, size, _rsvd2, _pointer = SEND.unpack(call)
    return CxlReply(return_code=retval, payload=bytes(answer[:size]) if not retval >> 1 else b"")


def failure(exc: OSError, name: str, opcode: int, *, raw: bool) -> HalError:
    """What the kernel's refusal means, and what to do. Ref: `cxl_validate_cmd_from_user`."""
    what = f"/dev/cxl/{name}: opcode {opcode:04X}h"
    words = exc.strerror or str(exc)
    if exc.errno == errno.ENOTTY:
        if raw:
            return RawRefused(
                f"{what}: {words}: this kernel takes no raw commands (CONFIG_CXL_MEM_RAW_COMMANDS)"
            )
        return Disabled(f"{what}: {words}: the device's Command Effects Log doesn't have it")
    if exc.errno == errno.EPERM and raw:
        return RawRefused(f"{what}: {words}: not as a raw command, or the kernel is locked down")
    if exc.errno in (errno.EPERM, errno.EACCES):
        return NotPermitted(f"{what}: {words}: want CAP_SYS_RAWIO, or root")
    if exc.errno == errno.EBUSY:
        return Claimed(
            f"{what}: {words}: a driver of the kernel keeps it (cxl_pmem, for labels and "
            "partitions: unload it while nobody uses the memory)"
        )
    if exc.errno in _GONE:
        return DeviceGone(f"{what}: {words}: the device is gone, or its driver was unbound")
    if exc.errno in _SIZES:
        return Refused(f"{what}: {words}: its payload is not as long as the kernel's table says")
    if exc.errno == errno.ETIMEDOUT:
        return DeadlinePassed(
            f"{what}: {words}: the mailbox did not answer within the kernel's 2 s"
        )
    return Unavailable(f"{what}: {words}")
