"""Image layers onto a tree. Ref: OCI image-spec v1.0, layer.md; POSIX pax, ustar (through tarfile).

Every name is resolved below the tree's own descriptor (`beneath`): a member behind "..", an
absolute name, or a symlink that is absolute or climbs out, of this layer or an earlier one, makes
the whole unpack Refused. Setuid bits and, for root, owners are kept; extended attributes are not.
"""

import contextlib
import os
import stat
import tarfile
import zlib
from gzip import GzipFile
from typing import IO, BinaryIO, Final, Protocol, cast

from hal.errors import Refused
from hal.linux.beneath import open_dir, remove_tree, resolve_dir, split_path, write_all
from hal.linux.workers import Check

MEMBERS_LIMIT: Final = 1_000_000  # of one layer
TREE_LIMIT_BYTES: Final = 1 << 36  # 64 GiB unpacked: a bomb ends here if the disk is larger
HEADER_LIMIT_BYTES: Final = 1 << 20  # of one read that tarfile asks for: pax headers, long names
_STEP_BYTES: Final = 1 << 18
_WHITEOUT: Final = ".wh."
_OPAQUE: Final = ".wh..wh..opq"
_ID_LIMIT: Final = 0xFFFF_FFFE  # (uid_t) -1 means "leave as it is" to chown(2)
_MAGIC: Final = {
    b"\x28\xb5\x2f\xfd": "application/vnd.oci.image.layer.v1.tar+zstd",
    b"BZh": "tar compressed with bzip2",
    b"\xfd7zXZ\x00": "tar compressed with xz",
}


