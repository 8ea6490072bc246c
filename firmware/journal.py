"""The decisions of the card, on disk before anything is sent (DESIGN D1, D6, D14; section 4).

A record is a JSON object under (kind, key). Only decisions live here: phases are derived from what
is seen. The image in memory is what the *store* has acknowledged, so nobody can act on a decision
that a power cut would take back.

Versions (D14): a record carries `"v"`, the version that wrote it, and may carry `"needs"`, the
oldest version that can read it. Unknown keys are kept; only a record that needs more than
`RECORD_VERSION` is an error. So the version before reads what the next one wrote.

A record ends with a seal, `"!crc"`: CRC-32C of its kind, its key and all that stands before the
seal. The store's own checksums cover its log and not the file that the log is copied to, and a bit
that turns over there (fault S4) leaves a JSON text like any other: another generation, another
state. A record without a seal is one of a writer that knew none; it is read as it stands.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final, TypeAlias

from hal.errors import HalError, StoreFailed
from hal.ports import JournalRecord, JournalStore
from protocol.crc import crc32c

RECORD_VERSION: Final = 1
MAX_VALUE_BYTES: Final = 1 << 20  # a workload is the largest record, and a request has this limit
MAX_KEY_CHARS: Final = 512
MAX_BATCH_CHANGES: Final = 4096
SEAL_KEY: Final = "!crc"
TRACED_CHANGES: Final = 4  # of a batch; the first ones say what it is
MAX_IN_FLIGHT: Final = 1024  # batches; more than this many unacknowledged means a dead disk

Record: TypeAlias = Mapping[str, object]

# also one whose name has suffered: a member at the end, of four characters, that says eight
_SEAL: Final = re.compile(rb',"[^"]{4}":"[^"]{8}"}\Z')


class Kind(StrEnum):
    """What is decided. Append-only: the value is on disk."""

    META = "meta"  # key "epoch", "card_uuid", ...: {"value": ...}
    WORKLOAD = "workload"  # by name: {"workload": normal form, ...}
    ASSIGNMENT = "assignment"  # by instance: firmware.assignments.Assignment
    CNM = "cnm"  # by id: granted, drained, fencing
    VOLUME = "volume"  # by name: last flushed manifest and when
    IMAGE = "image"  # by reference: {"manifest": ...}
    DELETION = "deletion"  # by what is to be deleted; gone when it is done
    PROFILE = "profile"  # by identity: firmware.profile.Profile; no decision, but an estimate


_REQUIRED: Final[Mapping[Kind, Mapping[str, type]]] = {
    Kind.META: {"value": object},
    Kind.WORKLOAD: {"workload": dict},
    Kind.ASSIGNMENT: {"instance": str, "index": int},
    Kind.CNM: {},
    Kind.VOLUME: {},
    Kind.IMAGE: {"manifest": dict},
    Kind.DELETION: {},
    Kind.PROFILE: {},
}
_ESTIMATES: Final = frozenset({Kind.PROFILE})  # one that can't be read is as good as none


class JournalError(Exception):
    """A decision could not be read or written. `kind` and `key` name the record, "" for none;
    `code` is one of corrupt, too_new, bad_value, too_large, busy, store, failed."""

    def __init__(self, text: str, *, code: str, kind: str = "", key: str = "") -> None:
        super().__init__(f"{kind}/{key}: {text}" if kind else text)
        self.code = code
        self.kind = kind
        self.key = key


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One decision. `value` None deletes the key."""

    kind: Kind
    key: str
    value: Record | None


Committed: TypeAlias = Callable[[JournalError | None], None]


def _check_shape(kind: Kind, key: str, value: Record, code: str) -> None:
    for name, wanted in _REQUIRED[kind].items():
        found = value.get(name)
        if name not in value or not isinstance(found, wanted) or isinstance(found, bool):
            raise JournalError(
                f"{name!r} must be {wanted.__name__}, found {found!r:.60}",
                code=code,
                kind=kind,
                key=key,
            )


