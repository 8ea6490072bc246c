"""What the readers of images share: layers, the card's manifest, and how a bad one is said."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tools.errors import BadUsage
from tools.signals import signal_number

SCHEMA: Final = "apf-image/1"
COPY_BYTES: Final = 1 << 20


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


def hash_layer(path: Path, descriptor: object, on_bytes: Callable[[int], None]) -> Layer:
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
            raise bad_image(
                path, f"wanted {want[0]} of {want[1]} bytes, found {got[0]} of {got[1]}"
            )
    return Layer(digest=digest.hexdigest(), size_bytes=size, path=path)


def card_config(raw: dict[str, Any]) -> dict[str, Any]:
    """The part of an OCI image config that a card uses (config.md, "config")."""
    env = {}
    for item in _texts(raw, "Env"):
        key, _, value = item.partition("=")
        env[key] = value
    signal_text = raw.get("StopSignal") or "SIGTERM"
    number = signal_number(str(signal_text))
    if number is None:
        raise BadUsage("bad_image", f"the image's StopSignal {signal_text!r} is no signal")
    return {
        "env": env,
        "entrypoint": _texts(raw, "Entrypoint"),
        "cmd": _texts(raw, "Cmd"),
        "cwd": str(raw.get("WorkingDir") or ""),
        "user": str(raw.get("User") or ""),
        "stop_signal": number,
    }


def _texts(raw: dict[str, Any], key: str) -> list[str]:
    """A list of strings; absent or null is empty."""
    value = raw.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise BadUsage("bad_image", f"the image's {key}: wanted a list of strings")
    return value


def bad_image(path: Path, why: str) -> BadUsage:
    return BadUsage("bad_image", f"{path}: {why}", {"source": str(path)})
