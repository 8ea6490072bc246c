"""Images from what people have: an OCI image layout (directory or tar), a `docker save` tar, a root
filesystem (directory or tar).

The result is an "apf-image/1" manifest and its layers as files, digests checked. Ref: OCI
image-spec v1.1 (image-layout.md, image-index.md, manifest.md, config.md). A rootfs directory is
packed to a deterministic tar: sorted, owned by root, times of 0, so that the same tree gives the
same digest. Layers are handed on as they are (tar, gzip or zstd); the CNM unpacks them.
"""

import hashlib
import json
import os
import re
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

from firmware.workload import canonical_arch
from tools.errors import BadUsage
from tools.signals import signal_number

SCHEMA: Final = "apf-image/1"
MAX_LAYERS: Final = 128
MAX_JSON_BYTES: Final = 4 << 20
COPY_BYTES: Final = 1 << 20
MAX_INDEX_DEPTH: Final = 3
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_INDEX_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer as a readable file of our own or of the source."""

    digest: str  # hex SHA-256 of the bytes in the file
    size_bytes: int
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedImage:
    """What `image.begin` wants, and the files behind it."""

    ref: str
    arch: str
    config: dict[str, Any]
    layers: tuple[Layer, ...]
    source_kind: str = field(default="")

    def manifest(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "ref": self.ref,
            "arch": self.arch,
            "config": self.config,
            "layers": [
                {"digest": layer.digest, "size_bytes": layer.size_bytes} for layer in self.layers
            ],
        }


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
            raise _bad(path, "there is no such file or directory")
        if path.is_dir():
            if (path / "index.json").is_file() and (path / "oci-layout").is_file():
                yield _from_layout(ref, path, canonical_arch(arch), on_bytes)
            else:
                temp = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="apf-image-")))
                packed = temp / "layer.tar"
                pack_tree(path, packed)
                yield _rootfs(ref, packed, canonical_arch(arch), on_bytes, "rootfs directory")
            return
        if not _is_tar(path):
            raise _bad(path, "it is neither a directory nor a tar (plain, gzip, bzip2 or xz)")
        names = _top_names(path)
        if "index.json" in names and "oci-layout" in names:
            temp = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="apf-image-")))
            _unpack_flat(path, temp)
            yield _from_layout(ref, temp, canonical_arch(arch), on_bytes)
        elif "manifest.json" in names:
            temp = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="apf-image-")))
            _unpack_flat(path, temp)
            yield _from_docker_save(ref, temp, canonical_arch(arch), on_bytes)
        else:
            yield _rootfs(ref, path, canonical_arch(arch), on_bytes, "rootfs tar")


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
                raise _bad(path, "it is a device, socket or fifo; pack it as an OCI image instead")


def _walk(root: Path) -> Iterator[Path]:
    for entry in sorted(os.scandir(root), key=lambda item: item.name):
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))


def _rootfs(
    ref: str, path: Path, arch: str, on_bytes: Callable[[int], None], kind: str
) -> PackedImage:
    layer = _layer(path, None, on_bytes)
    config = _config({})
    return PackedImage(ref=ref, arch=arch, config=config, layers=(layer,), source_kind=kind)


def _from_layout(ref: str, root: Path, arch: str, on_bytes: Callable[[int], None]) -> PackedImage:
    index = _load_json(root / "index.json")
    manifest = _pick(root, index, arch, 0)
    config = _blob_json(root, manifest.get("config"))
    found = canonical_arch(str(config.get("architecture", arch)))
    if found != arch:
        raise _bad(root, f"the image is for {found}, asked for {arch} (--arch {found} imports it)")
    layers = tuple(
        _layer(_blob_path(root, item), item, on_bytes)
        for item in _list(root, manifest, "layers", MAX_LAYERS)
    )
    return PackedImage(
        ref=ref,
        arch=arch,
        config=_config(config.get("config") or {}),
        layers=layers,
        source_kind="OCI layout",
    )


def _pick(root: Path, index: dict[str, Any], arch: str, depth: int) -> dict[str, Any]:
    """The manifest for the architecture, through nested indexes."""
    if depth > MAX_INDEX_DEPTH:
        raise _bad(root, f"indexes nest deeper than {MAX_INDEX_DEPTH}")
    entries = [item for item in _list(root, index, "manifests", 1000) if isinstance(item, dict)]
    real = [item for item in entries if _platform(item)[1] != "unknown"]  # attestations
    fitting = [item for item in real if _platform(item)[1] in ("", arch)]
    if not fitting:
        have = ", ".join(sorted({_platform(item)[1] for item in real})) or "none"
        raise _bad(root, f"no manifest for {arch}; it has: {have}")
    if len(fitting) > 1:
        exact = [item for item in fitting if _platform(item) == ("linux", arch)]
        if len(exact) != 1:
            raise _bad(root, f"{len(fitting)} manifests would do; export one image only")
        fitting = exact
    document = _blob_json(root, fitting[0])
    kind = document.get("mediaType") or fitting[0].get("mediaType")
    if kind in _INDEX_TYPES or "manifests" in document:
        return _pick(root, document, arch, depth + 1)
    return document


def _platform(item: dict[str, Any]) -> tuple[str, str]:
    platform = item.get("platform")
    if not isinstance(platform, dict):
        return "", ""
    return str(platform.get("os", "")), canonical_arch(str(platform.get("architecture", "")))


def _from_docker_save(
    ref: str, root: Path, arch: str, on_bytes: Callable[[int], None]
) -> PackedImage:
    """The older format of `docker save`: manifest.json names config and layer files."""
    entries = json.loads(_bounded(root / "manifest.json"))
    if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
        raise _bad(root / "manifest.json", "one image is wanted; save a single one")
    config = _load_json(_inside(root, str(entries[0].get("Config", ""))))
    found = canonical_arch(str(config.get("architecture", arch)))
    if found != arch:
        raise _bad(root, f"the image is for {found}, asked for {arch} (--arch {found} imports it)")
    layers = tuple(
        _layer(_inside(root, str(name)), None, on_bytes)
        for name in _list(root, entries[0], "Layers", MAX_LAYERS)
    )
    diff_ids = (config.get("rootfs") or {}).get("diff_ids") or []
    for layer, diff_id in zip(layers, diff_ids, strict=False):
        if _is_plain_tar(layer.path) and diff_id != f"sha256:{layer.digest}":
            raise _bad(layer.path, f"its digest is {layer.digest}, the image says {diff_id}")
    return PackedImage(
        ref=ref,
        arch=arch,
        config=_config(config.get("config") or {}),
        layers=layers,
        source_kind="docker save",
    )


def _config(raw: dict[str, Any]) -> dict[str, Any]:
    """The part of an OCI image config that a card uses (config.md, "config")."""
    env = {}
    for item in raw.get("Env") or []:
        key, _, value = str(item).partition("=")
        env[key] = value
    signal_text = raw.get("StopSignal") or "SIGTERM"
    number = signal_number(str(signal_text))
    if number is None:
        raise BadUsage("bad_image", f"the image's StopSignal {signal_text!r} is no signal")
    return {
        "env": env,
        "entrypoint": [str(item) for item in raw.get("Entrypoint") or []],
        "cmd": [str(item) for item in raw.get("Cmd") or []],
        "cwd": str(raw.get("WorkingDir") or ""),
        "user": str(raw.get("User") or ""),
        "stop_signal": number,
    }


def _layer(path: Path, descriptor: object, on_bytes: Callable[[int], None]) -> Layer:
    """Hash the file; a descriptor's digest and size must hold."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as data:
        while piece := data.read(COPY_BYTES):
            digest.update(piece)
            size += len(piece)
            on_bytes(len(piece))
    if isinstance(descriptor, dict):
        want = (descriptor.get("digest"), descriptor.get("size"))
        got = (f"sha256:{digest.hexdigest()}", size)
        if want != got:
            raise _bad(path, f"wanted {want[0]} of {want[1]} bytes, found {got[0]} of {got[1]}")
    return Layer(digest=digest.hexdigest(), size_bytes=size, path=path)