def encode(kind: Kind, key: str, value: Record) -> bytes:
    """Canonical bytes: sorted keys, no spaces, version and seal added. Raises JournalError."""
    _check_shape(kind, key, value, "bad_value")
    try:
        text = json.dumps(
            {"v": RECORD_VERSION, **{k: v for k, v in value.items() if k != SEAL_KEY}},
            sort_keys=True,
            separators=(",", ":"),
            allow_nan=False,
        )
    except (TypeError, ValueError) as exc:
        raise JournalError(f"not JSON: {exc}", code="bad_value", kind=kind, key=key) from exc
    data = _sealed(kind, key, text.encode())
    if len(data) > MAX_VALUE_BYTES or not key or len(key) > MAX_KEY_CHARS:
        raise JournalError(
            f"value of {len(data)} B (at most {MAX_VALUE_BYTES}) under a key of {len(key)} "
            f"characters (1 to {MAX_KEY_CHARS})",
            code="too_large",
            kind=kind,
            key=key[:64],
        )
    return data


def _sealed(kind: Kind, key: str, body: bytes) -> bytes:
    """The object with its seal as the last member."""
    return b'%b,"%b":"%08x"}' % (
        body[:-1],
        SEAL_KEY.encode(),
        crc32c(body, crc32c(f"{kind}/{key}".encode())),
    )


def _broken_seal(kind: Kind, key: str, data: bytes) -> bool:
    found = _SEAL.search(data)
    return found is not None and data != _sealed(kind, key, data[: found.start()] + b"}")


def decode(kind: Kind, key: str, data: bytes) -> dict[str, object]:
    """Raises JournalError for a record that this version can't read."""
    advice = "restore the journal from a backup, or remove this record with the daemon stopped"
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise JournalError(
            f"corrupt record of {len(data)} B [{data[:16].hex(' ')}]: {exc}; {advice}",
            code="corrupt",
            kind=kind,
            key=key,
        ) from exc
    if not isinstance(value, dict) or not isinstance(value.get("v"), int) or value["v"] < 1:
        raise JournalError(
            f"corrupt record: no object with a version; {advice}",
            code="corrupt",
            kind=kind,
            key=key,
        )
    if _broken_seal(kind, key, data):
        raise JournalError(
            f"corrupt record of {len(data)} B: its checksum is wrong; {advice}",
            code="corrupt",
            kind=kind,
            key=key,
        )
    value.pop(SEAL_KEY, None)
    needs = value.get("needs", 1)
    if not isinstance(needs, int) or needs > RECORD_VERSION:
        raise JournalError(
            f"record of version {value['v']} needs a reader of version {needs!r}, this is "
            f"{RECORD_VERSION}: start the newer software",
            code="too_new",
            kind=kind,
            key=key,
        )
    _check_shape(kind, key, value, "corrupt")
    return value


class _Records(Mapping[str, Record]):
    def __init__(self, kind: Kind, image: Mapping[str, bytes]) -> None:
        self._kind, self._image = kind, image

    def __getitem__(self, key: str) -> Record:
        return decode(self._kind, key, self._image[key])

    def __contains__(self, key: object) -> bool:
        return key in self._image

    def __iter__(self) -> Iterator[str]:
        return iter(self._image)

    def __len__(self) -> int:
        return len(self._image)


