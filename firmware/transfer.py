"""Bulk data between the card and one CNM, by window and control link. protocol/SPEC.md 11, 12.

    card   TransferSender     push, pull, read_log
    CNM    TransferReceiver   takes blobs in, serves pulls, send_bytes for logs
    both   ChunkRoute         over a WindowChannel; sources take turns in the ring

A blob is admitted to a store only after the store has hashed all of it, so nothing on the way can
make a wrong one; what is lost on the way costs time only.
"""

from collections.abc import Callable
from typing import Final

from firmware.transfer_logs import LogBytes, LogReader, OnLog
from firmware.transfer_pull import Puller
from firmware.transfer_push import Pusher
from firmware.transfer_route import ChunkRoute, Done, Progress, Requester, TransferError
from firmware.transfer_serve import TransferReceiver
from firmware.window import WindowChannel
from hal.ports import BlobStore, Entropy, Reactor
from protocol.apf import Ctx

CHUNK_BYTES: Final = 65_536

__all__ = [
    "CHUNK_BYTES",
    "ChunkRoute",
    "LogBytes",
    "TransferError",
    "TransferReceiver",
    "TransferSender",
]


class TransferSender:
    """The card's side, one for each CNM's agent. Loop thread only."""

    def __init__(
        self,
        endpoint: Requester,
        channel: WindowChannel,
        blobs: BlobStore,
        reactor: Reactor,
        ctx: Callable[[], Ctx],
        *,
        entropy: Entropy,
    ) -> None:
        """Takes over the channel's callbacks but `on_fault`."""
        self.route = ChunkRoute(channel, reactor)
        # a random start: chunks of an earlier daemon's transfers must meet nobody
        self._next_id = int.from_bytes(entropy.random_bytes(4), "little")
        chunk_bytes = min(CHUNK_BYTES, channel.slot_bytes)
        self._pusher = Pusher(
            endpoint,
            self.route,
            blobs,
            reactor,
            ctx,
            chunk_bytes=chunk_bytes,
            take_id=self._take_id,
        )
        self._puller = Puller(
            endpoint,
            self.route,
            blobs,
            reactor,
            ctx,
            chunk_bytes=chunk_bytes,
            take_id=self._take_id,
        )
        self._logs = LogReader(endpoint, self.route, reactor, take_id=self._take_id)

    def push(
        self,
        digest: bytes,
        done: Done,
        *,
        progress: Progress | None = None,
        deadline_ns: int | None = None,
    ) -> None:
        """Have the CNM hold the blob. `done(None)` when it has hashed it, else a TransferError."""
        self._pusher.add(digest, done, progress, deadline_ns)

    def pull(
        self,
        digest: bytes,
        done: Done,
        *,
        progress: Progress | None = None,
        deadline_ns: int | None = None,
    ) -> None:
        """Fetch a blob into our store. `done(None)` when it is there and was hashed."""
        self._puller.add(digest, done, progress, deadline_ns)

    def read_log(self, instance: str, offset: int, max_bytes: int, done: OnLog) -> None:
        """Log bytes from `offset`; `done(LogBytes)` or `done(TransferError)`."""
        self._logs.read(instance, offset, max_bytes, done)

    def close(self, text: str) -> None:
        """The CNM is gone: end everything with TransferError "closed"."""
        self._pusher.close(text)
        self._puller.close(text)
        self._logs.close(text)

    def _take_id(self) -> int:
        transfer_id = self._next_id
        self._next_id = (transfer_id + 1) & 0xFFFF_FFFF
        return transfer_id
