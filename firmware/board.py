"""One board: slots, links, windows, power, hardware and timing, read strictly from a TOML file.

`load_board` reads and checks everything that can be known from the file; `check_board` also looks
whether the serial lines are there that the keeper does not make itself; `missing_devices` says the
same of a board whose hardware may be another machine's. All errors are `BoardError`s with the file,
the line, the key, what was wanted and what was found. Spec strings: `firmware.board_specs`.
"""

import platform
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from pathlib import Path
from typing import Final

from firmware.board_file import (
    BoardError,
    BoardFile,
    board_names,
    error_at,
    expand,
    find_board,
    merge,
    merge_tables,
    read_chain,
)
from firmware.board_hardware import (
    MAX_SLOT_DEVICES,
    Device,
    Hardware,
    Mux,
    check_places,
    lines_of,
    read_devices,
    read_hardware,
    read_slot_pcie,
    read_steps,
)
from firmware.board_specs import (
    KINDS,
    device_of,
    path_of,
    read_link,
    read_power,
    read_window,
)
from firmware.board_types import (
    MAX_TENANT_WEIGHT,
    MAX_TENANTS,
    THRESHOLD_LIMITS,
    TIMING_LIMIT,
    TIMING_LIMITS,
    Board,
    BoardAccelerator,
    Module,
    Slot,
    Thresholds,
    Timing,
)
from firmware.fields import FieldError, Fields
from firmware.fields import Path as KeyPath
from firmware.link_dialect import dialect_of
from firmware.workload import (
    LABEL_KEY,
    MAX_BYTES,
    MAX_CPU_MILLI,
    MAX_MBIT,
    NAME,
    NAME_WANT,
    canonical_arch,
)

__all__ = [
    "Board",
    "BoardAccelerator",
    "BoardError",
    "Module",
    "Slot",
    "Thresholds",
    "Timing",
    "board_names",
    "check_board",
    "find_board",
    "load_board",
    "missing_devices",
    "on_mock",
]

MAX_SLOTS: Final = 1024
MIN_WINDOW_BYTES: Final = 64 * 1024
MAX_WINDOW_BYTES: Final = 1 << 32  # offsets in a window are u32
DEFAULT_VENDOR_ID: Final = 0x4150  # until one is assigned (DESIGN D3)
NAMED_KEYS: Final = ("id", "port", "smbus", "bank")  # of a slot: its other strings may use them
CNM_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
PAGE_BYTES: Final = 4096


def load_board(source: str | Path, *, run_dir: str | Path, host_arch: str | None = None) -> Board:
    """Read a board by name (`local`) or file. `run_dir` fills `${run}` in its spec strings;
    `host_arch` is what `arch = "host"` means (default: this machine's). Raises BoardError."""
    chain = read_chain(source)
    document = merge(chain)
    try:
        return _board(document, chain, str(run_dir), host_arch or platform.machine())
    except FieldError as exc:
        raise error_at(chain, exc.path, exc.want, exc.got) from exc


def check_board(
    source: str | Path,
    *,
    run_dir: str | Path,
    host_arch: str | None = None,
    exists: Callable[[str], bool] = lambda path: Path(path).exists(),
) -> Board:
    """`load_board`; and where the board is this machine's (kind local), every serial line outside
    `${run}` must exist. Raises BoardError."""
    board = load_board(source, run_dir=run_dir, host_arch=host_arch)
    if board.kind in ("local", "mock"):
        for error in _missing(source, board, exists):
            raise error
    return board


def missing_devices(
    source: str | Path,
    board: Board,
    *,
    exists: Callable[[str], bool] = lambda path: Path(path).exists(),
) -> list[BoardError]:
    """What a board names and this machine has not; each with its file and line."""
    return list(_missing(source, board, exists))


def _missing(
    source: str | Path, board: Board, exists: Callable[[str], bool]
) -> Iterator[BoardError]:
    chain = read_chain(source)
    for index, slot in enumerate(board.slots):
        for key, spec in (("mc", slot.mc), ("agent", slot.agent)):
            path = path_of(spec)
            if path in board.outside_ttys and not exists(path):
                do = "plug it in or name another; ttys below ${run}/ are made by the keeper"
                yield error_at(chain, ("slot", index, key), "a tty that exists", f"no {path}", do)
        for key, spec in (("window", slot.window), ("power", slot.power)):
            path = path_of(spec)
            if path and not exists(path):
                do = "the device is not there (yet), or this is not the machine of that board"
                yield error_at(
                    chain, ("slot", index, key), "a device that exists", f"no {path}", do
                )


def on_mock(board: Board) -> Board:
    """The same card on the ports of the virtual kernel, whatever its file names: for simulation."""
    slots = tuple(
        replace(
            slot,
            mc=f"mock:{slot.id}-mc",
            agent=f"mock:{slot.id}-agent",
            window=f"mock:{slot.id}",
            power="mock",
        )
        for slot in board.slots
    )
    return replace(board, kind="mock", slots=slots, outside_ttys=())