class Journal:
    """The durable image, and the only way to change it. Loop thread only."""

    def __init__(self, store: JournalStore) -> None:
        self._store = store
        self._image: dict[Kind, dict[str, bytes]] = {kind: {} for kind in Kind}
        # as `load` found them, for whoever reads all of them at the start; until the first commit
        self._decoded: dict[Kind, dict[str, Record]] = {}
        self._in_flight = 0
        self._failed: str | None = None
        self.commits = 0  # batches acknowledged
        self.refused = 0  # batches not taken or not stored
        self.dropped = 0  # estimates that could not be read at the start
        self.trace: Callable[[str], None] = lambda _text: None  # of each answer of the store

    @property
    def failed(self) -> str | None:
        """Why the store must not be used any further, or None."""
        return self._failed

    @property
    def in_flight(self) -> int:
        """Batches that the store has not answered yet."""
        return self._in_flight

    def load(self) -> None:
        """Read everything, once, before the loop runs. Raises JournalError and keeps nothing if
        any decision is bad: half of them would be worse than none. An estimate that is bad is left
        out. Records of a kind that this version does not know are left alone on disk."""
        image: dict[Kind, dict[str, bytes]] = {kind: {} for kind in Kind}
        decoded: dict[Kind, dict[str, Record]] = {kind: {} for kind in Kind}
        known = {str(kind): kind for kind in Kind}
        try:
            records = self._store.load()
        except HalError as exc:
            raise JournalError(f"the store can't be read: {exc}", code="store") from exc
        for record in records:
            kind = known.get(record.kind)
            if kind is None or record.value is None:
                continue
            try:
                decoded[kind][record.key] = decode(kind, record.key, record.value)
            except JournalError:
                if kind not in _ESTIMATES:
                    raise
                self.dropped += 1
                continue
            image[kind][record.key] = record.value
        self._image, self._decoded = image, decoded

    def get(self, kind: Kind, key: str) -> Record | None:
        """The durable value, or None."""
        data = self._image[kind].get(key)
        return None if data is None else decode(kind, key, data)

    def raw(self, kind: str, key: str) -> bytes | None:
        """A durable record as it stands in the image, or None: for judges and dumps."""
        return self._image[Kind(kind)].get(key)

    def items(self, kind: Kind) -> Mapping[str, Record]:
        """All durable records of a kind by key; a read-only view, live from the first commit on.
        Then each look at a value decodes it: as bytes they take a sixth of the memory, and most
        are never asked for again."""
        found = self._decoded.get(kind)
        return _Records(kind, self._image[kind]) if found is None else MappingProxyType(found)

    def commit(self, changes: Sequence[Change], done: Committed) -> None:
        """Write a batch, all or nothing, in order of the calls. `done(None)` when it would
        survive a power cut and the image shows it; `done(JournalError)` when nothing of it was
        taken. `done` may run before this returns."""
        try:
            batch = self._encode(changes)
        except JournalError as exc:
            self.refused += 1
            done(exc)
            return
        self._in_flight += 1
        kept = [(c.kind, c.key, r.value) for c, r in zip(changes, batch, strict=True)]
        self._store.submit(batch, lambda answer: self._finish(kept, answer, done))

    def _encode(self, changes: Sequence[Change]) -> list[JournalRecord]:
        if self._failed is not None:
            raise JournalError(f"the store has failed: {self._failed}", code="failed")
        if self._in_flight >= MAX_IN_FLIGHT:
            raise JournalError(f"{self._in_flight} batches wait for the disk", code="busy")
        if not 0 < len(changes) <= MAX_BATCH_CHANGES:
            raise JournalError(
                f"a batch of {len(changes)} changes; 1 to {MAX_BATCH_CHANGES} are taken",
                code="too_large",
            )
        return [
            JournalRecord(
                kind=str(change.kind),
                key=change.key,
                value=None
                if change.value is None
                else encode(change.kind, change.key, change.value),
            )
            for change in changes
        ]

    def _finish(
        self,
        kept: Sequence[tuple[Kind, str, bytes | None]],
        answer: HalError | None,
        done: Committed,
    ) -> None:
        self._in_flight -= 1
        if answer is not None:
            self.refused += 1
            if isinstance(answer, StoreFailed):
                self._failed = str(answer)
            error = JournalError(f"not stored: {answer}", code="store")
            error.__cause__ = answer
            self.trace(f"refused: {answer}")
            done(error)
            return
        self._decoded = {}
        for kind, key, data in kept:
            if data is None:
                self._image[kind].pop(key, None)
            else:  # the bytes on disk: the caller may go on changing its own dict
                self._image[kind][key] = data
        self.commits += 1
        self.trace(", ".join(f"{kind} {key}" for kind, key, _data in kept[:TRACED_CHANGES]))
        done(None)

    # --- meta ---

    @property
    def epoch(self) -> int:
        """The durable card epoch; 0 before the first start."""
        value = (self.get(Kind.META, "epoch") or {}).get("value", 0)
        return value if isinstance(value, int) else 0

    @property
    def card_uuid(self) -> str | None:
        """The card's identity, made once (32 hex digits)."""
        value = (self.get(Kind.META, "card_uuid") or {}).get("value")
        return value if isinstance(value, str) else None

    def next_epoch(self) -> Change:
        """Epoch + 1, to be committed with what begins it."""
        return Change(kind=Kind.META, key="epoch", value={"value": self.epoch + 1})

    def begin_epoch(self, fresh_uuid: str, done: Committed) -> None:
        """Epoch + 1, durable before any frame leaves the card (DESIGN 4, rule 2). `fresh_uuid`
        becomes the card's identity if it has none yet."""
        changes = [self.next_epoch()]
        if self.card_uuid is None:
            changes.append(Change(kind=Kind.META, key="card_uuid", value={"value": fresh_uuid}))
        self.commit(changes, done)

    def close(self) -> None:
        self._store.close()
