"""A volume's way home: the module reads it, the card fetches what is new, then it counts.

flush     the module scans the volume; it is asked how far it is every POLL_NS
fetch     its manifest, then the contents that are not here, PULLS_AT_ONCE at a time
commit    the manifest becomes the one that counts (DESIGN section 4, rule 13)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from firmware.endpoint import RequestError
from firmware.events import EventCode, EventLog
from firmware.inventory import Cnm
from firmware.loop import MS, Loop
from firmware.transfer import TransferError
from firmware.turns import TURNS_MOST, Flags, Turns
from firmware.volume_manifest import VolumeError, manifest_digests, read_manifest
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

POLL_NS: Final = 50 * MS
FLUSH_DEADLINE_NS: Final = 540_000 * MS  # below the control socket's limit for an answer
PULLS_AT_ONCE: Final = 4

Flushed = Callable[[str], None]  # "" or what went wrong


class Commit(Protocol):
    """Makes a checked manifest the one that counts."""

    def __call__(
        self, name: str, instance: str, generation: int, state: VolumeStateReply, done: Flushed
    ) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """Where volumes come home to; the same for all flushes."""

    loop: Loop
    blobs: BlobStore
    events: EventLog
    turns: Turns  # of the flushes, by volume
    ctx: Callable[[Cnm], Ctx]
    commit: Commit


class VolumeFlush:
    """One instance's volumes on their way home."""

    def __init__(
        self,
        home: Home,
        cnm: Cnm,
        instance: str,
        generation: int,
        names: list[str],
        done: Flushed,
    ) -> None:
        self._home = home
        self._cnm = cnm
        self._boot_id = cnm.boot_id
        self._instance = instance
        self._generation = generation
        self._names = names
        self._done = done
        self._answer: Callable[[bool], None] = lambda _good: None  # gives the volume's turn back
        self._text = ""  # why it failed
        self._deadline_ns = home.loop.now_ns() + FLUSH_DEADLINE_NS

    def next_volume(self) -> None:
        """Flushes of one volume follow each other: one that was read before another may not become
        what counts after it."""
        if not self._names:
            self._done("")
            return
        self._text = f"{TURNS_MOST} flushes of it wait already"
        self._home.turns.take(self._names[0], self._begin, self._ended)

    def _begin(self, _flags: Flags, answer: Callable[[bool], None]) -> None:
        self._answer = answer
        name = self._names[0]
        request = VolumeFlushRequest(
            ctx=self._home.ctx(self._cnm),
            instance=self._instance,
            generation=self._generation,
            volume=name,
        )
        self._cnm.agent.request(request, self._on_flush)

    def _fail(self, text: str) -> None:
        self._text = text
        self._answer(False)

    def _ended(self, good: bool) -> None:
        name = self._names.pop(0)
        if good:
            self.next_volume()
            return
        text = f"volume {name}: {self._text}"
        self._home.events.emit(
            EventCode.VOLUME_FLUSH_FAILED, text, cnm=self._cnm.id, instance=self._instance
        )
        self._done(text)

    def _on_flush(self, reply: VolumeFlushReply | RequestError) -> None:
        if isinstance(reply, RequestError):
            self._fail(str(reply))
        else:
            self._poll(reply.flush_id)

    def _poll(self, flush_id: int) -> None:
        if self._home.loop.now_ns() >= self._deadline_ns or self._cnm.boot_id != self._boot_id:
            self._fail("the module did not finish reading it in time")
            return
        request = VolumeStateRequest(volume=self._names[0], flush_id=flush_id)
        self._cnm.agent.request(request, lambda reply: self._on_state(reply, flush_id))

    def _on_state(self, reply: VolumeStateReply | RequestError, flush_id: int) -> None:
        if isinstance(reply, RequestError):
            self._fail(str(reply))
        elif reply.state == FlushState.SCANNING:
            self._home.loop.call_later(POLL_NS, lambda: self._poll(flush_id))
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
                name = self._names[0]
                data = read_manifest(self._home.blobs, state.manifest_digest, name)
                digests = manifest_digests(data, name)
            except (VolumeError, HalError) as exc:
                self._fail(str(exc))
                return
            self._pull(list(dict.fromkeys(digests)), lambda: self._commit(state))

        self._pull_one(state.manifest_digest, have_manifest)

    def _pull_one(self, digest: bytes, done: Callable[[TransferError | None], None]) -> None:
        transfers = self._cnm.transfers
        try:
            there = self._home.blobs.has(digest) is not None
        except HalError as exc:
            done(TransferError(str(exc)))
            return
        if there:
            done(None)
        elif transfers is None:
            done(TransferError("the window is down"))
        else:
            transfers.pull(digest, done)

    def _pull(self, digests: list[bytes], done: Callable[[], None]) -> None:
        """All of them, a few at a time; the first failure ends it, once."""
        try:
            waiting = [digest for digest in digests if self._home.blobs.has(digest) is None]
        except HalError as exc:
            self._fail(str(exc))
            return
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
            self._home.events.emit(
                EventCode.VOLUME_FLUSHED,
                f"volume {name}: {state.files} files, {state.bytes} B are safe on the card",
                cnm=self._cnm.id,
                instance=self._instance,
            )
            self._answer(True)

        self._home.commit(name, self._instance, self._generation, state, committed)
