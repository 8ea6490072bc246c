"""What makes trees of files: layers, checkouts, image layouts, and the tables of an image's users.

Each input works in a directory beside others that it must not touch; they are looked at afterwards.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from firmware.cnm.spec import read_manifest, write_manifest
from firmware.fields import FieldError
from firmware.image_manifest import Image, ImageError
from hal.errors import HalError, Refused
from hal.linux.beneath import DIR_FLAGS, remove_tree
from hal.linux.layers import Budget, unpack_layer
from hal.linux.oserror import hal_error
from hal.linux.trees import LinuxTrees
from hal.linux.users import find_user
from hal.ports import FileInfo
from tests.fuzz.reader import Reader, all_keys, edited
from tests.fuzz.target import Check, Target
from tools.errors import BadUsage
from tools.images import open_image

NAMES = (
    *("a", "b", "a/b", "a/b/c", "d", "./a", "a/", "", ".", "..", "../out", "a/../../out", "/a"),
    *("d/out", "l/f", "l", ".wh.a", ".wh..wh..opq", "a/.wh.b", ".wh.", "\u00e9", "n" * 256),
    *("l/../out/kept", "../out/kept", "bad\udcff", "nul\0x", "oci-layout", "index.json", ".wh..."),
)
LINKS = ("a", "../out", "/", "..", "a/b", "../../out/kept", "l", ".", "", "{out}", "{out}/kept")
KINDS = (b"0", b"0", b"5", b"2", b"1", b"6", b"3", b"4", b"L", b"x", b"g", b"7", b"S", b"\0", b"V")


class Place:
    """`root` to work in; `out` beside it, which nobody may change."""

    def __init__(self, scratch: Path) -> None:
        self.top = scratch
        self.out = scratch / "out"
        self.out.mkdir()
        (self.out / "kept").write_bytes(b"kept")
        self.before = self._seen()
        self.serial = 0

    def _seen(self) -> list[tuple[str, bytes, int, int]]:
        kept = self.out / "kept"
        return [
            *((name, b"", os.lstat(self.out / name).st_mode, 0) for name in os.listdir(self.out)),
            ("", kept.read_bytes(), kept.stat().st_mode, kept.stat().st_nlink),
            ("", b"", self.out.stat().st_mode, 0),
        ]

    def check(self, *allowed: str) -> None:
        assert self._seen() == self.before, "something outside was touched"
        assert set(os.listdir(self.top)) <= {"out", *allowed}, os.listdir(self.top)


def _built(reader: Reader, out: Path) -> bytes:
    """A tar out of a program: members of any kind under names that are known to be trouble."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for _ in range(12):
            if not reader.left:
                break
            info = tarfile.TarInfo(reader.choice(NAMES))
            info.type = reader.choice(KINDS)
            info.linkname = reader.choice(LINKS).format(out=out)
            info.mode = reader.number(2) & 0o7777
            data = reader.take(reader.byte() % 20) if info.type in (b"0", b"\0", b"7") else b""
            info.size = len(data)
            if reader.byte() > 240:
                info.uid = reader.number(4)
            try:
                archive.addfile(info, io.BytesIO(data))
            except (ValueError, UnicodeEncodeError):
                continue
    wire = bytearray(buffer.getvalue())
    for _ in range(reader.left // 3):  # what is left turns bytes over, headers mostly
        at = reader.number(2) % len(wire)
        wire[at] ^= reader.byte()
    return bytes(wire)


def _layer(data: bytes, out: Path) -> bytes:
    """A program (its first byte below 4; 1 is gzip) or the bytes of the layer themselves."""
    if not data or data[0] > 3:
        return data
    wire = _built(Reader(data[1:]), out)
    return gzip.compress(wire, 1) if data[0] & 1 else wire


def _parts(data: bytes) -> list[bytes]:
    """Bit 1 of a program's first byte: it makes two layers, one on top of the other."""
    if not data or data[0] > 3 or not data[0] & 2:
        return [data]
    half = len(data) // 2 + 1
    return [data[:half], data[:1] + data[half:]]


def _never() -> None:
    pass


def layers(scratch: Path) -> Check:
    """Two layers on top of each other: what the first leaves, the second may walk through."""
    place = Place(scratch)
    top = os.open(scratch, DIR_FLAGS)

    def check(data: bytes) -> bool:
        os.mkdir("root", dir_fd=top)
        root = os.open("root", DIR_FLAGS, dir_fd=top)
        good = True
        try:
            for part in _parts(data):
                try:
                    blob = io.BytesIO(_layer(part, place.out))
                    unpack_layer(blob, root, "layer", Budget(1 << 20), _never, devices=False)
                except Refused:
                    good = False
                except OSError as exc:  # a disk's, as the workers take it
                    assert isinstance(hal_error(exc, "layer"), HalError)
                    good = False
            _walk(root)
        finally:
            os.close(root)
            remove_tree(top, "root")
        place.check()
        return good

    return check


def _walk(fd: int) -> None:
    """Nothing in the tree is a device, or another mount."""
    for name in os.listdir(fd):
        info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        assert (info.st_mode & 0o170000) not in (0o020000, 0o060000), "a device was made"


ROWS = [
    (FileInfo(path=".", kind="dir", mode=0o755, size_bytes=0), b""),
    (FileInfo(path="d", kind="dir", mode=0o700, size_bytes=0), b""),
    (FileInfo(path="d/f", kind="file", mode=0o644, size_bytes=4), b"BLOB" * 8),
    (FileInfo(path="l", kind="symlink", mode=0o777, size_bytes=0, target="../out"), b""),
]
MANIFEST = json.loads(write_manifest(ROWS))
PATHS = tuple(name for name in NAMES if name.isprintable())


class OneBlob:
    """A store that has one blob under every digest."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_bytes(b"data")

    def has(self, _digest: bytes) -> int:
        return 4

    def path_of(self, _digest: bytes) -> str:
        return str(self._path)


def checkout(scratch: Path) -> Check:
    """A manifest that a peer wrote, checked out into a directory."""
    place = Place(scratch)
    blobs = OneBlob(scratch / "out.blob")
    trees = LinuxTrees.__new__(LinuxTrees)
    trees._blobs = blobs  # type: ignore[assignment]
    top = os.open(scratch, DIR_FLAGS)
    words = (*all_keys(MANIFEST), *PATHS)

    def check(data: bytes) -> bool:
        manifest = edited(MANIFEST, Reader(data), words)
        raw = json.dumps(manifest).encode(errors="surrogatepass")
        try:
            entries = list(read_manifest(raw))
        except FieldError:
            return False
        os.mkdir("root", dir_fd=top)
        root = os.open("root", DIR_FLAGS, dir_fd=top)
        good = True
        try:
            trees._checkout(entries, root, _never)
        except Refused:
            good = False
        except OSError as exc:
            assert isinstance(hal_error(exc, "checkout"), HalError)
            good = False
        finally:
            os.close(root)
            remove_tree(top, "root")
        place.check("out.blob")
        return good

    return check


INDEX = {
    "schemaVersion": 2,
    "manifests": [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": "@manifest",
            "size": "@manifest",
            "platform": {"os": "linux", "architecture": "amd64"},
        }
    ],
}
MANIFEST_OCI = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {"digest": "@config", "size": "@config"},
    "layers": [{"digest": "@layer", "size": "@layer"}],
}
CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "config": {
        "Env": ["PATH=/bin"],
        "Entrypoint": ["/bin/sh"],
        "Cmd": ["-c"],
        "WorkingDir": "/srv",
        "User": "10",
        "StopSignal": "SIGINT",
    },
    "rootfs": {"type": "layers", "diff_ids": ["@layer"]},
}
SAVED = [{"Config": "config.json", "RepoTags": ["a:b"], "Layers": ["layer.tar"]}]
OCI_WORDS = all_keys(INDEX, MANIFEST_OCI, CONFIG, SAVED)


def _resolved(document: Any, blobs: dict[str, bytes]) -> Any:
    """`@name` becomes the digest of a blob, or its size where the key is `size`."""
    if isinstance(document, list):
        return [_resolved(item, blobs) for item in document]
    if not isinstance(document, dict):
        if isinstance(document, str) and document[1:] in blobs and document[0] == "@":
            return f"sha256:{hashlib.sha256(blobs[document[1:]]).hexdigest()}"
        return document
    found = {key: _resolved(item, blobs) for key, item in document.items()}
    name = document.get("size")
    if isinstance(name, str) and name[1:] in blobs:
        found["size"] = len(blobs[name[1:]])
    return found


def _layout(data: bytes) -> dict[str, bytes]:
    """The files that an engine wrote; one of its documents was edited."""
    reader = Reader(data)
    which = reader.byte() % 8
    blobs = {"layer": b"layer"}
    documents: dict[str, Any] = {"config": CONFIG, "manifest": MANIFEST_OCI}
    for name, document in documents.items():
        if name == ("config", "manifest")[which % 2]:
            document = edited(document, reader, OCI_WORDS)
        blobs[name] = _bytes(_resolved(document, blobs))
    index = edited(INDEX, reader, OCI_WORDS) if which >= 6 else INDEX
    files = {
        "oci-layout": b"{}",
        "index.json": _bytes(_resolved(index, blobs)),
        **{f"blobs/sha256/{hashlib.sha256(b).hexdigest()}": b for b in blobs.values()},
    }
    if which in (2, 3):  # docker save
        saved = edited(SAVED, reader, OCI_WORDS) if which == 3 else SAVED
        files = {"manifest.json": _bytes(saved), "config.json": blobs["config"], "layer.tar": b"l"}
    if which == 4:
        files["index.json"] = reader.rest()
    return files


def _bytes(document: Any) -> bytes:
    return json.dumps(document).encode(errors="surrogatepass")


def image_layout(scratch: Path) -> Check:
    """An OCI layout or a `docker save`, as a directory or packed."""
    place = Place(scratch)
    root, packed = scratch / "root", scratch / "image.tar"
    temp = scratch / "temp"
    (root / "blobs/sha256").mkdir(parents=True)

    def check(data: bytes) -> bool:
        temp.mkdir()
        files = _layout(data[1:])
        written = [packed]
        try:
            if "oci-layout" in files and data[0] & 7 != 7:
                written = [root / name for name in files]
                for path, content in zip(written, files.values(), strict=True):
                    path.write_bytes(content)
                return _import(root, temp)
            packed.write_bytes(_packed(files))
            return _import(packed, temp)
        finally:
            _clear(*written, temp)
            place.check("root")

    return lambda data: check(data or b"\0")


def _packed(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def image_tar(scratch: Path) -> Check:
    """Any tar, or what calls itself one, as an image."""
    place = Place(scratch)
    packed, temp = scratch / "image.tar", scratch / "temp"

    def check(data: bytes) -> bool:
        temp.mkdir()
        packed.write_bytes(_layer(data, place.out))
        try:
            return _import(packed, temp)
        finally:
            _clear(packed, temp)
            place.check()

    return check


def _import(source: Path, temp: Path) -> bool:
    tempfile.tempdir, before = str(temp), tempfile.tempdir
    try:
        with open_image("a:b", source, arch="amd64") as packed:
            json.dumps(packed.manifest())
            try:
                Image.from_json(packed.manifest())
            except ImageError:  # the daemon has the last word on what it is told
                return False
    except BadUsage as exc:
        assert exc.code == "bad_image"
        return False
    finally:
        tempfile.tempdir = before
    assert os.listdir(temp) == []
    return True


def _clear(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def users(scratch: Path) -> Check:
    """The passwd and group files of a tenant's image, and a user by name or number."""
    (scratch / "etc").mkdir()

    def check(data: bytes) -> bool:
        text, _, rest = data.partition(b"\0")
        passwd, _, group = rest.partition(b"\0")
        (scratch / "etc/passwd").write_bytes(passwd)
        (scratch / "etc/group").write_bytes(group)
        try:
            user = find_user(str(scratch), text.decode(errors="replace"))
        except Refused:
            return False
        assert 0 <= user.uid <= 0xFFFF_FFFE
        assert 0 <= user.gid <= 0xFFFF_FFFE
        assert all(0 <= number <= 0xFFFF_FFFE for number in user.groups)
        return True

    return check


def _programs() -> Iterable[bytes]:
    yield b"\0" + bytes([0, 0, 0, 0o44, 1, 3]) + b"abc\0" + bytes([2, 2, 0, 0, 1, 0])
    for name in range(len(NAMES)):
        for kind in (0, 2, 3, 4):
            link = name % len(LINKS)
            yield bytes([0, 15, 3, link, 0, 1, 0, name, kind, link, 0o44, 1, 2]) + b"xy\0"
    yield b"\0" + bytes([0, 0, 0, 0, 1, 3]) + b"abc\0" + bytes([100, 0, 1, 156, 0, 255, 124, 0, 9])
    yield b"\3" + bytes([0, 2, 0, 0, 1, 0, 2, 0, 0, 0, 1, 5]) + b"12345\0"
    yield b"\2" + bytes([16, 2, 1, 0, 0, 0, 8, 0, 0, 0, 1, 0])
    yield b"\1" + bytes([0, 15, 3, 1, 0, 0, 0, 0, 14, 0, 0, 0, 1, 1]) + b"z"


def _raw() -> Iterable[bytes]:
    place = Path("/nowhere")
    for program in list(_programs())[1:40:5]:
        wire = _layer(program, place)
        yield gzip.compress(wire.rstrip(b"\0") + bytes(1024), 9)
    yield gzip.compress(_layer(b"\0" + bytes([23, 9, 0, 0, 1, 0]), place), 9)


def _edits(count: int, heads: int) -> Callable[[], Iterable[bytes]]:
    def seeds() -> Iterable[bytes]:
        for place in range(count):
            for head in range(heads):
                yield bytes([place & 1, head, 1, place, 5, 1, place])
                yield bytes([place & 1, head, 1, 0, place, 5, 3, 0])
                yield bytes([place & 1, head, 0, 1, place, 255, 4, place, 2, place])

    return seeds


TARGETS = (
    Target(
        name="layers",
        text="image layers onto a tree: links, names and headers that want out",
        make=layers,
        seeds=lambda: [*_programs(), *_raw()],
        max_bytes=1024,
    ),
    Target(
        name="checkout",
        text="a volume's manifest checked out",
        make=checkout,
        seeds=_edits(16, 3),
        max_bytes=256,
    ),
    Target(
        name="image_layout",
        text="an OCI layout or a `docker save` whose documents were edited",
        make=image_layout,
        seeds=_edits(8, 8),
        max_bytes=512,
    ),
    Target(
        name="image_tar",
        text="a tar with members that want out, as an image",
        make=image_tar,
        seeds=lambda: [*_programs(), *_raw()],
        max_bytes=1024,
    ),
    Target(
        name="users",
        text="an image's passwd and group files",
        make=users,
        seeds=lambda: [
            b"web:adm\0root:x:0:0:r:/root:/bin/sh\nweb:x:7:8::/srv:\n\0adm:x:4:web,a\nweb:x:8:\n",
            *(b"7\0web:x:7:8::/srv:\n\0a:x:9:web\n", b"1:2\0\0", b"\0root:x:0:0::/:\n\0"),
        ],
        words=(b":", b"\n", b"\0", b"web", "²".encode(), b"4294967295", b",web"),
        max_bytes=300,
    ),
)
