"""A hypothesis strategy for each APF body, from the type and the name of its fields."""

import dataclasses
import typing
from enum import IntEnum
from types import UnionType
from typing import Any

from hypothesis import strategies as st

from protocol.apf import (
    CHUNK_MAX_BYTES,
    CHUNK_MIN_BYTES,
    LEASE_MAX_MS,
    LOG_READ_MAX_BYTES,
    Body,
    InstanceTelemetry,
    StatusReply,
)

U64 = [
    *["epoch", "generation", "bound_epoch", "memory_bytes", "nvme_bytes", "size_bytes"],
    *["start", "end", "offset", "start_ticks", "link_tx_bytes", "link_rx_bytes", "cpu_us"],
    *["memory_peak_bytes", "io_bytes", "bytes"],
]
SIZES = {  # bits of unsigned fields, by their names; 32 for the others
    **dict.fromkeys(U64, 64),
    **dict.fromkeys(["instances", "total", "next_cursor", "cursor", "count"], 16),
    **dict.fromkeys(["version_min", "version_current"], 8),
}
SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "lease_ms": st.integers(1, LEASE_MAX_MS),
    "chunk_bytes": st.integers(CHUNK_MIN_BYTES, CHUNK_MAX_BYTES),
    "max_bytes": st.integers(0, LOG_READ_MAX_BYTES),
    "length": st.integers(0, LOG_READ_MAX_BYTES),
    "temp_mdegc": st.integers(-(2**31), 2**31 - 1),
    "exit_status": st.integers(-(2**31), 2**31 - 1),
    "layout_hash": st.binary(min_size=8, max_size=8),
    "labels": st.lists(
        st.tuples(st.from_regex(r"[a-z]{1,64}", fullmatch=True), st.text(max_size=16)), max_size=32
    ).map(tuple),
    "runtimes": st.lists(st.sampled_from(["oci", "process", "vm"]), max_size=8).map(tuple),
}
NAMES = st.text(
    st.characters(categories=["L", "N", "P"], exclude_characters="\x7f"), min_size=1, max_size=32
).filter(lambda text: text.isprintable() and len(text.encode()) <= 32)


def of_field(owner: type, name: str, kind: Any) -> st.SearchStrategy[Any]:
    if name in SPECIAL:
        return SPECIAL[name]
    if name == "present":
        return st.integers(0, 127 if owner.__name__ == "Telemetry" else 31)
    if name == "bits":
        return st.binary(max_size=1024 if owner.__name__ == "ChunkMapReply" else 8)
    if isinstance(kind, UnionType):  # an enum of ours, or a number of a later version
        enum = next(arm for arm in typing.get_args(kind) if issubclass(arm, IntEnum))
        top = 2**16 if enum.__name__ == "RefusalReason" else 2**8
        later = st.integers(0, top - 1).filter(lambda value: value not in list(enum))
        return st.sampled_from(enum) | later
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        limit = {InstanceTelemetry: 32, StatusReply: 16}.get(owner, 16)
        if dataclasses.is_dataclass(item):
            return st.lists(of_type(item), max_size=min(limit, 5)).map(tuple)
        return st.lists(st.binary(min_size=32, max_size=32), max_size=64).map(tuple)
    if dataclasses.is_dataclass(kind):
        return of_type(typing.cast("type", kind))
    if kind is bytes:
        size = 32 if "digest" in name else 16
        return st.binary(min_size=size, max_size=size)
    if kind is str:
        return NAMES if name in ("instance", "volume", "arch", "kind") else st.text(max_size=12)
    return st.integers(0, 2 ** SIZES.get(name, 32) - 1)


def of_type(kind: type) -> st.SearchStrategy[Any]:
    fields = {
        field.name: of_field(kind, field.name, field.type) for field in dataclasses.fields(kind)
    }
    return st.builds(kind, **fields)


def of_body(kind: type[Body]) -> st.SearchStrategy[Body]:
    return of_type(kind)
