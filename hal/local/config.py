"""What the keeper is told at its start: a JSON file, refused whole when anything in it is wrong.

    {"run_id": "lab1", "namespaces": "auto" | "off",
     "argv": [...], "env": {...}, "cwd": "/",
     "slots": [{"slot": 0, "id": "cnm0", "window_bytes": 16777216,
                "links": [{"name": "mc", "baud": 921600}], "argv": [...], "env": {...}}]}

`argv`, `env` and `cwd` start a CNM's init; a slot's own take the place of (argv) or come on top of
(env) the common ones. In argv and in env values `{id}`, `{slot}`, `{run}`, `{cgroup}` and
`{fence}` are replaced; other braces are left alone. `run_id` defaults to a hash of the run
directory, so that a restarted keeper finds what its forerunner left.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from hal.errors import HalError, Refused, Unavailable
from hal.linux.serial import BAUD_MAX, BAUD_MIN
from hal.linux.shm import check_window_bytes

SLOTS_LIMIT: Final = 64
LINKS_LIMIT: Final = 4
ARGV_LIMIT: Final = 64
ENV_LIMIT: Final = 128
CONFIG_LIMIT_BYTES: Final = 1 << 20
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,40}\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkConfig:
    """One control link, and the rate that its relay keeps."""

    name: str
    baud: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotConfig:
    slot: int
    id: str
    links: tuple[LinkConfig, ...]
    window_bytes: int
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str = "/"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperConfig:
    run_dir: Path
    run_id: str
    namespaces: bool  # False: do not even try
    slots: tuple[SlotConfig, ...] = field(default=())

    def cgroup_of(self, slot: SlotConfig) -> str:
        """The slot's cgroup, relative to the mount of each hierarchy."""
        return f"/apf/{self.run_id}/{slot.id}"


def read_config(path: Path, run_dir: Path) -> KeeperConfig:
    """Raises Unavailable when the file can't be read, Refused when it is wrong."""
    try:
        with path.open("rb") as file:
            data = file.read(CONFIG_LIMIT_BYTES + 1)
    except OSError as exc:
        raise Unavailable(f"keeper config {path}: {exc}") from exc
    if len(data) > CONFIG_LIMIT_BYTES:
        raise Refused(f"{path}: larger than {CONFIG_LIMIT_BYTES} B")
    try:
        return parse_config(json.loads(data), run_dir)
    except (ValueError, RecursionError) as exc:
        raise Refused(f"{path}: no JSON: {exc}") from exc
    except HalError as exc:
        raise Refused(f"{path}: {exc}") from exc


def parse_config(raw: object, run_dir: Path) -> KeeperConfig:
    """Raises Refused with the place of the first thing that is wrong."""
    top = _object(raw, "the config")
    _known(top, "the config", {"run_id", "namespaces", "argv", "env", "cwd", "slots"})
    run_dir = run_dir.resolve()
    default_id = hashlib.sha256(str(run_dir).encode()).hexdigest()[:12]
    run_id = _name(top.get("run_id", default_id), "run_id")
    namespaces = top.get("namespaces", "auto")
    if namespaces not in ("auto", "off"):
        raise Refused(f"namespaces: {namespaces!r}, wanted 'auto' or 'off'")
    raw_slots = _list(top.get("slots", []), "slots", SLOTS_LIMIT)
    slots = tuple(_slot(entry, f"slots[{n}]", top) for n, entry in enumerate(raw_slots))
    for what, values in (("slot", [str(s.slot) for s in slots]), ("id", [s.id for s in slots])):
        doubles = sorted({value for value in values if values.count(value) > 1})
        if doubles:
            raise Refused(f"slots: {what} {', '.join(doubles)} is given twice")
    return KeeperConfig(
        run_dir=run_dir, run_id=run_id, namespaces=namespaces == "auto", slots=slots
    )


def _slot(raw: object, where: str, top: Mapping[str, Any]) -> SlotConfig:
    entry = _object(raw, where)
    _known(entry, where, {"slot", "id", "window_bytes", "links", "argv", "env", "cwd"})
    links = tuple(
        _link(link, f"{where}.links[{n}]")
        for n, link in enumerate(_list(entry.get("links", []), f"{where}.links", LINKS_LIMIT))
    )
    names = [link.name for link in links]
    if len(set(names)) != len(names):
        raise Refused(f"{where}.links: a name is given twice: {', '.join(names)}")
    window_bytes = _integer(entry.get("window_bytes", 0), f"{where}.window_bytes", 0, 1 << 32)
    if window_bytes:
        try:
            check_window_bytes(window_bytes)
        except Refused as exc:
            raise Refused(f"{where}.window_bytes: {exc}") from exc
    argv = _list(entry.get("argv", top.get("argv", [])), f"{where}.argv", ARGV_LIMIT)
    if not argv:
        raise Refused(f"{where}.argv: empty, and the config gives no common one")
    program = _text(argv[0], f"{where}.argv")
    if not program.startswith("/") and "/" in program:
        raise Refused(f"{where}.argv: {program!r}, wanted an absolute path or a name on PATH")
    cwd = _text(entry.get("cwd", top.get("cwd", "/")), f"{where}.cwd")
    return SlotConfig(
        slot=_integer(entry.get("slot"), f"{where}.slot", 0, 65535),
        id=_name(entry.get("id"), f"{where}.id"),
        links=links,
        window_bytes=window_bytes,
        argv=tuple(_text(arg, f"{where}.argv") for arg in argv),
        env={**_env(top.get("env", {}), "env"), **_env(entry.get("env", {}), f"{where}.env")},
        cwd=cwd,
    )


def _link(raw: object, where: str) -> LinkConfig:
    entry = _object(raw, where)
    _known(entry, where, {"name", "baud"})
    return LinkConfig(
        name=_name(entry.get("name"), f"{where}.name"),
        baud=_integer(entry.get("baud"), f"{where}.baud", BAUD_MIN, BAUD_MAX),
    )


def _env(raw: object, where: str) -> dict[str, str]:
    entries = _object(raw, where)
    if len(entries) > ENV_LIMIT:
        raise Refused(f"{where}: {len(entries)} variables, at most {ENV_LIMIT}")
    for key in entries:
        if not key or "=" in key or "\0" in key:
            raise Refused(f"{where}: {key!r} can't name a variable")
    return {key: _text(value, f"{where}.{key}") for key, value in entries.items()}


def _object(raw: object, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise Refused(f"{where}: {type(raw).__name__}, wanted an object")
    return raw


def _list(raw: object, where: str, limit: int) -> list[Any]:
    if not isinstance(raw, list):
        raise Refused(f"{where}: {type(raw).__name__}, wanted a list")
    if len(raw) > limit:
        raise Refused(f"{where}: {len(raw)} entries, at most {limit}")
    return raw


def _integer(raw: object, where: str, low: int, high: int) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or not low <= raw <= high:
        raise Refused(f"{where}: {raw!r}, wanted an integer in {low}..{high}")
    return raw


def _text(raw: object, where: str) -> str:
    if not isinstance(raw, str) or "\0" in raw:
        raise Refused(f"{where}: {raw!r}, wanted a string without a zero byte")
    return raw


def _name(raw: object, where: str) -> str:
    if not isinstance(raw, str) or not _NAME.match(raw):
        raise Refused(f"{where}: {raw!r}, wanted a name such as 'cnm0' ([a-z0-9_.-], at most 41)")
    return raw


def _known(entry: Mapping[str, Any], where: str, keys: set[str]) -> None:
    unknown = sorted(set(entry) - keys)
    if unknown:
        raise Refused(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(keys))}")
