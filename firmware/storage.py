"""Named volumes: kept on the card's capacity tier, staged to a CNM's hot tier, brought home again.

A volume's state is a manifest blob ("apf-volume/1": entries by path, file contents by digest), so
bringing one home moves changed files only and checks each of them. The journal names the manifest
that counts. It is replaced as a whole, and only by a generation that is the present one of its
instance (DESIGN section 4, rule 13): a module that was given up cannot write over its successor.
Instances that share a volume are on one module, so that either of them brings home what both wrote.

First form, behind this small interface: `ensure`, `blobs`, `flush`, `show`.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from firmware.decisions import Decisions
from firmware.endpoint import RequestError
from firmware.events import EventCode, EventLog
from firmware.inventory import Cnm
from firmware.journal import Change, JournalError, Kind
from firmware.loop import MS, Loop
from firmware.transfer import TransferError
from hal.errors import HalError
from hal.ports import BlobStore
from protocol.apf import (
    Ctx,
    FlushState,
    VolumeFlushReply,
    VolumeFlushRequest,
    VolumeStateReply,
    VolumeStateRequest,
)

SCHEMA: Final = "apf-volume/1"
ENTRIES_LIMIT: Final = 65_536
MANIFEST_LIMIT_BYTES: Final = 16 << 20
POLL_NS: Final = 50 * MS
ID_MAX: Final = 0xFFFF_FFFE  # of a file's owner; the next one is none to chown(2)
FLUSH_DEADLINE_NS: Final = 540_000 * MS  # below the control socket's limit for an answer
PULLS_AT_ONCE: Final = 4

Flushed = Callable[[str], None]  # "" or what went wrong


class VolumeError(Exception):
    """A volume's state can't be used; says which and why."""


def empty_manifest() -> bytes:
    """The manifest of a volume that holds nothing."""
    return json.dumps(
        {"schema": SCHEMA, "entries": []}, sort_keys=True, separators=(",", ":")
    ).encode()


def manifest_digests(data: bytes, name: str) -> list[bytes]:
    """The file digests that a manifest names. Raises VolumeError; peers write manifests too, and
    one with owners that no CNM would read must not become the one that counts."""
    try:
        document = json.loads(data)
        entries = document["entries"]
        if document["schema"] != SCHEMA or not isinstance(entries, list):
            raise VolumeError(f"volume {name}: not a manifest of schema {SCHEMA}")
        if len(entries) > ENTRIES_LIMIT:
            raise VolumeError(f"volume {name}: {len(entries)} entries, at most {ENTRIES_LIMIT}")
        digests = [bytes.fromhex(entry["digest"]) for entry in entries if entry["digest"]]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise VolumeError(f"volume {name}: its manifest can't be read: {exc}") from exc
    if any(len(digest) != 32 for digest in digests):
        raise VolumeError(f"volume {name}: its manifest names a digest that is not 32 bytes")
    for index, entry in enumerate(entries):
        for key in ("uid", "gid"):  # absent in manifests from before owners were kept
            number = entry.get(key, 0)
            if type(number) is not int or not 0 <= number <= ID_MAX:
                raise VolumeError(
                    f"volume {name}: entries[{index}].{key} of its manifest: wanted an integer "
                    f"0..{ID_MAX}, found {repr(number)[:60]}"
                )
    return digests


class Volumes:
    """The storage manager. Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        decisions: Decisions,
        blobs: BlobStore,
        events: EventLog,
        wall_ns: Callable[[], int],
        ctx: Callable[[Cnm], Ctx],
    ) -> None:
        self._loop = loop
        self._decisions = decisions
        self._blobs = blobs
        self._events = events
        self._wall_ns = wall_ns
        self._ctx = ctx
        self.flushing = 0  # instances whose volumes are on their way home

    def ensure(self, names: Sequence[str]) -> list[Change]:
        """The decisions that make volumes exist; for the batch that accepts their workload."""
        known = self._decisions.journal.items(Kind.VOLUME)
        fresh = [name for name in dict.fromkeys(names) if name not in known]
        if not fresh:
            return []
        manifest = self._blobs.put(empty_manifest()).hex()
        record = {"manifest": manifest, "generation": 0, "flushed_wall_ms": None, "bytes": 0}
        return [Change(kind=Kind.VOLUME, key=name, value={**record, "files": 0}) for name in fresh]

    def manifest(self, name: str) -> bytes:
        """Digest of the manifest that counts. Raises VolumeError for an unknown volume."""
        record: Any = self._decisions.journal.get(Kind.VOLUME, name)
        if record is None:
            raise VolumeError(f"volume {name} is not known")
        return bytes.fromhex(record["manifest"])

    def blobs(self, name: str) -> list[bytes]:
        """What a CNM needs of a volume: the manifest and all file contents."""
        digest = self.manifest(name)
        return [digest, *manifest_digests(self._read_manifest(digest, name), name)]

    def live_blobs(self) -> Iterator[bytes]:
        """What no clean-up may drop."""
        for name in self._decisions.journal.items(Kind.VOLUME):
            yield from self.blobs(name)

    def age_ms(self, name: str) -> int | None:
        """How old the state on the card is; None when it was never brought home."""
        record: Any = self._decisions.journal.get(Kind.VOLUME, name) or {}
        flushed = record.get("flushed_wall_ms")
        return None if flushed is None else max(0, self._wall_ns() // MS - flushed)

    def show(self) -> list[dict[str, Any]]:
        """`volume ls`."""
        rows = []
        for name, record in sorted(self._decisions.journal.items(Kind.VOLUME).items()):
            users = [a for a in self._decisions.assignments.values() if name in a.volumes]
            on = sorted({a.place.cnm for a in users if a.place})
            rows.append(
                {
                    "name": name,
                    "manifest": record["manifest"],
                    "bytes": record["bytes"],
                    "files": record["files"],
                    "generation": record["generation"],
                    "age_ms": self.age_ms(name),
                    "cnms": on,
                    "instances": sorted(a.instance for a in users),
                }
            )
        return rows

    def flush(
        self, cnm: Cnm, instance: str, generation: int, names: Sequence[str], done: Flushed
    ) -> None:
        """Bring the volumes of an instance home, one after the other."""
        self.flushing += 1

        def flushed(error: str) -> None:
            self.flushing -= 1
            done(error)

        _Flush(self, cnm, instance, generation, list(names), flushed).next_volume()

    def commit(
        self,
        name: str,
        instance: str,
        generation: int,
        state: VolumeStateReply,
        done: Flushed,
    ) -> None:
        """Make a checked manifest the one that counts (rule 13)."""
        assignment = self._decisions.assignments.get(instance)
        place = assignment.place if assignment is not None else None
        present = place.generation if place is not None else None
        known = self._decisions.journal.get(Kind.VOLUME, name) is not None
        if not known or assignment is None or name not in assignment.volumes:
            done(f"volume {name} is not one that {instance} may write")
            return
        if present != generation:
            done(
                f"volume {name}: {instance} is at generation {present}, generation {generation} "
                "may not write it any more"
            )
            return
        value = {
            "manifest": state.manifest_digest.hex(),
            "generation": generation,
            "flushed_wall_ms": self._wall_ns() // MS,
            "bytes": state.bytes,
            "files": state.files,
        }

        def committed(error: JournalError | None) -> None:
            done("" if error is None else str(error))

        self._decisions.journal.commit([Change(kind=Kind.VOLUME, key=name, value=value)], committed)

    def _read_manifest(self, digest: bytes, name: str) -> bytes:
        size = self._blobs.has(digest)
        if size is None:
            raise VolumeError(f"volume {name}: manifest {digest.hex()} is not in the store")
        if size > MANIFEST_LIMIT_BYTES:
            raise VolumeError(f"volume {name}: manifest of {size} B")
        step = 1 << 20
        return b"".join(self._blobs.read(digest, at, step) for at in range(0, size, step))


class _Flush:
    """One instance's volumes on their way home."""

    def __init__(
        self,
        volumes: Volumes,
        cnm: Cnm,
        instance: str,
        generation: int,
        names: list[str],
        done: Flushed,
    ) -> None:
        self._volumes = volumes
        self._cnm = cnm
        self._boot_id = cnm.boot_id
        self._instance = instance
        self._generation = generation
        self._names = names
        self._done = done
        self._loop = volumes._loop  # noqa: SLF001  one idea in two classes
        self._blobs = volumes._blobs  # noqa: SLF001
        self._events = volumes._events  # noqa: SLF001
        self._deadline_ns = self._loop.now_ns() + FLUSH_DEADLINE_NS

    def next_volume(self) -> None:
        if not self._names:
            self._done("")
            return
        name = self._names[0]
        request = VolumeFlushRequest(
            ctx=self._volumes._ctx(self._cnm),  # noqa: SLF001
            instance=self._instance,
            generation=self._generation,
            volume=name,
        )
        self._cnm.agent.request(request, self._on_flush)

    def _fail(self, text: str) -> None:
        name = self._names[0]
        self._events.emit(
            EventCode.VOLUME_FLUSH_FAILED,
            f"volume {name}: {text}",
            cnm=self._cnm.id,
            instance=self._instance,
        )
        self._done(f"volume {name}: {text}")

    def _on_flush(self, reply: VolumeFlushReply | RequestError) -> None:
        if isinstance(reply, RequestError):
            self._fail(str(reply))
        else:
            self._poll(reply.flush_id)

    def _poll(self, flush_id: int) -> None:
        if self._loop.now_ns() >= self._deadline_ns or self._cnm.boot_id != self._boot_id:
            self._fail("the module did not finish reading it in time")
            return
        request = VolumeStateRequest(volume=self._names[0], flush_id=flush_id)
        self._cnm.agent.request(request, lambda reply: self._on_state(reply, flush_id))

    def _on_state(self, reply: VolumeStateReply | RequestError, flush_id: int) -> None:
        if isinstance(reply, RequestError):
            self._fail(str(reply))
        elif reply.state == FlushState.SCANNING:
            self._loop.call_later(POLL_NS, lambda: self._poll(flush_id))
        elif reply.state == FlushState.READY:
            self._fetch(reply)
        else:
            self._fail(reply.text or f"state {reply.state}")

    def _fetch(self, state: VolumeStateReply) -> None:
        def have_manifest(error: TransferError | None) -> None:
            if error is not None:
                self._fail(str(error))
                return
            try:
                data = self._volumes._read_manifest(  # noqa: SLF001
                    state.manifest_digest, self._names[0]
                )
                digests = manifest_digests(data, self._names[0])
            except (VolumeError, HalError) as exc:
                self._fail(str(exc))
                return
            self._pull(list(dict.fromkeys(digests)), lambda: self._commit(state))

        self._pull_one(state.manifest_digest, have_manifest)

    def _pull_one(self, digest: bytes, done: Callable[[TransferError | None], None]) -> None:
        transfers = self._cnm.transfers
        if self._blobs.has(digest) is not None:
            done(None)
        elif transfers is None:
            done(TransferError("the window is down"))
        else:
            transfers.pull(digest, done)

    def _pull(self, digests: list[bytes], done: Callable[[], None]) -> None:
        """All of them, a few at a time; the first failure ends it, once."""
        waiting = [digest for digest in digests if self._blobs.has(digest) is None]
        state = {"under_way": 0, "failed": 0}

        def pulled(error: TransferError | None) -> None:
            state["under_way"] -= 1
            if state["failed"]:
                return
            if error is not None:
                state["failed"] = 1
                self._fail(str(error))
                return
            more()

        def more() -> None:
            while waiting and state["under_way"] < PULLS_AT_ONCE and not state["failed"]:
                state["under_way"] += 1
                self._pull_one(waiting.pop(), pulled)
            if not waiting and state["under_way"] == 0 and not state["failed"]:
                state["failed"] = 1  # finished: nothing may follow
                done()

        more()

    def _commit(self, state: VolumeStateReply) -> None:
        name = self._names[0]

        def committed(error: str) -> None:
            if error:
                self._fail(error)
                return
            self._events.emit(
                EventCode.VOLUME_FLUSHED,
                f"volume {name}: {state.files} files, {state.bytes} B are safe on the card",
                cnm=self._cnm.id,
                instance=self._instance,
            )
            self._names.pop(0)
            self.next_volume()

        self._volumes.commit(name, self._instance, self._generation, state, committed)
