"""SMBus packet error code. System Management Bus Specification 3.1, 6.4: CRC-8, x^8+x^2+x+1, over
every byte of the transaction from the first address byte on, repeated-start addresses included.
"""

from typing import Final

from protocol.crc import pec8

READ_BIT: Final = 0x01


def with_pec(transaction: bytes) -> bytes:
    """A transaction (first byte: address and direction) and its packet error code."""
    return transaction + bytes([pec8(transaction)])


def pec_is_good(transaction: bytes) -> bool:
    """Whether the last byte is the code of all before it. A code over all of it leaves zero."""
    return len(transaction) > 1 and pec8(transaction) == 0


def read_transaction(address: int, command: int, answer: bytes) -> bytes:
    """The bytes of a read as they were on the wire, for their code: SMBus 3.1, figure 33."""
    return bytes([address << 1, command, address << 1 | READ_BIT]) + answer
