"""protocol/SPEC.md says the numbers that the code has."""

import json
import re
from pathlib import Path

import protocol.window as window
from firmware import volume_manifest
from firmware.cnm import spec as cnm_spec
from hal.ports import TREE_TOP, FileInfo
from protocol.apf import (
    BODIES,
    CHUNK_MAX_BYTES,
    CHUNK_MIN_BYTES,
    CHUNKS_MAX,
    LEASE_MAX_MS,
    LOG_READ_MAX_BYTES,
    MAP_MAX_BYTES,
    MAX_MESSAGE_BYTES,
    RETRYABLE,
    STATUS_ENTRIES_MAX,
    TELEMETRY_FIELDS,
    TEXT_MAX_BYTES,
    USAGE_FIELDS,
    USAGE_MAX,
    BootState,
    ExitReason,
    FlushState,
    Health,
    InitState,
    InstanceState,
    Kind,
    OfferState,
    RefusalReason,
    Role,
    Scope,
    VerifyState,
)

SPEC = (Path(__file__).resolve().parents[4] / "protocol" / "SPEC.md").read_text()
FLAT = " ".join(SPEC.split())


def test_the_table_of_opcodes_is_complete() -> None:
    table: dict[int, tuple[str, str]] = {}
    for line in SPEC.splitlines():
        if line.startswith("| 0x0") and line.count("|") == 5:
            codes, names, kind = (cell.strip() for cell in line.split("|")[1:4])
            for code, name in zip(codes.split(), names.split(", "), strict=True):
                table[int(code, 16)] = (name, kind)
    wanted = {}
    for (kind, opcode), body in BODIES.items():
        if kind is not Kind.REPLY:
            name = body.__name__.removesuffix("Request")
            wanted[opcode] = (name, kind.name.lower())
    assert {code: entry for code, entry in table.items() if code >= 0x0100} == wanted


def test_the_table_of_refusals_is_complete_and_says_which_may_be_sent_again() -> None:
    rows = re.findall(r"^\| (\d+) \| ([A-Z_]+) \| .* \| (yes|no)[^|]* \|$", SPEC, re.MULTILINE)
    assert {int(n): name for n, name, _ in rows} == {r.value: r.name for r in RefusalReason}
    assert {RefusalReason(int(n)) for n, _, again in rows if again == "yes"} == RETRYABLE


def test_every_list_of_numbers_is_in_the_text() -> None:
    for kind in (
        Role,
        BootState,
        Scope,
        InitState,
        InstanceState,
        Health,
        ExitReason,
        OfferState,
        VerifyState,
        FlushState,
    ):
        words = ", ".join(f"{member.name} {member.value}" for member in kind)
        assert words in FLAT, kind


def test_every_state_of_an_instance_is_reached_and_left_in_the_table() -> None:
    rows = re.findall(r"^\| ([A-Z, ]+) \| ([A-Z]+) \| .* \|$", SPEC, re.MULTILINE)
    left = {name for sources, _ in rows for name in sources.split(", ")}
    reached = {target for _, target in rows}
    assert left == reached == {state.name for state in InstanceState}


def test_every_field_of_every_body_is_in_the_text() -> None:
    for body in BODIES.values():
        for name in body.__slots__:
            assert re.search(rf"\b{name}\b", SPEC, re.IGNORECASE), (body, name)
    for name in (*TELEMETRY_FIELDS, *USAGE_FIELDS):
        assert name in SPEC


def test_the_limits_are_those_of_the_code() -> None:
    for text in (
        f"most {MAX_MESSAGE_BYTES:,} bytes",
        f"| {TEXT_MAX_BYTES} bytes;",
        f"lease_ms u32 (1..{LEASE_MAX_MS:,})",
        f"entries list8({USAGE_MAX}) of {{instance, generation, present",
        f"entries list8({STATUS_ENTRIES_MAX}) of",
        f"({CHUNK_MIN_BYTES}..{CHUNK_MAX_BYTES:,},",
        f"2^{CHUNKS_MAX.bit_length() - 1} chunks",
        f"data u16({MAP_MAX_BYTES})",
        f"max_bytes u32 (<= {LOG_READ_MAX_BYTES:,})",
        f"a power of two, 2..{window.RING_MAX}; 64",
        f"ring_entries x {window.DESCRIPTOR_BYTES} bytes",
        f"BLOB {window.KIND_BLOB}, LOG {window.KIND_LOG}",
    ):
        assert text in FLAT, text
    for offset, name in (
        (window.OFF_SESSION, "session u32"),
        (window.OFF_ECHO, "peer_session u32"),
        (window.OFF_HEAD, "head u32"),
        (window.OFF_TAIL, "tail u32"),
        (window.HEADER_BYTES, "descriptors"),
    ):
        assert f"| 0x{offset:03X} | {name} |" in SPEC


def test_the_manifest_of_a_volume_is_in_the_text() -> None:
    top = FileInfo(path=TREE_TOP, kind="dir", mode=0o755, size_bytes=0)
    (row,) = json.loads(cnm_spec.write_manifest([(top, b"")]))["entries"]
    keys = re.search(r'"entries": \[\{(.*?)\}\]', FLAT)
    assert keys is not None
    assert {key.strip('"') for key in keys[1].split(", ")} == row.keys()
    assert cnm_spec.VOLUME_SCHEMA == volume_manifest.SCHEMA
    assert cnm_spec.ENTRIES_LIMIT == volume_manifest.ENTRIES_LIMIT
    assert cnm_spec.MANIFEST_LIMIT_BYTES == volume_manifest.MANIFEST_LIMIT_BYTES
    assert cnm_spec.ID_MAX == volume_manifest.ID_MAX
    for text in (
        f'"schema": "{volume_manifest.SCHEMA}"',
        f"at most {volume_manifest.MANIFEST_LIMIT_BYTES >> 20} MiB and "
        f"{volume_manifest.ENTRIES_LIMIT:,} entries",
        f"integers 0..{volume_manifest.ID_MAX:,}, 0 when absent",
        f"whose path is `{TREE_TOP}`",
    ):
        assert text in FLAT, text