class _Reader(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class Budget:
    """What one unpack may still take, over all its layers."""

    def __init__(self, limit_bytes: int = TREE_LIMIT_BYTES) -> None:
        self._limit_bytes = self._left_bytes = limit_bytes

    def take(self, size_bytes: int) -> None:
        """Raises Refused when it is used up."""
        self._left_bytes -= size_bytes
        if self._left_bytes < 0:
            raise Refused(f"the layers unpack to more than {self._limit_bytes} B")


class _Forward:
    """A stream that tarfile may only read forwards, in bounded pieces: a compressed layer must
    not be able to make it hold gigabytes, nor start over to seek back."""

    def __init__(self, source: _Reader, budget: Budget) -> None:
        self._source = source
        self._budget = budget
        self._position = 0
        self._last = b""  # the byte before the position: tarfile looks back by one
        self._back = False
        self.header = b""  # the last block that was read as a header

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= HEADER_LIMIT_BYTES:
            raise Refused(f"a header of {size} B in a layer; at most {HEADER_LIMIT_BYTES} B")
        head = self._last if self._back and size else b""
        data = head + self._fill(size - len(head))
        if data:
            self._position += len(data)
            self._last, self._back = data[-1:], False
        if size == tarfile.BLOCKSIZE or not data:
            self.header = data
        return data

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position == self._position - 1 and self._last and not self._back:
            self._back = True
            self._position -= 1
            return position
        while self._position < position:
            if not self.read(min(position - self._position, _STEP_BYTES)):
                break
        if position < self._position:
            raise Refused(f"a layer wants to be read backwards, to {position}")
        return self._position

    def _fill(self, size: int) -> bytes:
        pieces = []
        while size:
            piece = self._source.read(size)
            if not piece:
                break
            self._budget.take(len(piece))
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


def unpack_layer(
    blob: BinaryIO, root_fd: int, what: str, budget: Budget, check: Check, *, devices: bool
) -> None:
    """One layer on top of what is in the tree. Raises Refused for a layer that is damaged, of a
    kind that we can't read, or wants out; OSError for the disk."""
    head = blob.read(6)
    blob.seek(0)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            raise Refused(f"{what}: {kind}: this program reads tar and tar+gzip layers only")
    source: _Reader = GzipFile(fileobj=blob) if head.startswith(b"\x1f\x8b") else blob
    forward = _Forward(source, budget)
    try:
        with tarfile.open(
            fileobj=cast(IO[bytes], forward),  # it needs read, seek and tell only
            mode="r:",
            format=tarfile.PAX_FORMAT,
            encoding="utf-8",
        ) as archive:
            _Layer(root_fd, budget, check, devices=devices).unpack(archive)
        if forward.header.strip(b"\0"):
            # tarfile takes a bad header after the first one for the end
            raise Refused(f"{what}: damaged header after {forward.tell()} B")
        while forward.read(_STEP_BYTES):  # to the end: gzip's CRC is there
            check()
    except (
        tarfile.TarError,
        zlib.error,
        EOFError,
        ValueError,
        ArithmeticError,
        RecursionError,
    ) as exc:
        raise Refused(f"{what}: damaged, or no tar: {exc!r}") from exc
    except NotADirectoryError as exc:
        raise Refused(f"{what}: a member lies below a file") from exc
    except OSError as exc:
        if exc.errno is None:  # gzip.BadGzipFile, not the disk
            raise Refused(f"{what}: damaged gzip: {exc}") from exc
        raise


class _Layer:
    """The members of one layer, in order."""

    def __init__(self, root_fd: int, budget: Budget, check: Check, *, devices: bool) -> None:
        self._root_fd = root_fd
        self._budget = budget
        self._check = check
        self._devices = devices
        self._owners = os.geteuid() == 0
        # What this layer made, with all parents: whiteouts are about lower layers only.
        self._made: set[tuple[int, int]] = set()  # (device, inode), at most MEMBERS_LIMIT

    def unpack(self, archive: tarfile.TarFile) -> None:
        count = 0
        while (member := archive.next()) is not None:
            self._check()
            vars(archive)["members"] = []  # tarfile would keep every one
            count += 1
            if count > MEMBERS_LIMIT:
                raise Refused(f"a layer of more than {MEMBERS_LIMIT} members")
            self._take(archive, member)

    def _take(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        parts = split_path(_plain(member.name))
        if not parts:
            if member.isdir():
                self._attributes(self._root_fd, member)
            return
        *above, name = parts
        if name.startswith(_WHITEOUT):
            self._whiteout(above, name)
            return
        parent = resolve_dir(self._root_fd, above, make=True, on_make=self._own)
        try:
            self._own(parent)
            if member.isdir():
                self._directory(parent, name, member)
                return
            remove_tree(parent, name, self._check)
            if member.isreg():
                self._file(archive, parent, name, member)
            elif member.issym():
                os.symlink(member.linkname, name, dir_fd=parent)
                self._link_attributes(parent, name, member)
            elif member.islnk():
                self._hard_link(parent, name, member)
            elif member.isfifo():
                os.mkfifo(name, 0o600, dir_fd=parent)
                self._node_attributes(parent, name, member)
            elif member.isdev():
                self._device(parent, name, member)
            else:
                raise Refused(f"member {member.name!r} has the unknown type {member.type!r}")
            with contextlib.suppress(FileNotFoundError):  # a device that was left out
                info = os.stat(name, dir_fd=parent, follow_symlinks=False)
                self._made.add((info.st_dev, info.st_ino))
        finally:
            os.close(parent)

    def _own(self, fd: int) -> None:
        info = os.fstat(fd)
        self._made.add((info.st_dev, info.st_ino))

    def _directory(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=parent)
                os.mkdir(name, 0o700, dir_fd=parent)
        fd = open_dir(parent, [name])
        try:
            self._own(fd)
            self._attributes(fd, member)
        finally:
            os.close(fd)

    def _file(
        self, archive: tarfile.TarFile, parent: int, name: str, member: tarfile.TarInfo
    ) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        if member.issparse():
            self._budget.take(member.size)  # of its holes nothing is read
        source = archive.extractfile(member)
        assert source is not None  # it is a regular file
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        try:
            left = member.size
            while left:
                self._check()
                data = source.read(min(left, _STEP_BYTES))
                if not data:
                    raise Refused(f"member {member.name!r} ends {left} B early")
                write_all(fd, data)
                left -= len(data)
            self._attributes(fd, member)
            os.utime(fd, (member.mtime, member.mtime))
        finally:
            os.close(fd)

    def _hard_link(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        parts = split_path(_plain(member.linkname))
        if not parts:
            raise Refused(f"hard link {member.name!r} to the tree itself")
        try:
            there = resolve_dir(self._root_fd, parts[:-1])
            try:
                os.link(parts[-1], name, src_dir_fd=there, dst_dir_fd=parent, follow_symlinks=False)
            finally:
                os.close(there)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as exc:
            raise Refused(
                f"hard link {member.name!r} to {member.linkname!r}: {exc.strerror}"
            ) from exc

    def _device(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        if not self._devices:
            return  # a runtime makes the ones that a container may have
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        os.mknod(name, kind | 0o600, os.makedev(member.devmajor, member.devminor), dir_fd=parent)
        self._node_attributes(parent, name, member)

    def _whiteout(self, above: list[str], name: str) -> None:
        hidden = name[len(_WHITEOUT) :]
        if hidden in ("", ".", ".."):
            raise Refused(f"whiteout {'/'.join([*above, name])!r} names nothing")
        try:
            parent = resolve_dir(self._root_fd, above)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            if name == _OPAQUE:
                for below in os.listdir(parent):
                    self._hide(parent, below)
            elif not hidden.startswith(_WHITEOUT):  # .wh..wh.* are bookkeeping of aufs
                self._hide(parent, hidden)
        finally:
            os.close(parent)

    def _hide(self, parent: int, name: str) -> None:
        """Remove what lower layers had; in a directory of this layer only their part."""
        try:
            info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if (info.st_dev, info.st_ino) not in self._made:
            remove_tree(parent, name, self._check)
        elif stat.S_ISDIR(info.st_mode):
            fd = open_dir(parent, [name])
            try:
                for below in os.listdir(fd):
                    self._hide(fd, below)
            finally:
                os.close(fd)

    def _attributes(self, fd: int, member: tarfile.TarInfo) -> None:
        mode = member.mode & 0o7777
        if self._owners:
            os.fchown(fd, *_ids(member))
        elif member.isdir():
            mode |= 0o700  # or what comes next could not be made in it
        os.fchmod(fd, mode)  # after the owner: a chown clears setuid

    def _link_attributes(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        if self._owners:
            os.chown(name, *_ids(member), dir_fd=parent, follow_symlinks=False)

    def _node_attributes(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        self._link_attributes(parent, name, member)
        os.chmod(name, member.mode & 0o7777, dir_fd=parent)  # just made, so no symlink


def _plain(name: str) -> str:
    """A member's name without "./" and a trailing "/"; anything else odd is for `split_path`."""
    name = name.rstrip("/") or name
    while name.startswith("./"):
        name = name[2:]
    return "" if name == "." else name


def _ids(member: tarfile.TarInfo) -> tuple[int, int]:
    for number in (member.uid, member.gid):
        if not 0 <= number <= _ID_LIMIT:
            raise Refused(f"member {member.name!r} has the owner {member.uid}:{member.gid}")
    return member.uid, member.gid
