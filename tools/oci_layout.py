"""Images as engines write them: OCI image layouts and the older `docker save` format, unpacked.

Ref: OCI image-spec v1.1 (image-layout.md, image-index.md, manifest.md, config.md).
"""

import json
import re
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from firmware.workload import canonical_arch
from tools.image_parts import PackedImage, bad_image, card_config, hash_layer

MAX_LAYERS: Final = 128
MAX_JSON_BYTES: Final = 4 << 20
MAX_INDEX_DEPTH: Final = 3
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_INDEX_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


def from_layout(ref: str, root: Path, arch: str, on_bytes: Callable[[int], None]) -> PackedImage:
    index = _load_json(root / "index.json")
    manifest = _pick(root, index, arch, 0)
    config = _blob_json(root, manifest.get("config"))
    found = canonical_arch(str(config.get("architecture", arch)))
    if found != arch:
        raise bad_image(
            root, f"the image is for {found}, asked for {arch} (--arch {found} imports it)"
        )
    layers = tuple(
        hash_layer(_blob_path(root, item), item, on_bytes)
        for item in _list(root, manifest, "layers", MAX_LAYERS)
    )
    return PackedImage(
        ref=ref,
        arch=arch,
        config=card_config(_part(root, config, "config")),
        layers=layers,
        source_kind="OCI layout",
    )


def _pick(root: Path, index: dict[str, Any], arch: str, depth: int) -> dict[str, Any]:
    """The manifest for the architecture, through nested indexes."""
    if depth > MAX_INDEX_DEPTH:
        raise bad_image(root, f"indexes nest deeper than {MAX_INDEX_DEPTH}")
    entries = [item for item in _list(root, index, "manifests", 1000) if isinstance(item, dict)]
    real = [item for item in entries if _platform(item)[1] != "unknown"]  # attestations
    fitting = [item for item in real if _platform(item)[1] in ("", arch)]
    if not fitting:
        have = ", ".join(sorted({_platform(item)[1] for item in real})) or "none"
        raise bad_image(root, f"no manifest for {arch}; it has: {have}")
    if len(fitting) > 1:
        exact = [item for item in fitting if _platform(item) == ("linux", arch)]
        if len(exact) != 1:
            raise bad_image(root, f"{len(fitting)} manifests would do; export one image only")
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


def from_docker_save(
    ref: str, root: Path, arch: str, on_bytes: Callable[[int], None]
) -> PackedImage:
    """The older format of `docker save`: manifest.json names config and layer files."""
    entries = _json(root / "manifest.json")
    if not isinstance(entries, list) or len(entries) != 1 or not isinstance(entries[0], dict):
        raise bad_image(root / "manifest.json", "one image is wanted; save a single one")
    config = _load_json(_inside(root, str(entries[0].get("Config", ""))))
    found = canonical_arch(str(config.get("architecture", arch)))
    if found != arch:
        raise bad_image(
            root, f"the image is for {found}, asked for {arch} (--arch {found} imports it)"
        )
    layers = tuple(
        hash_layer(_inside(root, str(name)), None, on_bytes)
        for name in _list(root, entries[0], "Layers", MAX_LAYERS)
    )
    rootfs = _part(root, config, "rootfs")
    diff_ids = _list(root, rootfs, "diff_ids", MAX_LAYERS) if rootfs.get("diff_ids") else ()
    for layer, diff_id in zip(layers, diff_ids, strict=False):
        if _is_plain_tar(layer.path) and diff_id != f"sha256:{layer.digest}":
            raise bad_image(layer.path, f"its digest is {layer.digest}, the image says {diff_id}")
    return PackedImage(
        ref=ref,
        arch=arch,
        config=card_config(_part(root, config, "config")),
        layers=layers,
        source_kind="docker save",
    )


def _is_plain_tar(path: Path) -> bool:
    try:
        with tarfile.open(path, "r:"):
            return True
    except (tarfile.TarError, OSError, ValueError):
        return False


def _blob_path(root: Path, descriptor: object) -> Path:
    text = str(descriptor.get("digest", "")) if isinstance(descriptor, dict) else ""
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise bad_image(root, f"a descriptor with digest {text[:80]!r}; only sha256 is taken")
    path = root / "blobs" / "sha256" / match[1]
    if not path.is_file():
        raise bad_image(root, f"blob sha256:{match[1]} is not in the layout")
    return path


def _blob_json(root: Path, descriptor: object) -> dict[str, Any]:
    path = _blob_path(root, descriptor)
    hash_layer(path, descriptor, lambda count: None)
    return _load_json(path)


def _load_json(path: Path) -> dict[str, Any]:
    document = _json(path)
    if not isinstance(document, dict):
        raise bad_image(path, "not a JSON object")
    return document


def _json(path: Path) -> object:
    try:
        document: object = json.loads(_bounded(path))
    except (ValueError, RecursionError) as exc:
        raise bad_image(path, f"not JSON: {exc}") from exc
    return document


def _part(root: Path, document: dict[str, Any], key: str) -> dict[str, Any]:
    """An object in it; absent or null is empty."""
    value = document.get(key) or {}
    if not isinstance(value, dict):
        raise bad_image(root, f"{key}: wanted an object, found {value!r:.60}")
    return value


def _bounded(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
    except OSError as exc:
        raise bad_image(path, str(exc.strerror)) from exc
    if len(data) > MAX_JSON_BYTES:
        raise bad_image(path, f"more than {MAX_JSON_BYTES} bytes of JSON")
    return data


def _list(root: Path, document: dict[str, Any], key: str, most: int) -> Sequence[Any]:
    value = document.get(key)
    if not isinstance(value, list) or not 0 < len(value) <= most:
        raise bad_image(root, f"{key}: wanted a list of 1 to {most}")
    return value


def _inside(root: Path, name: str) -> Path:
    try:
        path = (root / name).resolve()
        found = path.is_relative_to(root.resolve()) and path.is_file()
    except (ValueError, RuntimeError, OSError) as exc:  # a zero byte, a circle of links, too long
        raise bad_image(root, f"{name[:80]!r} is no path of a file") from exc
    if not found:
        raise bad_image(root, f"{name!r} is not in the archive")
    return path
