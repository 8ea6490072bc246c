"""The two one-way rings of a window, without the handshake. protocol/SPEC.md sections 14.2, 14.4.

Producer: data, then descriptor, then the head with a release barrier. Consumer: the head with an
acquire barrier, then a *copy* of the descriptor and of the data, both checked on the copy, then
the tail. Each index is written by one end only.

A consumer that passes entries on (`firmware.mover`) gives each back only when it has arrived there:
then the producer's "taken" means the same over two rings as over one.
"""

from typing import Final

from hal.ports import Buffer, Window
from protocol.crc import crc32c
from protocol.errors import ProtocolError
from protocol.window import (
    DESCRIPTOR_BYTES,
    OFF_HEAD,
    OFF_TAIL,
    WORD,
    Descriptor,
    Geometry,
    distance,
    parse_descriptor,
)

Chunk = tuple[int, int, int, bytes]  # kind, transfer_id, chunk, data
NO_GEOMETRY: Final = Geometry(ring_entries=2, slot_bytes=64, data_offset=0)


class RingBroken(Exception):
    """An index of the peer is where it can't be: it misbehaves, or has just begun anew."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


class TxRing:
    """Producer's end, in our half. Raises what the window raises."""

    def __init__(self, window: Window, geometry: Geometry) -> None:
        self._window, self._geometry = window, geometry
        self._session = self._head = self._tail = 0

    def reset(self, session: int) -> None:
        """Begin a session of ours with an empty ring."""
        self._session = session
        self._head = self._tail = 0
        self.announce()

    def announce(self) -> None:
        """Publish the head again, in case a store got lost on the fabric."""
        self._window.publish(OFF_HEAD, self._head)

    @property
    def outstanding(self) -> int:
        """Entries that the peer was not yet seen to have taken."""
        return distance(self._head, self._tail)

    def refresh(self) -> bool:
        """Look how far the peer has come; True if further than before. Raises RingBroken."""
        tail = self._window.acquire(OFF_TAIL)
        if tail == self._tail:
            return False
        if distance(self._head, tail) > self.outstanding:
            raise RingBroken("tail", f"peer's tail {tail} is not in {self._tail}..{self._head}")
        self._tail = tail
        return True

    def has_room(self) -> bool:
        """Raises RingBroken."""
        entries = self._geometry.ring_entries
        return self.outstanding < entries or (self.refresh() and self.outstanding < entries)

    def put(self, kind: int, transfer_id: int, chunk: int, data: Buffer) -> None:
        """Produce one entry; there must be room."""
        index, window, geometry = self._head, self._window, self._geometry
        raw = bytes(data)
        descriptor = Descriptor(
            seq=(self._session + index) & WORD,
            kind=kind,
            transfer_id=transfer_id,
            chunk=chunk,
            data_offset=geometry.slot_offset(index),
            length=len(raw),
            crc32c=crc32c(raw),
        )
        window.write(descriptor.data_offset, raw)
        window.write(geometry.descriptor_offset(index), descriptor.to_bytes())
        self._head = (index + 1) & WORD
        window.publish(OFF_HEAD, self._head)  # last: now the entry is the peer's


class RxRing:
    """Consumer's end, in the peer's half. Raises what the window raises."""

    def __init__(self, window: Window, *, keeps: bool = False) -> None:
        """`keeps`: an entry stays the consumer's until `give_back`."""
        self._window, self._geometry = window, NO_GEOMETRY
        self._session = self._head = self._tail = 0
        self._keeps = keeps
        # of each entry that is kept: was it good? Nearly always empty, where a deque takes 600 B
        self._kept: list[bool] = []

    def reset(self, session: int, geometry: Geometry) -> None:
        """Begin with a session of the peer, at entry 0."""
        self._session, self._geometry = session, geometry
        self._head = self._tail = 0
        self._kept.clear()
        self.announce()

    def announce(self) -> None:
        """Publish the tail again, in case a store got lost on the fabric."""
        self._window.publish(OFF_TAIL, (self._tail - len(self._kept)) & WORD)

    def give_back(self) -> None:
        """The oldest good entry that is kept is the producer's again. None kept: nothing."""
        if self._kept:
            del self._kept[0]
            self._drop_bad()
            self.announce()

    def _drop_bad(self) -> None:
        while self._kept and not self._kept[0]:
            del self._kept[0]

    def waiting(self) -> int:
        """Entries to take. Raises RingBroken when the peer can't have produced so many."""
        head = self._window.acquire(OFF_HEAD)
        count = distance(head, self._tail)
        room = self._geometry.ring_entries - len(self._kept)
        if count > room or count < distance(self._head, self._tail):
            raise RingBroken("head", f"peer's head {head}, seen {self._head}, taken {self._tail}")
        self._head = head
        return count

    def take(self) -> Chunk:
        """The next entry of those that `waiting` counted; it is consumed whatever it holds.

        Raises ProtocolError (those of `parse_descriptor`, or data_crc) for a bad one."""
        index, window = self._tail, self._window
        good = False
        try:
            raw = bytes(window.read(self._geometry.descriptor_offset(index), DESCRIPTOR_BYTES))
            entry = parse_descriptor(
                raw, geometry=self._geometry, index=index, session=self._session
            )
            data = bytes(window.read(entry.data_offset, entry.length))
            good = crc32c(data) == entry.crc32c
        finally:
            self._tail = (index + 1) & WORD
            if self._keeps:
                self._kept.append(good)
                self._drop_bad()
            self.announce()  # after the copy: the slot is the peer's again, unless it is kept
        if not good:
            detail = f"data CRC of chunk {entry.chunk} of transfer {entry.transfer_id:#x} is wrong"
            raise ProtocolError(detail, frame=raw, code="data_crc")
        return entry.kind, entry.transfer_id, entry.chunk, data
