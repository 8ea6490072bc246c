"""EEPROMs 24Cxx, and the FRU that they hold.

Ref: Microchip 24C02C (DS21202), 24LC64 (DS21189): 5 (addressing), 6 (writes within a page), 8
(reads). Up to 256 bytes have one address byte, larger ones two. What adapters can do differs, so
there are four ways to read, the fastest that the adapter has; without plain I2C a part with two
address bytes is read as the kernel's at24 driver does it: the address by a write byte, then byte
after byte.
"""

from typing import Final

from firmware.sensors.steps import At, BadAnswer, Steps
from hal.errors import Refused
from hal.smbus_ports import SmbusCapabilities, SmbusFunctions, SmbusKind
from protocol.errors import ProtocolError
from protocol.fru import HEADER_BYTES, Fru, FruHeader, area_bytes

WRITE_CYCLE_US: Final = 5_000  # t_WC: DS21189 table 1-2
CHUNK_BYTES: Final = 16
SMALL_BYTES: Final = 256


class Eeprom:
    """One part of `size_bytes`, written in pages of `page_bytes`."""

    part = "24cxx"

    def __init__(
        self, at: At, *, size_bytes: int, capabilities: SmbusCapabilities, page_bytes: int = 8
    ) -> None:
        self.at = at
        self.size_bytes = size_bytes
        self._small = size_bytes <= SMALL_BYTES
        self._page_bytes = min(page_bytes, CHUNK_BYTES)  # a block holds an address byte too
        functions = capabilities.functions
        self._plain = SmbusFunctions.I2C in functions
        self._blocks = SmbusFunctions.READ_I2C_BLOCK in functions
        self._write_blocks = SmbusFunctions.WRITE_I2C_BLOCK in functions

    def read(self, offset: int, length: int) -> Steps[bytes]:
        """Raises Refused outside it."""
        self._check(offset, length)
        found = b""
        while len(found) < length:
            count = min(CHUNK_BYTES, length - len(found))
            found += yield from self._read_chunk(offset + len(found), count)
        return found

    def write(self, offset: int, data: bytes) -> Steps[None]:
        """Within pages, each with its write cycle. Raises Refused outside it."""
        self._check(offset, len(data))
        done = 0
        while done < len(data):
            at = offset + done
            room = self._page_bytes - at % self._page_bytes
            piece = data[done : done + min(room, len(data) - done)]
            done += yield from self._write_piece(at, piece)

    def _check(self, offset: int, length: int) -> None:
        if not 0 <= offset <= offset + length <= self.size_bytes:
            end = offset + length
            raise Refused(f"{self.at}: bytes {offset} to {end} of an EEPROM of {self.size_bytes}")

    def _read_chunk(self, at: int, count: int) -> Steps[bytes]:
        address = at.to_bytes(1 if self._small else 2, "big")
        if self._plain:
            return (yield from self.at.transfer(SmbusKind.RAW, data=address, read_bytes=count))
        if self._small and self._blocks:
            # One byte more than is wanted: the emulated i801 of QEMU 7.2 gives 0 for the last byte
            # of such a block, whatever its length (seen). Behind the end a part begins again at 0.
            kind = SmbusKind.READ_I2C_BLOCK
            block = yield from self.at.transfer(kind, command=at, read_bytes=count + 1)
            return block[:count]
        found = bytearray()
        if not self._small:
            yield from self.at.transfer(SmbusKind.WRITE_BYTE, address[0], address[1:])
        for index in range(count):
            if self._small:
                found.append((yield from self.at.read_byte(at + index)))
            else:
                found.append((yield from self.at.receive_byte()))
        return bytes(found)

    def _write_piece(self, at: int, piece: bytes) -> Steps[int]:
        """How many bytes of it were written."""
        address = at.to_bytes(1 if self._small else 2, "big")
        gap = WRITE_CYCLE_US
        if self._plain:
            yield from self.at.transfer(SmbusKind.RAW, data=address + piece, gap_us=gap)
            return len(piece)
        if self._write_blocks:
            kind = SmbusKind.WRITE_I2C_BLOCK
            tail = address[1:] + piece
            yield from self.at.transfer(kind, address[0], tail, gap_us=gap)
            return len(piece)
        if self._small:
            yield from self.at.transfer(SmbusKind.WRITE_BYTE, at, piece[:1], gap_us=gap)
        else:
            tail = address[1:] + piece[:1]
            yield from self.at.transfer(SmbusKind.WRITE_WORD, address[0], tail, gap_us=gap)
        return 1


def read_fru(eeprom: Eeprom) -> Steps[Fru]:
    """The FRU in it: the header, then the areas that it names, no more. Multirecords and the
    internal area are left out. Raises BadAnswer for a blank EEPROM or a wrong checksum."""
    head = yield from eeprom.read(0, HEADER_BYTES)
    try:
        header = FruHeader.from_bytes(head)
        image = bytearray(eeprom.size_bytes)
        end = HEADER_BYTES
        for what, start in (
            ("chassis", header.chassis),
            ("board", header.board),
            ("product", header.product),
        ):
            if start:
                size = area_bytes((yield from eeprom.read(start, 2)), f"{what} area")
                image[start : start + size] = yield from eeprom.read(start, size)
                end = max(end, start + size)
        known = FruHeader(chassis=header.chassis, board=header.board, product=header.product)
        image[:HEADER_BYTES] = known.to_bytes()
        return Fru.from_bytes(bytes(image[:end]))
    except ProtocolError as exc:
        raise BadAnswer(f"FRU at {eeprom.at}: {exc.detail}") from exc
    except Refused as exc:
        raise BadAnswer(f"FRU at {eeprom.at}: an area outside the EEPROM: {exc}") from exc


def write_fru(eeprom: Eeprom, fru: Fru) -> Steps[None]:
    """Write and read back. Raises Refused when it does not fit, BadAnswer when it reads back
    otherwise."""
    image = fru.to_bytes()
    yield from eeprom.write(0, image)
    found = yield from eeprom.read(0, len(image))
    if found != image:
        at = next(index for index, byte in enumerate(found) if byte != image[index])
        raise BadAnswer(f"FRU at {eeprom.at}: byte {at} does not read back as it was written")