def _board(
    document: Mapping[str, object], chain: Sequence[BoardFile], run_dir: str, host_arch: str
) -> Board:
    fields = Fields(document)
    default = fields.object("slot_default", Fields.rest)
    raw_slots = fields.items("slot", max_items=MAX_SLOTS)
    if not raw_slots:
        raise fields.fail("slot", "at least one [[slot]]", "none")
    filled = [
        _filled_slot(raw, default, ("slot", index), run_dir) for index, raw in enumerate(raw_slots)
    ]
    head = fields.object("board", _head)
    kind = head[1]
    hardware = read_hardware(fields)
    slots = tuple(_slot(raw, index, host_arch, kind, hardware) for index, raw in enumerate(filled))
    _check_unique(slots, links=kind != "cnm")
    check_places(_parts(hardware, slots))
    timing = fields.object("timing", _timing)
    thresholds = fields.object("thresholds", _thresholds)
    tenants = fields.object_or_none("tenants", _tenants)
    fields.done()
    name, _, description, vendor_id = head
    return Board(
        name=name,
        kind=kind,
        description=description,
        vendor_id=vendor_id,
        timing=timing,
        thresholds=thresholds,
        slots=slots,
        files=tuple(str(file.path) for file in chain),
        outside_ttys=_outside_ttys(slots, run_dir),
        hardware=hardware,
        tenants=tenants,
    )


def _parts(hardware: Hardware, slots: Sequence[Slot]) -> list[tuple[KeyPath, Device | Mux]]:
    """Everything on SMBus, with where it is said."""
    parts: list[tuple[KeyPath, Device | Mux]] = []
    parts += [(("mux", n), mux) for n, mux in enumerate(hardware.muxes)]
    parts += [(("device", n), device) for n, device in enumerate(hardware.devices)]
    for index, slot in enumerate(slots):
        parts += [(("slot", index, "device", n), device) for n, device in enumerate(slot.devices)]
    return parts


def _head(fields: Fields) -> tuple[str, str, str, int]:
    return (
        fields.text("name", pattern=NAME, want=NAME_WANT),
        fields.choice("kind", KINDS),
        fields.text("description", "", max_bytes=256),
        fields.integer("vendor_id", DEFAULT_VENDOR_ID, low=1, high=0xFFFF),
    )


def _timing(fields: Fields) -> Timing:
    """Durations, and the two halves of DESIGN section 4 rule 6 that a lease must satisfy."""
    usual = Timing()
    values = {
        field.name: fields.integer(
            field.name,
            getattr(usual, field.name),
            low=TIMING_LIMITS.get(field.name, TIMING_LIMIT)[0],
            high=TIMING_LIMITS.get(field.name, TIMING_LIMIT)[1],
        )
        for field in dataclass_fields(Timing)
    }
    timing = Timing(**values)
    for least_ms, why in (
        (timing.lease_min_rounds_ms, f"to outlive {timing.lost_rounds} lost rounds"),
        (timing.lease_min_restart_ms, "to outlive a crash of the daemon"),
    ):
        if timing.lease_ms < least_ms:
            want = f"a lease of at least {least_ms} ms {why} (DESIGN section 4, rule 6)"
            raise fields.fail("lease_ms", want, f"{timing.lease_ms} ms")
    if timing.suspect_ms < 2 * timing.heartbeat_ms:
        want = f"at least two heartbeats, {2 * timing.heartbeat_ms} ms"
        raise fields.fail("suspect_ms", want, f"{timing.suspect_ms} ms")
    return timing


def _thresholds(fields: Fields) -> Thresholds:
    usual = Thresholds()
    values = {
        name: fields.integer(name, getattr(usual, name), low=low, high=high)
        for name, (low, high) in THRESHOLD_LIMITS.items()
    }
    for name, value in values.items():
        low_name = name.replace("_high_", "_low_")
        if low_name != name and values[low_name] >= value:
            raise fields.fail(low_name, f"less than {name} = {value}", f"{values[low_name]}")
    return Thresholds(**values)


def _tenants(fields: Fields) -> dict[str, int]:
    """Name and weight of those whose share is not 1."""
    names = list(fields.rest())
    if len(names) > MAX_TENANTS:
        raise FieldError(fields.path, f"at most {MAX_TENANTS} tenants", f"{len(names)}")
    for name in names:
        if NAME.fullmatch(name) is None:
            raise fields.fail(name, NAME_WANT, repr(name[:60]))
    return {name: fields.integer(name, low=1, high=MAX_TENANT_WEIGHT) for name in sorted(names)}


def _filled_slot(
    raw: object, default: Mapping[str, object], path: tuple[str, int], run_dir: str
) -> dict[str, object]:
    """The slot with the defaults below it and its variables filled in."""
    own = Fields(raw, path)
    slot = merge_tables(default, own.rest())
    number = Fields(slot, path).integer("slot", high=MAX_SLOTS - 1)
    names = {"run": run_dir, "slot": str(number), "slot_hex": f"{number:02x}"}
    for key in NAMED_KEYS:  # first: the other strings may use them
        if key in slot:
            names[key] = str(_expanded(slot[key], names, (*path, key)))
    return {key: _expanded(value, names, (*path, key)) for key, value in slot.items()}


