"""Every seam between our code and the hardware, each a small Protocol (STYLE rule 5).

Two habits hold for all of them:

- A *handle* is what the loop waits on: a file descriptor on Linux, a token of the virtual kernel
  on the mock. `Clock.watch` takes handles of its own world only.
- A call that may take over 1 ms is `submit(request, deadline_ns, done)`: it returns at once and
  `done` is called later, once, on the loop's thread, with the result or the `HalError`. Calls
  that return directly are quick and raise `HalError`.

Times are nanoseconds of CLOCK_BOOTTIME (`now_ns`) unless a name says otherwise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntFlag
from typing import Final, Protocol, TypeAlias, TypeVar

from hal.errors import HalError

T = TypeVar("T")
Done: TypeAlias = Callable[[T | HalError], None]
Buffer: TypeAlias = bytes | bytearray | memoryview


class Event(IntFlag):
    """What a handle is ready for; HANGUP is reported whether asked for or not."""

    READ = 1
    WRITE = 2
    HANGUP = 4


class Clock(Protocol):
    """Time, and the way to wait for it: a virtual clock answers `wait` without waiting."""

    def now_ns(self) -> int:
        """CLOCK_BOOTTIME; never goes back, counts suspend."""
        ...

    def wall_ns(self) -> int:
        """Wall clock since the epoch; for people and files only, may jump."""
        ...

    def watch(self, handle: int, events: Event) -> None:
        """Start or change the watch on a handle."""
        ...

    def unwatch(self, handle: int) -> None:
        """Stop watching; unknown handles are ignored."""
        ...

    def wait(self, until_ns: int | None) -> Sequence[tuple[int, Event]]:
        """Block until a watched handle is ready or `until_ns` has come; None waits for ever."""
        ...

    def wake(self) -> None:
        """Make the present or the next `wait` return at once. Safe from any thread."""
        ...


class Reactor(Protocol):
    """What a backend may ask of the loop that it lives on (`firmware.loop.Loop`)."""

    def now_ns(self) -> int: ...

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` on the loop's thread, soon. The only method that is safe from any thread."""
        ...

    def call_at(self, when_ns: int, call: Callable[[], None]) -> Callable[[], None]:
        """Run `call` at `when_ns`; returns the function that cancels it."""
        ...

    def watch(self, handle: int, events: Event, call: Callable[[Event], None]) -> None:
        """Run `call(events)` whenever the handle is ready; replaces an earlier watch."""
        ...

    def unwatch(self, handle: int) -> None: ...


class Entropy(Protocol):
    """Random bytes: boot ids, uuids, jitter. The simulator seeds them."""

    def random_bytes(self, length: int) -> bytes: ...


class ByteStream(Protocol):
    """A serial line, or a local stream socket: bytes in order, no frames."""

    @property
    def handle(self) -> int: ...

    def read(self) -> bytes:
        """What has come, at most 4 KiB; b"" when there is nothing. Raises LinkDown on hang-up."""
        ...

    def write(self, data: Buffer) -> int:
        """Bytes taken, 0 when the line is busy: the caller keeps the rest. Raises LinkDown."""
        ...

    def close(self) -> None: ...


class Window(Protocol):
    """Memory that both ends reach over the fabric. `tx` is the peer's and only written, `rx` is
    ours and only read (DESIGN D11). Offsets are bytes; words are little-endian, 32 bits, aligned.
    """

    @property
    def tx_bytes(self) -> int: ...

    @property
    def rx_bytes(self) -> int: ...

    def write(self, offset: int, data: Buffer) -> None:
        """Copy into tx. Raises Refused outside it."""
        ...

    def read(self, offset: int, length: int) -> memoryview:
        """A read-only view of rx, no copy: the peer may still change it, so check a CRC on what
        was copied out of it, never on the view."""
        ...

    def publish(self, offset: int, value: int) -> None:
        """Release barrier, then one aligned store to tx."""
        ...

    def acquire(self, offset: int) -> int:
        """One aligned load from rx, then acquire barrier."""
        ...

    def close(self) -> None: ...


class Doorbell(Protocol):
    """A hint that the window changed. State is always in the window: a lost ring costs time,
    never data."""

    @property
    def handle(self) -> int: ...

    def ring(self) -> None:
        """Wake the far end; never blocks, coalesces."""
        ...

    def clear(self) -> None:
        """Forget the rings that have come, so that `handle` stops being ready."""
        ...

    def close(self) -> None: ...


class FenceKind(Enum):
    """How this board makes sure that a CNM is dead."""

    POWER = "power"  # power off is a hard fence
    LEASE = "lease"  # only the lease's end is


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotState:
    """One slot as its latches and power-good read, not as anybody remembers it."""

    slot: int
    present: bool
    power_good: bool
    fence: FenceKind
    failing: bool = False  # it is going down by itself: a detection, never a proof
    init_pid: int | None = None  # the local board's cnm-init, in the host's pid namespace
    cgroup: str | None = None  # its v2 cgroup, relative to the mount
    text: str = ""  # evidence, e.g. "cgroup empty after 2.1 ms"


