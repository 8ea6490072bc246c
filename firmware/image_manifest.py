"""What an image is: its manifest, judged whole.

Image manifest "apf-image/1": {"schema", "ref", "arch", "config": {"env", "entrypoint", "cmd",
"cwd", "user", "stop_signal"}, "layers": [{"digest": hex, "size_bytes"}]}, layers from the bottom.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

from firmware.fields import FieldError, Fields
from firmware.workload import canonical_arch

SCHEMA: Final = "apf-image/1"
MAX_LAYERS: Final = 128  # overlayfs and Docker stop at about as many
MAX_BLOB_BYTES: Final = 64 << 30
REF: Final = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._/:@+-]{0,254}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class ImageError(FieldError):
    """A manifest is refused; nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    digest: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageConfig:
    """What a component runs with unless its workload says otherwise."""

    env: Mapping[str, str]
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    cwd: str = ""
    user: str = ""
    stop_signal: int = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    ref: str  # with its tag
    arch: str  # OCI name
    config: ImageConfig
    layers: tuple[Layer, ...]

    @property
    def size_bytes(self) -> int:
        return sum(layer.size_bytes for layer in self.layers)

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Raises ImageError with the path of the wrong key."""
        fields = Fields(value, (), ImageError)
        fields.choice("schema", (SCHEMA,))
        image = cls(
            ref=normal_ref(fields.text("ref", pattern=REF, want="an image reference")),
            arch=canonical_arch(fields.text("arch", max_bytes=32)),
            config=fields.object("config", _config),
            layers=fields.objects("layers", _layer, max_items=MAX_LAYERS),
        )
        fields.done()
        if not image.layers:
            raise ImageError(("layers",), "at least one layer", "none")
        sizes: dict[bytes, int] = {}
        for index, layer in enumerate(image.layers):
            if sizes.setdefault(layer.digest, layer.size_bytes) != layer.size_bytes:
                raise ImageError(
                    ("layers", index, "size_bytes"),
                    f"{sizes[layer.digest]}, as for the same digest before",
                    str(layer.size_bytes),
                )
        return image

    def to_json(self) -> dict[str, object]:
        config = self.config
        return {
            "schema": SCHEMA,
            "ref": self.ref,
            "arch": self.arch,
            "config": {
                "env": dict(config.env),
                "entrypoint": list(config.entrypoint),
                "cmd": list(config.cmd),
                "cwd": config.cwd,
                "user": config.user,
                "stop_signal": config.stop_signal,
            },
            "layers": [
                {"digest": layer.digest.hex(), "size_bytes": layer.size_bytes}
                for layer in self.layers
            ],
        }


def normal_ref(ref: str) -> str:
    """With the tag that is meant: `busybox` is `busybox:latest`."""
    if "@" in ref or ":" in ref.rpartition("/")[2]:
        return ref
    return f"{ref}:latest"


def _config(fields: Fields) -> ImageConfig:
    return ImageConfig(
        env=fields.mapping(
            "env",
            max_items=256,
            key_pattern=re.compile(r"[^=\0]{1,256}"),
            key_want="a variable name without '='",
            max_bytes=32768,
        ),
        entrypoint=fields.texts("entrypoint", max_items=1024, max_bytes=32768),
        cmd=fields.texts("cmd", max_items=1024, max_bytes=32768),
        cwd=fields.text("cwd", ""),
        user=fields.text("user", "", max_bytes=64),
        stop_signal=fields.integer("stop_signal", 15, low=1, high=64),
    )


def _layer(fields: Fields) -> Layer:
    return Layer(
        digest=read_digest(fields, "digest"),
        size_bytes=fields.integer("size_bytes", low=1, high=MAX_BLOB_BYTES),
    )


def read_digest(fields: Fields, key: str) -> bytes:
    return bytes.fromhex(fields.text(key, pattern=_DIGEST, want="64 hex digits (SHA-256)"))