def _expanded(value: object, names: Mapping[str, str], path: KeyPath) -> object:
    try:
        return expand(value, names)
    except KeyError as exc:
        want = f"one of {', '.join('${' + name + '}' for name in names)}"
        raise FieldError(path, want, f"${{{exc.args[0]}}}") from exc


def _slot(
    raw: Mapping[str, object], index: int, host_arch: str, kind: str, hardware: Hardware
) -> Slot:
    fields = Fields(raw, ("slot", index))
    for key in NAMED_KEYS[1:]:
        fields.text_or_none(key, max_bytes=128)
    devices = read_devices(fields, "device", hardware, max_items=MAX_SLOT_DEVICES)
    lines = {**lines_of(hardware.devices), **lines_of(devices)}
    slot = Slot(
        slot=fields.integer("slot", high=MAX_SLOTS - 1),
        id=fields.text("id", pattern=CNM_ID, want="an id like cnm0 ([a-z0-9-], at most 32)"),
        mc=read_link(fields, "mc", kind, hardware),
        agent=read_link(fields, "agent", kind, hardware),
        window=read_window(fields, kind),
        window_bytes=fields.integer(
            "window_bytes", 1 << 24, low=MIN_WINDOW_BYTES, high=MAX_WINDOW_BYTES
        ),
        power=read_power(fields, kind),
        module=fields.object("module", lambda table: _module(table, host_arch)),
        pcie=fields.object_or_none("pcie", read_slot_pcie),
        devices=devices,
        power_steps=read_steps(fields, "power_step", lines),
    )
    fields.done()
    if slot.window_bytes % PAGE_BYTES:
        want = f"a multiple of {PAGE_BYTES}"
        raise fields.fail("window_bytes", want, f"{slot.window_bytes}")
    return slot


def _module(fields: Fields, host_arch: str) -> Module:
    arch = fields.text("arch", pattern=NAME, want="an architecture such as arm64, or host")
    return Module(
        arch=canonical_arch(host_arch if arch == "host" else arch),
        cores_milli=fields.integer("cores_milli", low=1, high=MAX_CPU_MILLI),
        memory_bytes=fields.integer("memory_bytes", low=1, high=MAX_BYTES),
        nvme_bytes=fields.integer("nvme_bytes", 0, high=MAX_BYTES),
        nvme_mbit=fields.integer("nvme_mbit", 0, high=MAX_MBIT),
        link_mbit=fields.integer("link_mbit", low=1, high=MAX_MBIT),
        runtimes=fields.texts("runtimes", max_items=8, pattern=NAME, want=NAME_WANT),
        labels=fields.mapping(
            "labels", max_items=64, key_pattern=LABEL_KEY, key_want="a label key", max_bytes=128
        ),
        accelerators=fields.objects("accelerators", _accelerator, max_items=16),
        dialect=dialect_of(fields),
    )


def _accelerator(fields: Fields) -> BoardAccelerator:
    return BoardAccelerator(
        kind=fields.text("kind", pattern=NAME, want=NAME_WANT),
        model=fields.text("model", pattern=NAME, want=NAME_WANT),
        count=fields.integer("count", 1, low=1, high=64),
        scope=fields.choice("scope", ("local", "fabric"), "local"),
    )


def _check_unique(slots: Sequence[Slot], *, links: bool) -> None:
    """A slot number, an id, a tty, a window or a port that is named twice is two owners of one
    thing. Not so for the links of modules, each of which has its own ttys (kind cnm)."""
    first: dict[tuple[str, str], str] = {}
    for index, slot in enumerate(slots):
        names = {
            "slot": ("slot", str(slot.slot)),
            "id": ("id", slot.id),
        }
        if links:
            names |= {
                "mc": ("link", device_of(slot.mc)),
                "agent": ("link", device_of(slot.agent)),
                "window": (
                    "window" if slot.window.startswith(("shm", "mock")) else "link",
                    device_of(slot.window),
                ),
            }
        if links and slot.pcie is not None:
            names["pcie"] = ("port", slot.pcie.port)
        if slot.power.startswith("pci_slot:"):
            names["power"] = ("power switch", device_of(slot.power))
        for key, (kind, value) in names.items():
            if (kind, value) in first:
                got = f"{value}, as in {first[kind, value]}"
                raise FieldError(("slot", index, key), f"a {kind} that no other slot uses", got)
            first[kind, value] = f"slot[{index}].{key}"


def _outside_ttys(slots: Sequence[Slot], run_dir: str) -> tuple[str, ...]:
    specs = [spec for slot in slots for spec in (slot.mc, slot.agent)]
    ttys = [path_of(spec) for spec in specs if spec.startswith("serial:")]
    return tuple(tty for tty in ttys if not tty.startswith(run_dir.rstrip("/") + "/"))