class PowerAction(Enum):
    READ = "read"  # never changes anything
    ON = "on"
    OFF = "off"  # completes only with proof that nothing on the CNM runs any more


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerRequest:
    slot: int
    action: PowerAction


class SlotPower(Protocol):
    """Power and presence of the slots. Setting a state that holds already is a success."""

    def submit(self, request: PowerRequest, deadline_ns: int, done: Done[SlotState]) -> None: ...

    def on_change(self, call: Callable[[SlotState], None]) -> None:
        """Call when power-good or presence changes by itself (a module dies or is pulled)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalRecord:
    """One decision. `value` None deletes the key."""

    kind: str
    key: str
    value: bytes | None


class JournalStore(Protocol):
    """A durable map (kind, key) -> value; a batch is all or nothing."""

    def load(self) -> Sequence[JournalRecord]:
        """All live records in the order of (kind, key). Called once, before the loop runs."""
        ...

    def submit(self, batch: Sequence[JournalRecord], done: Done[None]) -> None:
        """`done(None)` only when the batch would survive a power cut. In order; batches that
        wait together may share one commit. After StoreFailed no further batch is taken."""
        ...

    def close(self) -> None: ...


TREE_TOP: Final = "."


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    path: str  # relative to the root that was listed, "/" between parts; TREE_TOP is that root
    kind: str  # "file", "dir" or "symlink"
    mode: int  # permission bits
    size_bytes: int
    target: str = ""  # of a symlink
    uid: int = 0
    gid: int = 0


class Files(Protocol):
    """A directory tree of our own. Paths are relative, "/"-separated; ".." is Refused.

    Only small, bounded things happen here; bulk goes through `BlobStore` and `Trees`.
    """

    def read(self, path: str, offset: int = 0, length: int = 1 << 20) -> bytes:
        """b"" past the end; raises Unavailable when there is no such file."""
        ...

    def write(self, path: str, data: Buffer) -> None:
        """Replace as a whole (temporary file, rename). Parents are made."""
        ...

    def append(self, path: str, data: Buffer) -> None: ...

    def remove(self, path: str) -> None:
        """A file or a whole tree; absent is a success. Mounts below it are not crossed."""
        ...

    def names(self, path: str) -> Sequence[str]:
        """Sorted names in a directory; empty when there is none."""
        ...

    def size_bytes(self, path: str) -> int | None: ...

    def free_bytes(self) -> int: ...


class BlobStore(Protocol):
    """Content-addressed bulk data (images, volume files, specs) named by SHA-256.

    A digest is 32 raw bytes. What is in the store is whole and was checked.
    """

    def has(self, digest: bytes) -> int | None:
        """Size in bytes, or None."""
        ...

    def read(self, digest: bytes, offset: int, length: int) -> bytes:
        """At most 1 MiB. Raises Unavailable for an unknown digest."""
        ...

    def put(self, data: Buffer) -> bytes:
        """Store a small object (at most 1 MiB) at once; returns its digest."""
        ...

    def begin(self, digest: bytes, size_bytes: int) -> None:
        """Make room for a partial object; raises StoreFull. Idempotent, keeps what came."""
        ...

    def write_chunk(self, digest: bytes, offset: int, data: Buffer) -> None:
        """Into the partial object. Raises Refused out of its bounds."""
        ...

    def submit_finish(self, digest: bytes, deadline_ns: int, done: Done[None]) -> None:
        """Hash the partial object and admit it; Refused (and dropped) if the digest is wrong."""
        ...

    def submit_ingest(
        self, fd: int, size_bytes: int, digest: bytes, deadline_ns: int, done: Done[None]
    ) -> None:
        """Copy `size_bytes` from a descriptor (closed here), hash, admit."""
        ...

    def drop(self, digest: bytes) -> None:
        """Remove it, whole or partial; absent is a success."""
        ...

    def digests(self, first: int | None = None) -> Sequence[bytes]:
        """Of whole objects, in order of their bytes; with `first` those that begin with that byte:
        all of a large store at once take longer than a turn of the loop may."""
        ...


class Trees(Protocol):
    """Directory trees made from and turned into blobs, off the loop's thread."""

    def submit_unpack(
        self, blobs: Sequence[bytes], path: str, deadline_ns: int, done: Done[None]
    ) -> None:
        """Layers (tar, perhaps gzip or zstd; OCI whiteouts) onto a fresh tree at `path`.
        Members that would leave the tree make it Refused and leave nothing behind."""
        ...

    def submit_checkout(
        self,
        files: Sequence[tuple[FileInfo, bytes]],
        path: str,
        deadline_ns: int,
        done: Done[None],
    ) -> None:
        """Make the tree at `path` hold exactly these entries (file content by digest), with their
        owners where this process may give files away (root), else with its own. Without the
        entry TREE_TOP the tree's own directory is this process's, 0755."""
        ...

    def submit_scan(
        self, path: str, deadline_ns: int, done: Done[Sequence[tuple[FileInfo, bytes]]]
    ) -> None:
        """Put every regular file below `path` into the blob store; entries sorted by path, the
        tree's own directory as TREE_TOP among them. Files that are neither regular, directory nor
        symlink are left out. A digest is b"" for those that have no content. Absent when there
        is no such directory; symlinks are not followed to one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """A helper program of ours (the agent, for one); tenants' work goes through `Runtime`."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    pass_fds: Sequence[int] = ()
    cgroup: str | None = None
    log_path: str | None = None  # stdout and stderr, appended


