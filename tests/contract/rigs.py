"""The shapes that a contract suite and a backend agree on. Read `conftest.py` first.

A *rig* is one port, set up for one test, with the few extra powers that the suite needs to see
what happened (the far end of a line, the program that exits with 7, the tree that was made).
Fields that a backend can't offer are None, and the test that needs them is skipped by name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from hal.cxl_ports import CxlBus, CxlMemdev
from hal.interrupt_rate import RateLimit
from hal.pci_ports import PciAddress, PciBus, PciFunction
from hal.ports import (
    BlobStore,
    ByteStream,
    Clock,
    Doorbell,
    Entropy,
    Files,
    InstanceSpec,
    JournalStore,
    Process,
    ProcessSpec,
    Reactor,
    Runtime,
    SlotPower,
    Spawner,
    Trees,
    Window,
)
from hal.service_ports import TraceMemory
from hal.smbus_ports import SmbusSegment


def nothing() -> None:
    """The close of a rig that holds nothing."""


@dataclass(kw_only=True)
class Rig:
    close: Callable[[], None] = nothing  # called once at the end of the test, on the test's thread


@dataclass(kw_only=True)
class ByteStreamRig(Rig):
    a: ByteStream
    b: ByteStream  # the other end of the same line, in the same process
    hang_up: Callable[[], None] | None = None  # the line is gone: both ends raise LinkDown


@dataclass(kw_only=True)
class WindowRig(Rig):
    a: Window  # what a writes (tx), b reads (rx), and the other way round
    b: Window


@dataclass(kw_only=True)
class DoorbellRig(Rig):
    a: Doorbell
    b: Doorbell
    drop_b: Callable[[], None] | None = None  # b's process dies; a's handle gets ready, ring or
    # clear raises PeerGone


@dataclass(kw_only=True)
class PowerRig(Rig):
    power: SlotPower
    slot: int  # a slot with a module in it, off at the start
    empty_slot: int | None = None  # a slot number that this board does not have
    die: Callable[[], None] | None = None  # the module loses power by itself
    running: Callable[[], bool] | None = None  # does anything run on the CNM? judged from outside


@dataclass(kw_only=True)
class SmbusRig(Rig):
    segment: SmbusSegment
    address: int  # a device with byte and word registers 0x10 to 0x1f, and nothing else
    other: int  # a second one of the same kind
    poke: Callable[[int, bytes], None]  # register, bytes in the order of the wire: the world does
    absent: int = 0x23  # nobody is there
    scan: Sequence[int] = range(0x20, 0x48)  # where only these two are
    block_command: int | None = None  # a block register of `address`, up to 32 bytes
    long_command: int | None = None  # one with more than 32
    mux: int | None = None  # a PCA954x; `behind` is reached through its channel 2 only
    behind: int | None = None


@dataclass(kw_only=True)
class ClockRig(Rig):
    clock: Clock
    handle: int  # a handle of this clock's world that is not ready
    make_ready: Callable[[], None]  # makes it ready to read


@dataclass(kw_only=True)
class EntropyRig(Rig):
    entropy: Entropy


TRACE_BYTES = 20_000


@dataclass(kw_only=True)
class TraceMemoryRig(Rig):
    memory: TraceMemory
    reopen: Callable[[], TraceMemory]  # as the next process would


@dataclass(kw_only=True)
class FilesRig(Rig):
    files: Files


@dataclass(kw_only=True)
class BlobsRig(Rig):
    blobs: BlobStore
    open_fd: Callable[[bytes], int]  # a descriptor from which exactly these bytes can be read
    reopen: Callable[[], BlobStore] | None = None  # the store again, as after a restart
    full: Callable[[], int] | None = None  # a size in bytes that surely does not fit


@dataclass(kw_only=True)
class TreesRig(Rig):
    trees: Trees
    blobs: BlobStore
    files: Files  # sees the trees: Files path `name` is the tree at `path(name)`
    path: Callable[[str], str]  # "name" -> the path argument that `trees` wants
    listing: Callable[[str], Mapping[str, tuple[str, int, bytes]]]
    # "name" -> {relative path: (kind, permission bits, content or symlink target)}; {} if absent
    owners: Callable[[str], Mapping[str, tuple[int, int, int]]] | None = None
    # "name" -> {relative path, "." for the tree: (uid, gid, permission bits)}, seen from outside;
    # None where files can't be given away


@dataclass(kw_only=True)
class JournalRig(Rig):
    open: Callable[[], JournalStore]  # opens the same store again after `close`
    crash: Callable[[], None] | None = None  # the holder of the open store dies without close
    full: Callable[[], None] | None = None  # from now on there is no space
    fail_sync: Callable[[], None] | None = None  # the next sync fails (fault S7)


@dataclass(kw_only=True)
class SpawnerRig(Rig):
    spawner: Spawner
    exits_with: Callable[[int], ProcessSpec]  # a program that ends with this status
    runs_for_ever: Callable[[], ProcessSpec]
    echoes: Callable[[int], ProcessSpec]  # writes back what it reads from this passed descriptor
    absent: Callable[[], ProcessSpec]  # no such program


@dataclass(kw_only=True)
class RuntimeRig(Rig):
    runtime: Runtime
    exits_with: Callable[[str, int], InstanceSpec]  # key, status; ends soon after its start
    runs_for_ever: Callable[[str], InstanceSpec]  # key; dies of SIGTERM
    ignores_term: Callable[[str], InstanceSpec]  # key; only SIGKILL helps
    cannot_start: Callable[[str], InstanceSpec]  # key; a program that is not there
    forks: Callable[[str], InstanceSpec]  # key; at least 3 processes, one in a session of its own
    exec_echo: Sequence[str]  # argv for submit_exec: prints "hello", status 3
    exec_for_ever: Sequence[str]  # argv for submit_exec: never ends
    alive: Callable[[str], int]  # key -> processes that really run, judged from outside


@dataclass(kw_only=True)
class PciFunctionRig(Rig):
    """An edu device (QEMU's docs/specs/edu), open."""

    function: PciFunction
    open: Callable[[], PciFunction]  # opens it again, after `function.close()`
    storm_limit: RateLimit  # as the function was opened with
    bar_bytes: int = 1 << 20
    resets_registers: bool = False  # QEMU's edu keeps its registers over a reset
    remove: Callable[[], None] | None = None  # pulled out without a word: all ones
    want_removed: Callable[[], None] | None = None  # the host asks for it


@dataclass(kw_only=True)
class PciBusRig(Rig):
    bus: PciBus
    address: PciAddress  # an edu that no driver of this host wants
    driver: str  # one that takes it
    add: Callable[[], PciAddress] | None = None  # hot-plugs a function
    remove: Callable[[], None] | None = None  # and takes it out again


@dataclass(kw_only=True)
class CxlMemdevRig(Rig):
    memdev: CxlMemdev
    lacking: int  # an opcode that the backend offers and this device doesn't have
    unoffered: int  # one that the backend can't send
    takes_raw: bool
    has_health: bool
    log_offset_bytes: int = 1  # QEMU 7.2 takes a log's offset for one in entries of 4 bytes
    add_event: Callable[[int], int] | None = None  # log -> the handle of the new record
    remove: Callable[[], None] | None = None  # the device is pulled


@dataclass(kw_only=True)
class CxlBusRig(Rig):
    bus: CxlBus
    memdev: str  # the name of a memory device that is there
    region: str | None = None  # a region that can be mapped


Factory: TypeAlias = Callable[[Path, Reactor], Any]


class World(Protocol):
    """The time that a rig lives in. `name` is "real" or "virtual"."""

    name: str

    @property
    def reactor(self) -> Reactor: ...

    def run_until(self, predicate: Callable[[], bool], limit_s: float = 10.0) -> None:
        """Run the loop until the predicate holds; fails the test after `limit_s`."""
        ...

    def run_for(self, seconds: float) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Backend:
    """One row of a suite's table."""

    name: str
    factory: Factory
    virtual: bool = False
    marks: Sequence[Any] = field(default=())


def process_is(process: Process) -> int:
    """The pid, for tests that judge by /proc."""
    return process.pid
