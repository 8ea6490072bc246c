"""Check sums of the wire formats, by fastcrc (about 80 ns for a 68-byte packet).

Names and parameters as in the CRC catalogue (reveng); check values for b"123456789" beside each.
"""

from collections.abc import Callable
from typing import Final

from fastcrc import crc8, crc16, crc32

FCS16_XOROUT_X25: Final = 0xFFFF  # the one difference between the two FCS dialects

# DSP0253 FCS as most of the field sends it: CRC-16/MCRF4XX, check 0x6F91. The second one goes on
# from an earlier value. Names, not functions of ours: a call through one costs as much again.
fcs16: Final[Callable[[bytes], int]] = crc16.mcrf4xx
fcs16_from: Final[Callable[[bytes, int], int]] = crc16.mcrf4xx


def fcs16_x25(data: bytes) -> int:
    """The complemented FCS of dialects B and C: CRC-16/IBM-SDLC (X.25), check 0x906E."""
    value: int = crc16.ibm_sdlc(data)
    return value


def fcs16_seed0(data: bytes) -> int:
    """The FCS of dialect D (older Linux, seed 0): CRC-16/KERMIT, check 0x2189."""
    value: int = crc16.kermit(data)
    return value


def pec8(data: bytes) -> int:
    """SMBus packet error code: CRC-8/SMBUS, poly 0x07, init 0, check 0xF4."""
    value: int = crc8.smbus(data)
    return value


def crc32c(data: bytes, crc: int = 0) -> int:
    """CRC-32C (iSCSI, NVMe-MI, our windows), check 0xE3069283. `crc` continues an earlier one."""
    value: int = crc32.iscsi(data, crc) if crc else crc32.iscsi(data)
    return value
