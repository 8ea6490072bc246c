"""The nodes that `protocol.decode` gives, and values as they stand in them."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, TypeAlias

Node: TypeAlias = dict[str, Any]


def node(
    layer: str,
    fields: Mapping[str, Any],
    error: Mapping[str, Any] | None = None,
    inner: Node | None = None,
) -> Node:
    """One layer's node; it is ok when it has no error."""
    return {
        "layer": layer,
        "ok": error is None,
        "error": None if error is None else dict(error),
        "fields": dict(fields),
        "inner": inner,
    }


def error_of(code: str, offset: int | None, text: str) -> dict[str, Any]:
    """What is wrong, where (a byte of the layer, or None), and in words."""
    return {"code": code, "offset": offset, "text": text}


def values_of(item: object) -> dict[str, Any]:
    """The fields of a dataclass, for JSON; an enum gives its number and `<name>_name`."""
    assert is_dataclass(item)
    shown: dict[str, Any] = {}
    for field in fields(item):
        value = getattr(item, field.name)
        shown[field.name] = _shown(value)
        if isinstance(value, Enum):
            shown[f"{field.name}_name"] = value.name.lower()
    return shown


def _shown(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, tuple | list):
        return [_shown(item) for item in value]
    if is_dataclass(value):
        return values_of(value)
    return value
