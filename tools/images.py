"""Images from what people have: an OCI image layout (directory or tar), a `docker save` tar, a root
filesystem (directory or tar).

The result is an "apf-image/1" manifest and its layers as files, digests checked. Ref: OCI
image-spec v1.1 (image-layout.md, image-index.md, manifest.md, config.md). A rootfs directory is
packed to a deterministic tar: sorted, owned by root, times of 0, so that the same tree gives the
same digest. Layers are handed on as they are (tar, gzip or zstd); the CNM unpacks them.
"""

import bz2
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

from firmware.workload import canonical_arch
from tools.image_parts import Layer, PackedImage, bad_image, card_config, hash_layer
from tools.oci_layout import from_docker_save, from_layout

# What a damaged archive makes the standard library raise. OSError: also gzip and bz2.
BROKEN: Final = (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)

__all__ = ["Layer", "PackedImage", "open_image", "open_layer", "pack_tree"]


@contextmanager
def open_image(
    ref: str,
    source: str | Path,
    *,
    arch: str,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Iterator[PackedImage]:
    """Read SOURCE as an image for `arch`; temporary files live as long as the context.
    Raises BadUsage with what is wrong with it. `on_bytes` hears each piece that is hashed."""
    path = Path(source)
    with ExitStack() as stack:
        if not path.exists():
            raise bad_image(path, "there is no such file or directory")
        if path.is_dir():
            if (path / "index.json").is_file() and (path / "oci-layout").is_file():
                yield from_layout(ref, path, canonical_arch(arch), on_bytes)
            else:
                temp = _temp_dir(stack)
                packed = temp / "layer.tar"
                pack_tree(path, packed)
                yield _rootfs(ref, packed, canonical_arch(arch), on_bytes, "rootfs directory")
            return
        if not _is_tar(path):
            raise bad_image(path, "it is neither a directory nor a tar (plain, gzip, bzip2 or xz)")
        names = _top_names(path)
        if "index.json" in names and "oci-layout" in names:
            temp = _temp_dir(stack)
            _unpack_flat(path, temp)
            yield from_layout(ref, temp, canonical_arch(arch), on_bytes)
        elif "manifest.json" in names:
            temp = _temp_dir(stack)
            _unpack_flat(path, temp)
            yield from_docker_save(ref, temp, canonical_arch(arch), on_bytes)
        else:
            yield _rootfs(
                ref, _unpackable(path, stack), canonical_arch(arch), on_bytes, "rootfs tar"
            )


def pack_tree(root: Path, target: Path) -> None:
    """A deterministic tar of a directory tree. Devices, sockets and fifos are refused: an image
    that needs them does not come as a directory. Raises BadUsage."""
    links: dict[tuple[int, int], str] = {}
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in _walk(root):
            info = os.lstat(path)
            name = path.relative_to(root).as_posix()
            member = tarfile.TarInfo(name)
            member.mode = stat.S_IMODE(info.st_mode)
            if stat.S_ISDIR(info.st_mode):
                member.type = tarfile.DIRTYPE
                tar.addfile(member)
            elif stat.S_ISLNK(info.st_mode):
                member.type, member.linkname = tarfile.SYMTYPE, os.readlink(path)
                tar.addfile(member)
            elif stat.S_ISREG(info.st_mode):
                first = links.setdefault((info.st_dev, info.st_ino), name)
                if first != name:
                    member.type, member.linkname = tarfile.LNKTYPE, first
                    tar.addfile(member)
                    continue
                member.size = info.st_size
                with path.open("rb") as data:
                    tar.addfile(member, data)
            else:
                raise bad_image(
                    path, "it is a device, socket or fifo; pack it as an OCI image instead"
                )


def _walk(root: Path) -> Iterator[Path]:
    for entry in sorted(os.scandir(root), key=lambda item: item.name):
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))


def _rootfs(
    ref: str, path: Path, arch: str, on_bytes: Callable[[int], None], kind: str
) -> PackedImage:
    layer = hash_layer(path, None, on_bytes)
    config = card_config({})
    return PackedImage(ref=ref, arch=arch, config=config, layers=(layer,), source_kind=kind)


def _is_tar(path: Path) -> bool:
    try:
        with tarfile.open(path) as tar:
            tar.next()
    except BROKEN:
        return False
    return True


def _unpackable(path: Path, stack: ExitStack) -> Path:
    """The tar itself where a CNM can unpack it (plain or gzip), else decompressed."""
    with path.open("rb") as file:
        magic = file.read(6)
    opener: Callable[[Path], IO[bytes]] | None = None
    if magic == b"\xfd7zXZ\0":
        opener = lzma.open
    elif magic[:3] == b"BZh":
        opener = bz2.open
    if opener is None:
        return path
    target = _temp_dir(stack) / "layer.tar"
    try:
        with opener(path) as data, target.open("wb") as out:
            shutil.copyfileobj(data, out)
    except BROKEN as exc:
        raise bad_image(path, f"it can't be decompressed: {exc}") from exc
    return target


def _temp_dir(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="apf-image-")))


def _top_names(path: Path) -> set[str]:
    with _tar(path) as tar:
        return {member.name.removeprefix("./") for member in tar}


def _unpack_flat(path: Path, target: Path) -> None:
    """Files, directories and links of an archive of blobs, none of which may leave `target`.

    By hand: the filters of tarfile came with Python 3.11.4, and Debian 12 has 3.11.2.
    """
    root = target.resolve()
    with _tar(path) as tar:
        for member in tar:
            place = Path(os.path.normpath(root / member.name))
            inside = _inside(root, member.name) and _is_real(place.parent)
            if member.issym():
                link = f"{Path(member.name).parent}/{member.linkname}"
                inside &= _inside(root, link) and not member.linkname.startswith("/")
            if member.issparse():
                raise bad_image(path, f"member {member.name!r} is sparse: no archive of blobs is")
            if not inside:
                raise bad_image(path, f"member {member.name!r} would leave the archive")
            if place == root or not (member.isdir() or member.isreg() or member.issym()):
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            if member.isdir():
                place.mkdir(exist_ok=True)
            elif member.issym():
                place.unlink(missing_ok=True)
                place.symlink_to(member.linkname)
            else:
                place.unlink(missing_ok=True)
                data = tar.extractfile(member)
                assert data is not None  # it is a regular file
                with data, place.open("xb") as out:
                    shutil.copyfileobj(data, out)


def _inside(root: Path, name: str) -> bool:
    """Does a member's path stay below `root`, read as it is written?"""
    return Path(os.path.normpath(root / name)).is_relative_to(root) and not name.startswith("/")


def _is_real(place: Path) -> bool:
    """No link is on the way to it, nor a circle of them."""
    try:
        return place.resolve() == place
    except RuntimeError:  # what 3.11 says of a circle
        return False


@contextmanager
def _tar(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path) as tar:
            yield tar
    except BROKEN as exc:
        raise bad_image(path, f"the tar can't be read: {exc}") from exc


def open_layer(layer: Layer) -> IO[bytes]:
    """The file to hand over; the receiver checks size and digest again."""
    return layer.path.open("rb")