def _blob_path(root: Path, descriptor: object) -> Path:
    text = str(descriptor.get("digest", "")) if isinstance(descriptor, dict) else ""
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise _bad(root, f"a descriptor with digest {text[:80]!r}; only sha256 is taken")
    path = root / "blobs" / "sha256" / match[1]
    if not path.is_file():
        raise _bad(root, f"blob sha256:{match[1]} is not in the layout")
    return path


def _blob_json(root: Path, descriptor: object) -> dict[str, Any]:
    path = _blob_path(root, descriptor)
    _layer(path, descriptor, lambda count: None)
    return _load_json(path)


def _load_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(_bounded(path))
    except (ValueError, RecursionError) as exc:
        raise _bad(path, f"not JSON: {exc}") from exc
    if not isinstance(document, dict):
        raise _bad(path, "not a JSON object")
    return document


def _bounded(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as exc:
        raise _bad(path, str(exc.strerror)) from exc
    if len(data) > MAX_JSON_BYTES:
        raise _bad(path, f"more than {MAX_JSON_BYTES} bytes of JSON")
    return data


def _list(root: Path, document: dict[str, Any], key: str, most: int) -> Sequence[Any]:
    value = document.get(key)
    if not isinstance(value, list) or not 0 < len(value) <= most:
        raise _bad(root, f"{key}: wanted a list of 1 to {most}")
    return value


def _inside(root: Path, name: str) -> Path:
    path = (root / name).resolve()
    if not name or not path.is_relative_to(root.resolve()) or not path.is_file():
        raise _bad(root, f"{name!r} is not in the archive")
    return path


def _is_tar(path: Path) -> bool:
    try:
        with tarfile.open(path) as tar:
            tar.next()
    except (tarfile.TarError, OSError, EOFError):
        return False
    return True


def _is_plain_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except (tarfile.TarError, OSError):
        return False


def _top_names(path: Path) -> set[str]:
    with _tar(path) as tar:
        return {member.name.removeprefix("./") for member in tar}


def _unpack_flat(path: Path, target: Path) -> None:
    """Regular files and directories only, by the `data` filter: nothing leaves `target`."""
    with _tar(path) as tar:
        for member in tar:
            if member.isdir() or member.isreg() or member.issym():
                tar.extract(member, target, filter="data")


@contextmanager
def _tar(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path) as tar:
            yield tar
    except (tarfile.TarError, EOFError, OSError) as exc:
        raise _bad(path, f"the tar can't be read: {exc}") from exc


def open_layer(layer: Layer) -> IO[bytes]:
    """The file to hand over; the receiver checks size and digest again."""
    return layer.path.open("rb")


def _bad(path: Path, why: str) -> BadUsage:
    return BadUsage("bad_image", f"{path}: {why}", {"source": str(path)})
