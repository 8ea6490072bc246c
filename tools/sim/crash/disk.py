"""A disk with a volatile cache: what is durable, what is under way, and what a power cut leaves.

The model, as strict as POSIX lets a disk be:

    a write that is not synced may be lost, and may land before an earlier one
    a sector (512 B) is old or new, never half; which sectors of a write land is anybody's guess
    a file that grew may have its new size without its new bytes: zeros, any bytes, or what lay
        there before the file was shortened or another file of that name was removed
    a name (create, remove, rename) is durable after a sync of its directory, not of the file
    what was synced stays (no bit rot here, and no disk that lies about a flush)

Every outcome of one cut is a `Fate` for each change that is under way; an image is the files and
directories that the program finds after it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final, TypeAlias

from tools.sim.crash.events import (
    DIRECTORY,
    Acknowledged,
    Change,
    Event,
    Name,
    Rename,
    Resize,
    Submitted,
    Sync,
    SyncDir,
    Unname,
    Write,
)

SECTOR_BYTES: Final = 512


class Plain(Enum):
    """What became of a change as a whole."""

    LOST = "lost"
    LANDED = "landed"
    ZEROS = "zeros"  # of a write beyond the durable end: the size grew, the bytes did not come
    NOISE = "noise"  # the same, with bytes from nowhere
    STALE = "stale"  # the same, with what lay there before


@dataclass(frozen=True, slots=True)
class Torn:
    """Of a write: bit n is set where its n-th sector landed."""

    sectors: int


Fate: TypeAlias = Plain | Torn
Image: TypeAlias = Mapping[str, bytes | None]  # path -> content, None for a directory

# Bytes from nowhere; the same in every run. Odd length: no two sectors are alike.
_NOISE: Final = bytes((i * i * 31 + i * 7 + 13) % 251 for i in range(8191))


def sectors_of(write: Write) -> int:
    """How many sectors of the disk a write touches."""
    last = (write.offset + len(write.data) - 1) // SECTOR_BYTES
    return last - write.offset // SECTOR_BYTES + 1 if write.data else 0


class Disk:
    """Follows a log, event by event."""

    def __init__(self, image: Image | None = None, nodes: Mapping[str, int] | None = None) -> None:
        """Begins with `image`, all of it durable; `nodes` are its names' in the log."""
        self.names: dict[str, int] = dict(nodes or {})  # durable
        self.contents: dict[int, bytes] = {}  # durable
        self.pending: list[Change] = []  # in order
        self._stale: dict[int, bytes] = {}
        self._seen: dict[str, int] = dict(self.names)  # the names as the program sees them
        for path, node in self.names.items():
            content = (image or {})[path]
            if content is not None:
                self.contents[node] = content

    def copy(self) -> "Disk":
        """As it is now, for later."""
        twin = Disk()
        twin.names, twin.contents = dict(self.names), dict(self.contents)
        twin.pending = list(self.pending)
        twin._stale, twin._seen = dict(self._stale), dict(self._seen)
        return twin

    def seen(self) -> Image:
        """What a program finds that was killed, and started again while the power stayed on."""
        return self.image((Plain.LANDED,) * len(self.pending))

    def renumbered(self, nodes: Mapping[str, int]) -> "Disk":
        """The same disk, all that is under way included, for the log of a program that comes
        next: `nodes` are there the names of what is `seen`."""
        now = dict(self.names)
        for change in self.pending:
            if not isinstance(change, Write | Resize):
                _apply_name(now, change)
        ours = {DIRECTORY: DIRECTORY}
        ours |= {node: nodes[path] for path, node in now.items() if path in nodes}

        def new(node: int) -> int:
            return ours.setdefault(node, -node)  # no name is left of it: in no later log

        disk = Disk()
        disk.contents = {new(node): content for node, content in self.contents.items()}
        disk.names = {path: new(node) for path, node in self.names.items()}
        for change in self.pending:
            match change:
                case Write() | Resize():
                    disk.pending.append(replace(change, file=new(change.file)))
                case Name() | Rename():
                    disk.pending.append(replace(change, node=new(change.node)))
                case Unname():
                    disk.pending.append(change)
        disk._seen = dict(nodes)
        return disk

    def step(self, event: Event) -> None:
        """One thing more was done."""
        match event:
            case Sync(file=file):
                self._settle(file)
            case SyncDir(path=path):
                self._settle_names(path)
            case Submitted() | Acknowledged():
                pass
            case _:
                self._remember_stale(event)
                self.pending.append(event)

    def grows(self, write: Write) -> bool:
        """Whether some of it lies beyond the durable end of its file."""
        return write.offset + len(write.data) > len(self.contents.get(write.file, b""))

    def image(self, fates: Sequence[Fate], upto: Sequence[Change] | None = None) -> Image:
        """What is found after a cut now, with a fate for each pending change."""
        pending = self.pending if upto is None else upto
        changed: dict[int, list[tuple[Write | Resize, Fate]]] = {}
        names = dict(self.names)
        for change, fate in zip(pending, fates, strict=True):
            if isinstance(change, Write | Resize):
                if fate is not Plain.LOST:
                    changed.setdefault(change.file, []).append((change, fate))
            elif fate is Plain.LANDED:
                _apply_name(names, change)
        image: dict[str, bytes | None] = {}
        for path in sorted(names):  # a directory comes before what is in it
            folder = path.rpartition("/")[0]
            if folder and image.get(folder, b"") is not None:
                continue  # its directory did not survive, and neither does it
            node = names[path]
            image[path] = None if node == DIRECTORY else self._content(node, changed.get(node, ()))
        return image

    def _content(self, node: int, changes: Sequence[tuple[Write | Resize, Fate]]) -> bytes:
        durable = self.contents.get(node, b"")
        if not changes:
            return durable
        data = bytearray(durable)
        for change, fate in changes:
            if isinstance(change, Resize):
                _resize(data, change.size)
            else:
                self._write(data, change, fate, len(durable))
        return bytes(data)

    def _write(self, data: bytearray, write: Write, fate: Fate, durable_bytes: int) -> None:
        start, end = write.offset, write.offset + len(write.data)
        if len(data) < end:
            _resize(data, end)  # what a lost neighbour leaves between is zeros
        match fate:
            case Plain.LANDED:
                data[start:end] = write.data
            case Torn(sectors=mask):
                first = start // SECTOR_BYTES
                for number in range(sectors_of(write)):
                    if mask >> number & 1:
                        low = max(start, (first + number) * SECTOR_BYTES)
                        high = min(end, (first + number + 1) * SECTOR_BYTES)
                        data[low:high] = write.data[low - start : high - start]
            case _:
                low = max(start, durable_bytes)
                data[low:end] = self._filling(write.file, fate, low, end)

    def _filling(self, node: int, fate: Fate, low: int, high: int) -> bytes:
        if fate is Plain.ZEROS:
            return bytes(high - low)
        old = self._stale.get(node, b"")[low:high] if fate is Plain.STALE else b""
        turns = (high + len(_NOISE)) // len(_NOISE)
        return old + (_NOISE * turns)[low + len(old) : high]

    def _settle(self, node: int) -> None:
        ours = [
            (change, Plain.LANDED)
            for change in self.pending
            if isinstance(change, Write | Resize) and change.file == node
        ]
        if ours:
            self.contents[node] = self._content(node, ours)
            self.pending = [
                change
                for change in self.pending
                if not (isinstance(change, Write | Resize) and change.file == node)
            ]

    def _settle_names(self, folder: str) -> None:
        left: list[Change] = []
        for change in self.pending:
            match change:
                case Name(path=path) | Unname(path=path) if _folder(path) == folder:
                    _apply_name(self.names, change)
                case Rename(old=old, new=new, node=node) if folder in (_folder(old), _folder(new)):
                    if _folder(old) == _folder(new):
                        _apply_name(self.names, change)
                    elif _folder(new) == folder:
                        self.names[new] = node
                        left.append(Unname(old))
                    else:  # atomic: without the new name, the old one must not go
                        left.append(change)
                case _:
                    left.append(change)
        self.pending = left

    def _remember_stale(self, change: Change) -> None:
        """What a later file or a longer one may find on the blocks that it is given."""
        match change:
            case Resize(file=node, size=size):
                now = self._now(node)
                if size < len(now):
                    self._stale[node] = now + self._stale.get(node, b"")[len(now) :]
            case Name(path=path, node=node):
                before = self._seen.get(path)
                if before is not None and node != DIRECTORY:
                    self._stale[node] = self._now(before)
                self._seen[path] = node
            case Rename(new=new, node=node):
                self._seen[new] = node

    def _now(self, node: int) -> bytes:
        """As the program sees it."""
        return self._content(
            node,
            [
                (change, Plain.LANDED)
                for change in self.pending
                if isinstance(change, Write | Resize) and change.file == node
            ],
        )


def _apply_name(names: dict[str, int], change: Name | Unname | Rename) -> None:
    match change:
        case Name(path=path, node=node):
            names[path] = node
        case Unname(path=path):
            names.pop(path, None)
        case Rename(old=old, new=new, node=node):
            if names.get(old) == node:
                del names[old]
            names[new] = node


def _resize(data: bytearray, size: int) -> None:
    if size < len(data):
        del data[size:]
    else:
        data.extend(bytes(size - len(data)))


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
