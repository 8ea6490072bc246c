"""One valid APF body of each kind, made from the types of its fields."""

import dataclasses
import typing
from enum import IntEnum
from types import UnionType
from typing import Any

from protocol.apf import BODIES, Body

TEXTS = {"instance": "shop/db/0", "volume": "shop/data", "arch": "arm64", "kind": "gpu"}


def sample_bodies() -> dict[type[Body], Body]:
    return {kind: sample(kind) for kind in set(BODIES.values())}


def sample(kind: type[Any]) -> Any:
    """A value of a dataclass of `protocol.apf`: small numbers, known enum members."""
    return kind(**{f.name: _value(f.name, f.type) for f in dataclasses.fields(kind)})


def _value(name: str, kind: Any) -> Any:
    if isinstance(kind, UnionType):
        return next(iter(next(a for a in typing.get_args(kind) if issubclass(a, IntEnum))))
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        if name == "labels":
            return (("rack", "7"),)
        if name == "runtimes":
            return ("oci", "process")
        return (sample(item) if dataclasses.is_dataclass(item) else bytes(32),)
    if dataclasses.is_dataclass(kind):
        return sample(typing.cast("type", kind))
    if kind is bytes:
        size = 32 if "digest" in name else 16
        return {"bits": b"\x05", "layout_hash": bytes(8)}.get(name, b"d" * size)
    if kind is str:
        return TEXTS.get(name, "text")
    if issubclass(kind, IntEnum):
        return next(iter(kind))
    return {"chunk_bytes": 65536, "lease_ms": 5000, "present": 1}.get(name, 3)
