"""Packets put together again. DSP0236 §8.3; the rules are the "advice" column of reference
"mctp", 3.3, where the stacks in the field all differ.

The key of a message is (link, source, destination, tag, tag owner). What is dropped is counted by
reason, and by peer (link, source EID); the reasons:

    short          fewer bytes than a header and one of payload
    bad_version    header version is not 1
    bad_source     source EID is broadcast or reserved
    bad_dest       destination EID is reserved
    not_local      addressed to somebody else (only where `local_eid` is set)
    broadcast      a broadcast that is not a control message
    no_start       a middle or last packet of a message whose first was not seen
    bad_seq        sequence number is not the last one + 1: the message is lost
    bad_size       a middle packet of another size than the first, or a larger last one: the same
    too_long       the message would grow over its limit
    restarted      a second first packet: the older message is lost, the newer goes on
    superseded     a single-packet message of the same key: delivered, the older one is lost
    expired        no further packet in time
    peer_quota     one peer has too many messages open: its oldest is lost
    evicted        too many messages open: the oldest of all is lost
"""

from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

from protocol.mctp.fragment import MAX_MESSAGE_BYTES
from protocol.mctp.packet import (
    EID_BROADCAST,
    EID_NULL,
    FLAG_EOM,
    FLAG_SOM,
    FLAG_TO,
    HEADER_BYTES,
    HEADER_VERSION,
    MIN_FRAGMENT_BYTES,
    SEQ_MASK,
    TAG_MASK,
    TYPE_CONTROL,
    TYPE_IC,
    TYPE_MASK,
    VERSION_MASK,
    is_destination,
    is_source,
)

EXPIRY_NS: Final = 6_000_000_000  # as Linux and mctp-estack; above MT4's 5 s (reference 6.1)

LinkName: TypeAlias = str | int
Peer: TypeAlias = tuple[LinkName, int | None]  # source EID; None where it could not be read
_Key: TypeAlias = tuple[LinkName, int, int, int]  # link, source, destination, TO and tag bits

_TERMINUS: Final = FLAG_TO | TAG_MASK  # the bits of byte 3 that name a message
_SOURCES: Final = bytes(is_source(eid) for eid in range(256))  # a lookup in the hot path
_DESTINATIONS: Final = bytes(is_destination(eid) for eid in range(256))


class Message(NamedTuple):
    """A whole message; `data` includes the type byte.

    A named tuple, not a frozen dataclass: one is made for every frame that comes, and a frozen
    dataclass of seven fields costs three times as much to make.
    """

    dest_eid: int
    src_eid: int
    to: bool
    tag: int
    type: int  # 0..0x7F
    ic: bool  # an integrity check follows the body, defined by the type
    data: bytes


class _Context:
    """A message of which the first packet came."""

    __slots__ = ("data", "last_ns", "limit_bytes", "seq", "unit_bytes")

    def __init__(self, payload: bytes, *, seq: int, limit_bytes: int, now_ns: int) -> None:
        self.data = bytearray(payload)
        self.unit_bytes = len(payload)  # that of the first packet holds for all but the last
        self.seq = seq
        self.limit_bytes = limit_bytes
        self.last_ns = now_ns