class Process(Protocol):
    @property
    def pid(self) -> int: ...

    def kill(self, signal: int) -> None:
        """Nothing happens when it is gone already."""
        ...


class Spawner(Protocol):
    def spawn(self, spec: ProcessSpec, on_exit: Callable[[int], None]) -> Process:
        """Start it; `on_exit(status)` once, with the exit status or minus the signal."""
        ...

    def stream_pair(self) -> tuple[ByteStream, int]:
        """A connected pair: our end, and the descriptor to hand to the process."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceLimits:
    """0 means no limit."""

    cpu_milli: int = 0
    memory_bytes: int = 0
    pids: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MountSpec:
    source: str  # absolute on the CNM
    target: str  # absolute in the instance
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceSpec:
    """What a runtime needs to start one instance."""

    key: str  # unique on this CNM, [a-z0-9.-], at most 64 characters
    argv: Sequence[str]
    env: Mapping[str, str]
    cwd: str = "/"
    user: str = ""  # "uid" or "uid:gid"; "" is root of the image
    hostname: str = ""
    rootfs: str = ""  # absolute; "" for the CNM's own (process runtime only)
    read_only_rootfs: bool = False
    mounts: Sequence[MountSpec] = ()
    limits: InstanceLimits = InstanceLimits()
    stop_signal: int = 15


class ExitReason(Enum):
    EXITED = "exited"
    SIGNALED = "signaled"
    OOM_KILLED = "oom_killed"
    UNKNOWN = "unknown"  # it is gone, but nobody could read why


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceExit:
    reason: ExitReason
    status: int  # exit status or signal number
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceHandle:
    """A started instance as its CNM sees it."""

    pid: int
    start_ticks: int  # /proc/PID/stat field 22
    cgroup: str
    output_fd: int = -1  # read end of stdout+stderr; the caller owns it


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """None where it can't be read."""

    cpu_us: int | None = None  # since its start
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    pids: int | None = None
    io_bytes: int | None = None


class Runtime(Protocol):
    """Runs instances: an OCI container, a process group, a virtual machine. The caller must be
    the parent or subreaper of what it starts (DESIGN D13)."""

    @property
    def name(self) -> str: ...

    def submit_start(
        self,
        spec: InstanceSpec,
        deadline_ns: int,
        done: Done[InstanceHandle],
        on_exit: Callable[[InstanceExit], None],
    ) -> None:
        """`done` when the program was seen to run (its exec happened), or the error with the
        runtime's own words. `on_exit` once, only after a successful `done`, when *all* its
        processes are gone."""
        ...

    def signal(self, key: str, signal: int) -> None:
        """To its first process. Unknown keys are ignored."""
        ...

    def kill_all(self, key: str) -> None:
        """SIGKILL every process in it, now, frozen or not; `on_exit` reports the end."""
        ...

    def submit_exec(
        self, key: str, argv: Sequence[str], deadline_ns: int, done: Done[tuple[int, bytes]]
    ) -> None:
        """Run a program inside; status and at most 4 KiB of its output. Killed at the deadline."""
        ...

    def usage(self, key: str) -> Usage: ...

    def submit_remove(self, key: str, deadline_ns: int, done: Done[None]) -> None:
        """Forget what is dead and delete its cgroups and state; absent is a success."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class HostProcess:
    """A CNM's process as the host sees it (local board; elsewhere there is no such view)."""

    pid: int
    start_ticks: int
    cgroup: str


class HostView(Protocol):
    def submit_lookup(
        self,
        slot: int,
        cnm_pids: Sequence[int],
        deadline_ns: int,
        done: Done[Mapping[int, HostProcess]],
    ) -> None:
        """CNM pid -> host process; pids that are gone are left out. No pids asks for all."""
        ...


READ_LIMIT_BYTES: Final = 4096  # of one ByteStream.read
