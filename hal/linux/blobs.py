"""Content-addressed objects on a file system. Names: SHA-256 (FIPS 180-4), as in OCI layouts.

    <root>/sha256/ab/<64 hex digits>   whole, checked, synced, read-only
    <root>/partial/<64 hex digits>     being filled; kept over a restart, so that it can be resumed
    <root>/partial/put-1, ingest-1     scratch; removed at the next start

An object appears under its name by one rename after it was hashed and synced, so a crash leaves
partials only. One program owns the root.
"""

import hashlib
import itertools
import os
import re
import select
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from hal.errors import HalError, Refused, StoreFull, Unavailable
from hal.linux.beneath import write_all
from hal.linux.durable import make_dirs, sync_dir
from hal.linux.oserror import hal_error
from hal.linux.workers import Check, Workers
from hal.ports import Buffer, Done, Reactor

DIGEST_BYTES: Final = 32
_FOLD: Final = re.compile(r"[0-9a-f]{2}")
_NAME: Final = re.compile(r"[0-9a-f]{64}")
SMALL_LIMIT_BYTES: Final = 1 << 20  # of `put` and of one `read`
OBJECT_LIMIT_BYTES: Final = 1 << 42
PARTIAL_LIMIT: Final = 64  # objects being filled at a time
RESERVE_BYTES: Final = 1 << 20  # kept free, so that logs and journals go on
_STEP_BYTES: Final = 1 << 20  # hashed between two looks at the deadline, about 1 ms
_POLL_MS: Final = 100  # an ingest from a silent pipe looks at its deadline this often
SILENCE_LIMIT_MS: Final = 10_000  # and no pipe may hold one of the few workers up by silence


@dataclass(slots=True, kw_only=True)
class _Partial:
    fd: int
    size_bytes: int
    finishing: bool = False
    dropped: bool = False


