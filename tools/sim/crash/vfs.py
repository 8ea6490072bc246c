"""SQLite's own writes, recorded: a VFS that stands before the system's. Ref: sqlite.org/vfs.html,
sqlite.org/c3ref/io_methods.html, sqlite.org/c3ref/vfs.html.

The library is the one that Python's `sqlite3` is linked to, so the code under test is the
production's, down to SQLite's build. (`apsw` would bring an SQLite of its own.) While it is
installed it is the default VFS. It is a copy of the system's table with three entries replaced;
each file that it opens keeps the system's methods but for write, truncate, sync and close, which
log and then do the same. Files outside the log's root are left alone.

The first sync of a log or a rollback journal that SQLite may have made also syncs its directory
(os_unix.c, UNIXFILE_DIRSYNC), which is not visible here and is added to the log. The strace(1)
test compares the whole log with the system calls.
"""

import ctypes
import ctypes.util
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from tools.sim.crash.events import Log, Resize, Sync, Write

OK: Final = 0
OPEN_CREATE: Final = 0x4  # sqlite.org/c3ref/c_open_autoproxy.html
OPEN_SYNCS_DIRECTORY: Final = 0x800 | 0x4000 | 0x80000  # main journal, super-journal, WAL
LIBRARY: Final = "libsqlite3.so.0"

_Pointer = ctypes.c_void_p
_Int = ctypes.c_int
_Offset = ctypes.c_int64
_OPEN: Final = ctypes.CFUNCTYPE(_Int, _Pointer, _Pointer, _Pointer, _Int, _Pointer)
_DELETE: Final = ctypes.CFUNCTYPE(_Int, _Pointer, ctypes.c_char_p, _Int)
_RANDOM: Final = ctypes.CFUNCTYPE(_Int, _Pointer, _Int, _Pointer)
_CLOSE: Final = ctypes.CFUNCTYPE(_Int, _Pointer)
_WRITE: Final = ctypes.CFUNCTYPE(_Int, _Pointer, _Pointer, _Int, _Offset)
_TRUNCATE: Final = ctypes.CFUNCTYPE(_Int, _Pointer, _Offset)
_SYNC: Final = ctypes.CFUNCTYPE(_Int, _Pointer, _Int)


class _Vfs(ctypes.Structure):
    """sqlite3_vfs, as far as we name it; the rest is copied as it is."""

    _fields_ = (  # type: ignore[mutable-override]
        ("version", _Int),
        ("file_bytes", _Int),
        ("path_limit", _Int),
        ("next", _Pointer),
        ("name", ctypes.c_char_p),
        ("data", _Pointer),
        ("open", _Pointer),
        ("delete", _Pointer),
        ("before_random", _Pointer * 6),  # access, full pathname, four for loading extensions
        ("random", _Pointer),
        ("rest", _Pointer * 7),
    )


class _Methods(ctypes.Structure):
    """sqlite3_io_methods, version 3."""

    _fields_ = (  # type: ignore[mutable-override]
        ("version", _Int),
        ("close", _Pointer),
        ("read", _Pointer),
        ("write", _Pointer),
        ("truncate", _Pointer),
        ("sync", _Pointer),
        ("rest", _Pointer * 13),
    )


class NotRecordable(Exception):
    """This Python's sqlite3 can't be watched; says why."""


def library() -> ctypes.CDLL:
    """The one that `sqlite3` uses. Raises NotRecordable when that is built in, or another."""
    try:
        found = ctypes.CDLL(LIBRARY)
    except OSError as exc:
        raise NotRecordable(f"{LIBRARY} can't be loaded: {exc}") from exc
    found.sqlite3_sourceid.restype = ctypes.c_char_p
    found.sqlite3_vfs_find.restype = _Pointer
    found.sqlite3_vfs_find.argtypes = (ctypes.c_char_p,)
    found.sqlite3_vfs_register.argtypes = (_Pointer, _Int)
    found.sqlite3_vfs_unregister.argtypes = (_Pointer,)
    found.sqlite3_randomness.argtypes = (_Int, _Pointer)
    connection = sqlite3.connect(":memory:")
    try:
        used = connection.execute("SELECT sqlite_source_id()").fetchone()[0]
    finally:
        connection.close()
    if found.sqlite3_sourceid().decode() != used:
        raise NotRecordable(f"{LIBRARY} is not the SQLite of this Python's sqlite3 ({used})")
    return found


class _File:
    """An open file's system methods, and what is known of it."""

    def __init__(self, methods: _Methods, path: str, node: int, *, syncs_dir: bool) -> None:
        self.methods = methods
        self.close = _CLOSE(methods.close)
        self.write = _WRITE(methods.write)
        self.truncate = _TRUNCATE(methods.truncate)
        self.sync = _SYNC(methods.sync)
        self.path = path
        self.node = node
        self.syncs_dir = syncs_dir