class Reassembler:
    """Packets of any number of links to messages. Never raises on what a peer sends.

    Bounds: `max_contexts` open messages, of them `max_contexts_per_peer` a peer, each at most
    `max_message_bytes` (or less by type); full tables lose their oldest message, counted.
    `drops_by_peer` has at most 257 entries a link.
    """

    def __init__(
        self,
        *,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_contexts: int = 16,
        max_contexts_per_peer: int = 4,
        expiry_ns: int = EXPIRY_NS,
        max_bytes_by_type: Mapping[int, int] | None = None,
        local_eid: int | None = None,
    ) -> None:
        if min(max_message_bytes, max_contexts, max_contexts_per_peer, expiry_ns) < 1:
            raise ValueError("limits of a reassembler are at least 1")
        self._max_message_bytes = max_message_bytes
        self._max_bytes_by_type = dict(max_bytes_by_type or {})
        self._least_limit_bytes = min([max_message_bytes, *self._max_bytes_by_type.values()])
        self._max_contexts = max_contexts
        self._max_contexts_per_peer = max_contexts_per_peer
        self._expiry_ns = expiry_ns
        self._contexts: dict[_Key, _Context] = {}  # in the order of their last packet
        self.local_eid = local_eid  # None takes every destination; Set EID may change it
        self.drops: Counter[str] = Counter()
        self.drops_by_peer: dict[Peer, Counter[str]] = {}

    @property
    def open_messages(self) -> int:
        """Messages of which some packets came and others are awaited."""
        return len(self._contexts)

    def feed(self, packet: bytes, *, link: LinkName, now_ns: int) -> Message | None:
        """Take one packet (header and payload); the message that it completes, or None."""
        if len(packet) < MIN_FRAGMENT_BYTES:
            self._drop("short", link, packet[2] if len(packet) >= HEADER_BYTES else None)
            return None
        dest = packet[1]
        src = packet[2]
        if packet[0] & VERSION_MASK != HEADER_VERSION or not (
            _SOURCES[src] and _DESTINATIONS[dest]
        ):
            self._drop_header(packet, link)
            return None
        if self.local_eid is not None and dest not in (self.local_eid, EID_NULL, EID_BROADCAST):
            self._drop("not_local", link, src)
            return None
        if self._contexts:
            self.expire(now_ns)
        flags = packet[3]
        key = (link, src, dest, flags & _TERMINUS)
        if not flags & FLAG_SOM:
            return self._continue(key, packet, now_ns)
        kind = packet[HEADER_BYTES] & TYPE_MASK
        if dest == EID_BROADCAST and kind != TYPE_CONTROL:
            self._drop("broadcast", link, src)
            return None
        if not flags & FLAG_EOM:
            self._start(key, packet, now_ns)
            return None
        if key in self._contexts:
            self._lose(key, "superseded")
        size = len(packet) - HEADER_BYTES
        if size > self._least_limit_bytes and size > self._limit_bytes(kind):
            self._drop("too_long", link, src)
            return None
        return _message(key, packet[HEADER_BYTES:])

    def expire(self, now_ns: int) -> int:
        """Lose the messages that waited `expiry_ns` for their next packet; how many."""
        stale: list[_Key] = []
        for key, context in self._contexts.items():
            if now_ns - context.last_ns < self._expiry_ns:
                break  # the rest is younger
            stale.append(key)
        for key in stale:
            self._lose(key, "expired")
        return len(stale)

    def forget_link(self, link: LinkName) -> None:
        """Drop what is open on a link that went away, and its counters by peer; uncounted."""
        for key in [key for key in self._contexts if key[0] == link]:
            del self._contexts[key]
        for peer in [peer for peer in self.drops_by_peer if peer[0] == link]:
            del self.drops_by_peer[peer]

    def _start(self, key: _Key, packet: bytes, now_ns: int) -> None:
        if key in self._contexts:
            self._lose(key, "restarted")
        payload = packet[HEADER_BYTES:]
        limit_bytes = self._limit_bytes(payload[0] & TYPE_MASK)
        if len(payload) > limit_bytes:
            self._drop("too_long", key[0], key[1])
            return
        peers = [other for other in self._contexts if other[:2] == key[:2]]
        if len(peers) >= self._max_contexts_per_peer:
            self._lose(peers[0], "peer_quota")
        elif len(self._contexts) >= self._max_contexts:
            self._lose(next(iter(self._contexts)), "evicted")
        self._contexts[key] = _Context(
            payload,
            seq=packet[3] >> 4 & SEQ_MASK,
            limit_bytes=limit_bytes,
            now_ns=now_ns,
        )

    def _continue(self, key: _Key, packet: bytes, now_ns: int) -> Message | None:
        context = self._contexts.get(key)
        if context is None:
            self._drop("no_start", key[0], key[1])
            return None
        flags = packet[3]
        last = flags & FLAG_EOM
        payload = packet[HEADER_BYTES:]
        if flags >> 4 & SEQ_MASK != context.seq + 1 & SEQ_MASK:
            self._lose(key, "bad_seq")
            return None
        size = len(payload)
        if size > context.unit_bytes or (size < context.unit_bytes and not last):
            self._lose(key, "bad_size")
            return None
        if len(context.data) + size > context.limit_bytes:
            self._lose(key, "too_long")
            return None
        context.data += payload
        del self._contexts[key]
        if last:
            return _message(key, bytes(context.data))
        context.seq = flags >> 4 & SEQ_MASK
        context.last_ns = now_ns
        self._contexts[key] = context  # now the youngest
        return None

    def _limit_bytes(self, kind: int) -> int:
        return min(
            self._max_bytes_by_type.get(kind, self._max_message_bytes), self._max_message_bytes
        )

    def _lose(self, key: _Key, reason: str) -> None:
        del self._contexts[key]
        self._drop(reason, key[0], key[1])

    def _drop_header(self, packet: bytes, link: LinkName) -> None:
        if packet[0] & VERSION_MASK != HEADER_VERSION:
            reason = "bad_version"
        else:
            reason = "bad_dest" if _SOURCES[packet[2]] else "bad_source"
        self._drop(reason, link, packet[2])

    def _drop(self, reason: str, link: LinkName, src_eid: int | None) -> None:
        self.drops[reason] += 1
        self.drops_by_peer.setdefault((link, src_eid), Counter())[reason] += 1


def _message(key: _Key, data: bytes) -> Message:
    _, src, dest, bits = key
    kind = data[0]
    to = bits & FLAG_TO != 0
    return Message(dest, src, to, bits & TAG_MASK, kind & TYPE_MASK, kind & TYPE_IC != 0, data)