class LinuxBlobStore:
    """`hal.ports.BlobStore`. `admit` and the reads may be called from worker threads too."""

    def __init__(self, root: str | Path, reactor: Reactor, workers: Workers) -> None:
        """Makes the directories. Of what an earlier run left half-filled, the newest 64 stay."""
        self._root = os.path.realpath(root)
        self._reactor = reactor
        self._workers = workers
        self._partials: dict[bytes, _Partial] = {}  # at most PARTIAL_LIMIT
        self._ingests: dict[int, list[int]] = {}  # number -> bytes to come; bounded by the workers
        self._serial = itertools.count()
        self._folds: set[str] = set()  # directories whose names this process synced; at most 256
        try:
            make_dirs(f"{self._root}/sha256", 0o700)
            make_dirs(f"{self._root}/partial", 0o700)
            self._tidy()
        except OSError as exc:
            raise hal_error(exc, f"blob store {self._root}") from exc

    def has(self, digest: bytes) -> int | None:
        try:
            return os.stat(self.path_of(digest)).st_size
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise hal_error(exc, f"blob {digest.hex()}") from exc

    def path_of(self, digest: bytes) -> str:
        """Where the object is once it is whole. Raises Refused for what is no digest."""
        name = _hex(digest)
        return f"{self._root}/sha256/{name[:2]}/{name}"

    def read(self, digest: bytes, offset: int, length: int) -> bytes:
        if offset < 0 or not 0 <= length <= SMALL_LIMIT_BYTES:
            raise Refused(
                f"blob {_hex(digest)}: read of {length} B at {offset}; "
                f"at most {SMALL_LIMIT_BYTES} B at a time"
            )
        try:
            fd = os.open(self.path_of(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as exc:
            raise Unavailable(f"blob {digest.hex()} is not in the store") from exc
        except OSError as exc:
            raise hal_error(exc, f"blob {digest.hex()}") from exc
        try:
            return os.pread(fd, length, offset)
        except OSError as exc:
            raise hal_error(exc, f"blob {digest.hex()} at {offset}") from exc
        finally:
            os.close(fd)

    def put(self, data: Buffer) -> bytes:
        if len(data) > SMALL_LIMIT_BYTES:
            raise Refused(f"put of {len(data)} B; at most {SMALL_LIMIT_BYTES}, use begin")
        digest = hashlib.sha256(data).digest()
        if self.has(digest) is None:
            self._make_room(len(data))
            path = self._scratch("put")
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
                try:
                    write_all(fd, data)
                    os.fsync(fd)
                finally:
                    os.close(fd)
                self._admit(path, digest)
            except OSError as exc:
                _unlink(path)
                raise hal_error(exc, f"put of {len(data)} B into {self._root}") from exc
        return digest

    def begin(self, digest: bytes, size_bytes: int) -> None:
        if not 0 <= size_bytes <= OBJECT_LIMIT_BYTES:
            raise Refused(f"blob {_hex(digest)}: size {size_bytes} B, at most {OBJECT_LIMIT_BYTES}")
        if self.has(digest) is not None:
            return
        known = self._partials.get(digest)
        if known is not None and known.size_bytes == size_bytes:
            return
        if known is not None and known.finishing:
            raise Refused(f"blob {digest.hex()} is being checked; wait for that")
        if known is None and len(self._partials) >= PARTIAL_LIMIT:
            raise StoreFull(f"{PARTIAL_LIMIT} objects are being filled already; finish or drop one")
        self._make_room(size_bytes)
        try:
            if known is None:
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                fd = os.open(self._partial_path(digest), flags, 0o600)
                known = self._partials[digest] = _Partial(fd=fd, size_bytes=size_bytes)
            os.ftruncate(known.fd, size_bytes)
        except OSError as exc:
            raise hal_error(exc, f"blob {digest.hex()} of {size_bytes} B") from exc
        known.size_bytes = size_bytes

    def write_chunk(self, digest: bytes, offset: int, data: Buffer) -> None:
        """Raises Refused also when the object was not begun or is being checked, and StoreFull
        when the disk is; the object stays partial then."""
        known = self._partials.get(digest)
        if known is None or known.finishing:
            state = "was not begun" if known is None else "is being checked"
            raise Refused(f"blob {_hex(digest)} {state}: no chunk can be written")
        if offset < 0 or offset + len(data) > known.size_bytes:
            raise Refused(
                f"blob {digest.hex()}: chunk of {len(data)} B at {offset} is outside "
                f"its {known.size_bytes} B"
            )
        try:
            write_all(known.fd, data, offset)
        except OSError as exc:
            raise hal_error(exc, f"blob {digest.hex()}: chunk at {offset}") from exc

    def submit_finish(self, digest: bytes, deadline_ns: int, done: Done[None]) -> None:
        if self.has(digest) is not None:
            self._reactor.post(lambda: done(None))
            return
        known = self._partials.get(digest)
        if known is None or known.finishing:
            state = "was not begun" if known is None else "is being checked already"
            refusal = Refused(f"blob {_hex(digest)} {state}")
            self._reactor.post(lambda: done(refusal))
            return
        known.finishing = True
        self._workers.submit(
            f"check of blob {digest.hex()}",
            partial(self._finish, digest, known),
            deadline_ns,
            partial(self._finished, digest, known, done),
        )

    def submit_ingest(
        self, fd: int, size_bytes: int, digest: bytes, deadline_ns: int, done: Done[None]
    ) -> None:
        """Bytes of the descriptor beyond `size_bytes` are not read."""

        number, left = next(self._serial), [size_bytes]

        def finished(result: bytes | HalError | None) -> None:
            self._ingests.pop(number, None)
            os.close(fd)
            done(result if isinstance(result, HalError) else None)

        try:
            if not 0 <= size_bytes <= OBJECT_LIMIT_BYTES:
                raise Refused(f"blob {_hex(digest)}: size {size_bytes} B")
            present = self.has(digest) is not None
            if not present:
                self._make_room(size_bytes)
        except HalError as exc:
            refusal = exc
            self._reactor.post(lambda: finished(refusal))
            return
        if present:
            self._reactor.post(lambda: finished(None))
            return
        self._ingests[number] = left
        self._workers.submit(
            f"ingest of blob {digest.hex()}",
            partial(self.admit, fd, size_bytes, digest, left=left),
            deadline_ns,
            finished,
        )

    def drop(self, digest: bytes) -> None:
        _hex(digest)
        known = self._partials.get(digest)
        if known is not None and known.finishing:
            known.dropped = True  # the worker still reads it; removed when it comes back
        elif known is not None:
            self._forget(digest)
        else:
            _unlink(self._partial_path(digest))  # of an earlier run
        _unlink(self.path_of(digest))

    def digests(self, first: int | None = None) -> Sequence[bytes]:
        """What is no object of ours (lost+found) is left alone."""
        names: list[str] = []
        top = f"{self._root}/sha256"
        wanted = _FOLD if first is None else re.compile(f"{first:02x}")
        try:
            for fold in filter(wanted.fullmatch, os.listdir(top)):
                names += filter(_NAME.fullmatch, os.listdir(f"{top}/{fold}"))
        except OSError as exc:
            raise hal_error(exc, f"blob store {self._root}") from exc
        return [bytes.fromhex(name) for name in sorted(names)]

    def close(self) -> None:
        """Close the partial objects' descriptors; the workers must have been closed before."""
        for known in self._partials.values():
            os.close(known.fd)
        self._partials.clear()

    def admit(
        self,
        fd: int,
        size_bytes: int,
        digest: bytes | None,
        check: Check,
        *,
        left: list[int] | None = None,
    ) -> bytes:
        """Copy from a descriptor, hash, sync, rename; on a worker thread. Returns the digest.
        `left` has one element, which is kept at the number of bytes that are still to come.

        Raises Refused when it has another digest than the one expected, or ends early; without
        an expected digest (a file that somebody writes to) what came is what is stored.
        """
        path = self._scratch("ingest")
        hasher = hashlib.sha256()
        ready = select.poll()
        ready.register(fd, select.POLLIN)
        try:
            out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
            try:
                left = left if left is not None else [size_bytes]
                silent_ms = 0
                while left[0]:
                    check()
                    if not ready.poll(_POLL_MS):
                        silent_ms += _POLL_MS
                        if silent_ms >= SILENCE_LIMIT_MS:
                            raise Refused(f"the source was silent for {silent_ms} ms")
                        continue
                    silent_ms = 0
                    data = os.read(fd, min(left[0], _STEP_BYTES))
                    if not data and digest is None:
                        break
                    if not data:
                        raise Refused(f"the source ended {left[0]} B short of {size_bytes} B")
                    hasher.update(data)
                    write_all(out, data)
                    left[0] -= len(data)
                found = hasher.digest()
                _compare(digest, found, size_bytes)
                os.fsync(out)
            finally:
                os.close(out)
            self._admit(path, found)
        except BaseException:
            _unlink(path)
            raise
        return found

    def _tidy(self) -> None:
        """Removes scratch and the oldest partials beyond PARTIAL_LIMIT."""
        top = f"{self._root}/partial"
        left = []
        for name in os.listdir(top):
            if len(name) == 2 * DIGEST_BYTES:
                left.append((os.stat(f"{top}/{name}").st_mtime_ns, name))
            else:
                os.unlink(f"{top}/{name}")
        for _, name in sorted(left, reverse=True)[PARTIAL_LIMIT:]:
            os.unlink(f"{top}/{name}")

    def _finish(self, digest: bytes, known: _Partial, check: Check) -> None:
        hasher = hashlib.sha256()
        for offset in range(0, known.size_bytes, _STEP_BYTES):
            check()
            hasher.update(os.pread(known.fd, _STEP_BYTES, offset))
        _compare(digest, hasher.digest(), known.size_bytes)
        os.fchmod(known.fd, 0o400)
        os.fsync(known.fd)
        if not known.dropped:
            self._admit(self._partial_path(digest), digest)

    def _finished(
        self, digest: bytes, known: _Partial, done: Done[None], result: HalError | None
    ) -> None:
        known.finishing = False
        if known.dropped:
            result = Refused(f"blob {digest.hex()} was dropped while it was checked")
            _unlink(self.path_of(digest))
        if result is None or isinstance(result, Refused):
            self._forget(digest)
        done(result)

    def _forget(self, digest: bytes) -> None:
        os.close(self._partials.pop(digest).fd)
        _unlink(self._partial_path(digest))

    def _admit(self, path: str, digest: bytes) -> None:
        final = self.path_of(digest)
        fold = os.path.dirname(final)
        if fold not in self._folds:
            make_dirs(fold, 0o700)
            self._folds.add(fold)
        os.rename(path, final)
        sync_dir(fold)

    def _make_room(self, size_bytes: int) -> None:
        """Raises StoreFull unless it fits beside what was promised to those being filled."""
        try:
            info = os.statvfs(self._root)
        except OSError as exc:
            raise hal_error(exc, f"free space of {self._root}") from exc
        promised = sum(
            max(0, known.size_bytes - os.fstat(known.fd).st_blocks * 512)
            for known in self._partials.values()
        )
        promised += sum(left[0] for left in self._ingests.values())
        free = info.f_bavail * info.f_frsize - promised - RESERVE_BYTES
        if size_bytes > free:
            raise StoreFull(
                f"{self._root}: {size_bytes} B wanted, {max(0, free)} B free "
                f"({promised} B promised to objects being filled)"
            )

    def _partial_path(self, digest: bytes) -> str:
        return f"{self._root}/partial/{_hex(digest)}"

    def _scratch(self, why: str) -> str:
        return f"{self._root}/partial/{why}-{next(self._serial)}"


def _hex(digest: bytes) -> str:
    if len(digest) != DIGEST_BYTES:
        raise Refused(f"a digest has {DIGEST_BYTES} bytes, found {len(digest)}")
    return digest.hex()


def _compare(wanted: bytes | None, found: bytes, size_bytes: int) -> None:
    if wanted is not None and wanted != found:
        raise Refused(f"blob {wanted.hex()}: the {size_bytes} B that came have {found.hex()}")


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