class _Recorder:
    """One installation. SQLite calls it on whatever thread uses a connection."""

    def __init__(self, lib: ctypes.CDLL, log: Log, seed: int) -> None:
        self._log = log
        self._rng = random.Random(seed)  # noqa: S311 - salts that are the same in every run
        self._files: dict[int, _File] = {}  # by the address of its sqlite3_file
        self.base_address: Final[int] = lib.sqlite3_vfs_find(None)
        self._base = _Vfs.from_address(self.base_address)
        self._base_open = _OPEN(self._base.open)
        self._base_delete = _DELETE(self._base.delete)
        # Python frees a callback that nobody holds; SQLite would then call into nothing.
        self._entries: list[Any] = [
            _OPEN(self._open),
            _DELETE(self._delete),
            _RANDOM(self._random),
            _CLOSE(self._close),
            _WRITE(self._write),
            _TRUNCATE(self._truncate),
            _SYNC(self._sync),
        ]
        self.vfs = _Vfs()
        ctypes.memmove(ctypes.byref(self.vfs), self.base_address, ctypes.sizeof(_Vfs))
        self.vfs.next = None
        self.vfs.name = b"apf-record"
        self.vfs.open, self.vfs.delete, self.vfs.random = (
            ctypes.cast(entry, _Pointer).value for entry in self._entries[:3]
        )
        self._tables: dict[int, tuple[_Methods, _Methods]] = {}  # system's address -> its, ours

    def _open(
        self, vfs: int, name: int | None, file: int, flags: int, flags_out: int | None
    ) -> int:
        answer: int = self._base_open(vfs, name, file, flags, flags_out)
        path = ctypes.string_at(name).decode() if name else ""
        if answer != OK or self._log.relative(path) is None or not path:
            return answer
        self._log.named(path)
        node = self._log.node(path)
        assert node is not None
        slot = _Pointer.from_address(file)  # sqlite3_file begins with the pointer to its methods
        assert slot.value is not None
        system, ours = self._table(slot.value)
        syncs_dir = bool(flags & OPEN_CREATE and flags & OPEN_SYNCS_DIRECTORY)
        self._files[file] = _File(system, path, node, syncs_dir=syncs_dir)
        slot.value = ctypes.addressof(ours)
        return answer

    def _table(self, address: int) -> tuple[_Methods, _Methods]:
        if address not in self._tables:
            system = _Methods.from_address(address)
            ours = _Methods()
            ctypes.memmove(ctypes.byref(ours), address, ctypes.sizeof(_Methods))
            ours.close, ours.write, ours.truncate, ours.sync = (
                ctypes.cast(entry, _Pointer).value for entry in self._entries[3:]
            )
            self._tables[address] = (system, ours)
        return self._tables[address]

    def _delete(self, vfs: int, name: bytes, sync_dir: int) -> int:
        answer: int = self._base_delete(vfs, name, sync_dir)
        if answer == OK:
            path = name.decode()
            self._log.unnamed(path)
            if sync_dir:
                self._log.synced_dir(_folder(path))
        return answer

    def _random(self, _vfs: int, length: int, out: int) -> int:
        ctypes.memmove(out, self._rng.randbytes(length), length)
        return length

    def _close(self, file: int) -> int:
        answer: int = self._files.pop(file).close(file)
        return answer

    def _write(self, file: int, data: int, length: int, offset: int) -> int:
        known = self._files[file]
        answer: int = known.write(file, data, length, offset)
        if answer == OK:
            self._log.add(Write(known.node, offset, ctypes.string_at(data, length)))
        return answer

    def _truncate(self, file: int, size: int) -> int:
        known = self._files[file]
        answer: int = known.truncate(file, size)
        if answer == OK:
            self._log.add(Resize(known.node, size))
        return answer

    def _sync(self, file: int, flags: int) -> int:
        known = self._files[file]
        answer: int = known.sync(file, flags)
        if answer == OK:
            self._log.add(Sync(known.node))
            if known.syncs_dir:
                known.syncs_dir = False
                self._log.synced_dir(_folder(known.path))
        return answer

    @property
    def idle(self) -> bool:
        return not self._files


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


@contextmanager
def recording_sqlite(log: Log, seed: int = 0) -> Iterator[Callable[[], bool]]:
    """Connections opened within are watched, and must be closed within. SQLite's random numbers
    (a WAL's salts) come from `seed`. Yields what tells whether all files are closed.

    Raises NotRecordable.
    """
    lib = library()
    recorder = _Recorder(lib, log, seed)
    if lib.sqlite3_vfs_register(ctypes.byref(recorder.vfs), 1) != OK:
        raise NotRecordable("SQLite did not take the VFS")
    lib.sqlite3_randomness(0, None)  # seed anew, from our VFS
    try:
        yield lambda: recorder.idle
    finally:
        assert recorder.idle, "a connection outlived the recording"
        lib.sqlite3_vfs_unregister(ctypes.byref(recorder.vfs))
        lib.sqlite3_vfs_register(recorder.base_address, 1)
        lib.sqlite3_randomness(0, None)
