"""A journal's log as bytes on a disk, and what is read of it after a power cut.

A disk writes sectors of 512 bytes, each of them whole or not at all, and what is not synced in any
order it likes: after a cut any subset of the unsynced sectors is there, and the others hold what
they held before. What a reader makes of that is the same as with SQLite's WAL (sqlite.org/
fileformat2.html, 4.1 and 4.4): each frame carries a checksum that is carried on from the frame
before it, from a salt that changes with each run of the log, and reading ends at the first frame
whose checksum does not fit. So the batches that are found are exactly those before the first
missing sector: a prefix, whole batches only, however the rest was torn or reordered. Here a frame
is a batch; a commit of SQLite's holds several, so what is modelled takes more apart than the real
one does, never less.
"""

import random
import struct
import zlib
from collections.abc import Sequence
from typing import Final, TypeAlias

from hal.ports import JournalRecord

SECTOR_BYTES: Final = 512
Batch: TypeAlias = tuple[JournalRecord, ...]

_HEAD: Final = struct.Struct("<II")  # length of the body; checksum of all frames up to this one
_RECORD: Final = struct.Struct("<HHi")  # of kind, key and value; -1 is no value
_NO_VALUE: Final = -1


def write_log(batches: Sequence[Batch], salt: int) -> bytes:
    """These batches, frame after frame."""
    out = bytearray()
    sum_so_far = salt
    for batch in batches:
        body = _body(batch)
        sum_so_far = zlib.crc32(body, sum_so_far)
        out += _HEAD.pack(len(body), sum_so_far) + body
    return bytes(out)


def read_log(data: bytes, salt: int) -> list[Batch]:
    """The batches up to the first frame that is not whole."""
    found: list[Batch] = []
    at, sum_so_far = 0, salt
    while at + _HEAD.size <= len(data):
        length, wanted = _HEAD.unpack_from(data, at)
        body = data[at + _HEAD.size : at + _HEAD.size + length]
        sum_so_far = zlib.crc32(body, sum_so_far)
        if not length or len(body) != length or sum_so_far != wanted:
            break
        found.append(_records(body))
        at += _HEAD.size + length
    return found


def after_cut(data: bytes, start: int, rng: random.Random) -> bytes:
    """What of the unsynced bytes a power cut leaves. They begin `start` bytes into a sector (the
    synced ones before them are safe: a sector is whole or not at all). How many sectors get there
    is drawn: none, all, the first few, all but the first few, or each by itself."""
    sectors = -(-(start + len(data)) // SECTOR_BYTES)
    reached = _reached(sectors, rng)
    out = bytearray(rng.randbytes(len(data)))  # what was there before: an older run of the log
    for number in range(sectors):
        if reached[number]:
            low = max(0, number * SECTOR_BYTES - start)
            high = (number + 1) * SECTOR_BYTES - start
            out[low:high] = data[low:high]
    return bytes(out)


def _reached(sectors: int, rng: random.Random) -> list[bool]:
    kind = rng.randrange(5)
    edge = rng.randint(0, sectors)
    if kind == 0:
        return [False] * sectors
    if kind == 1:
        return [True] * sectors
    if kind == 2:
        return [number < edge for number in range(sectors)]  # torn
    if kind == 3:
        return [number >= edge for number in range(sectors)]  # the later ones came first
    return [rng.random() < 0.8 for _ in range(sectors)]


def _body(batch: Batch) -> bytes:
    out = bytearray()
    for record in batch:
        kind, key, value = record.kind.encode(), record.key.encode(), record.value
        out += _RECORD.pack(len(kind), len(key), _NO_VALUE if value is None else len(value))
        out += kind + key + (value or b"")
    return bytes(out)


def _records(body: bytes) -> Batch:
    found: list[JournalRecord] = []
    at = 0
    while at < len(body):
        kind_bytes, key_bytes, value_bytes = _RECORD.unpack_from(body, at)
        at += _RECORD.size
        kind = body[at : at + kind_bytes].decode()
        at += kind_bytes
        key = body[at : at + key_bytes].decode()
        at += key_bytes
        value = None if value_bytes == _NO_VALUE else body[at : at + value_bytes]
        at += max(value_bytes, 0)
        found.append(JournalRecord(kind=kind, key=key, value=value))
    return tuple(found)
