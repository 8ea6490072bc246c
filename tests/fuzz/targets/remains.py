"""What a dead daemon has left behind, and what the kernel has counted: rings, dumps, cgroups."""

import json
from collections.abc import Iterable
from pathlib import Path

from firmware.crash_store import PREFIX, CrashStore
from firmware.flight_recorder import LEAST_BYTES, FlightRecorder, Trace, read_ring
from hal.linux import cgroup_stats
from hal.mock.trace_memory import MockTraceMemory
from tests.fuzz.reader import Reader
from tests.fuzz.target import Check, Target
from tests.fuzz.targets.kernel import Files

HEAD = {"found_wall_ns": 1_700_000_000_000_000_000, "reason": "signal 9", "stack": "at a"}


def _ring(laps: int) -> bytearray:
    """A ring that a daemon has written, once around and more with `laps`."""
    kept = bytearray(LEAST_BYTES)
    recorder = FlightRecorder(MockTraceMemory(kept), lambda: 7)
    recorder.begin(pid=7, wall_ns=HEAD["found_wall_ns"], text="started")  # type: ignore[arg-type]
    for number in range(laps):
        recorder.note(Trace.COMMAND, f"{number} " + "x" * 400)
    return kept


RINGS = _ring(1), _ring(30), _ring(90)


class Dump:
    """`Files` with one dump in it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def names(self, _path: str) -> list[str]:
        return [f"{PREFIX}1"]

    def read(self, _path: str, offset: int = 0, length: int = 1 << 20) -> bytes:
        return self._data[offset : offset + length]


def crash_dump(_scratch: Path) -> Check:
    """A ring written over in places, behind a head of JSON; shown as people see it."""

    def check(data: bytes) -> bool:
        reader = Reader(data)
        ring = bytearray(RINGS[reader.byte() % len(RINGS)])
        head = json.dumps(HEAD).encode() if reader.byte() & 1 else reader.piece()
        while reader.left:
            at = reader.number(2) % len(ring)
            piece = reader.take(1 + reader.byte() % 40)
            if piece[:1] == b"\xff":
                piece = bytes(ring[: 16 * len(piece)])  # a write that went elsewhere
            ring[at : at + len(piece)] = piece
        del ring[LEAST_BYTES:]
        whole = read_ring(bytes(ring))
        if whole is not None:
            numbers = [entry.number for entry in whole.entries]
            assert numbers == sorted(set(numbers))
        found = CrashStore(Dump(head + b"\n" + bytes(ring))).last()  # type: ignore[arg-type]
        if found is None:
            return False
        json.dumps(found.to_json(), allow_nan=False)
        return True

    return check


FILES = {
    "v2/cpu.stat": "usage_usec 12345\nuser_usec 1\nsystem_usec 2",
    "v2/memory.current": "4096",
    "v2/memory.peak": "8192",
    "v2/memory.stat": "anon 1\ninactive_file 4",
    "v2/memory.events": "low 0\noom 1\noom_kill 2",
    "v2/pids.current": "3",
    "v2/io.stat": "8:0 rbytes=10 wbytes=20 rios=1 wios=2\n8:16 rbytes=1 wbytes=0",
    "v1/cpuacct.usage": "5000",
    "v1/memory.usage_in_bytes": "4096",
    "v1/memory.max_usage_in_bytes": "8192",
    "v1/memory.stat": "total_inactive_file 1",
    "v1/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3",
    "v1/pids.current": "max",
    "v1/blkio.throttle.io_service_bytes_recursive": "8:0 Read 1\n8:0 Total 7\nTotal 7",
}


def cgroup_texts(scratch: Path) -> Check:
    files = Files(scratch / "cgroup", FILES)
    v2, v1 = str(files.top / "v2"), str(files.top / "v1")
    old = dict.fromkeys(("cpuacct", "memory", "pids", "blkio"), v1)

    def check(data: bytes) -> bool:
        reader = Reader(data)
        newer = reader.byte() & 1
        files.change(reader)
        usage = cgroup_stats.usage(v2 if newer else "", old)
        counts = usage.cpu_us, usage.memory_bytes, usage.memory_peak_bytes, usage.pids
        kills = cgroup_stats.oom_kills(v2 if newer else "", v1)
        told = [count for count in (*counts, usage.io_bytes, kills) if count is not None]
        assert all(0 <= count < 1 << 80 for count in told)
        return len(told) == 6

    return check


def _dump_seeds() -> Iterable[bytes]:
    for ring in range(len(RINGS)):
        yield bytes([ring, 1])
        yield bytes([ring, 1, 0x20, 0, 3, 1, 2, 3, 4, 0, 8, 39, 0xFF, 1])
        for head in (HEAD, {**HEAD, "found_wall_ns": -1}, {**HEAD, "found_wall_ns": 1 << 99}):
            line = json.dumps(head).encode()
            yield bytes([ring, 0, len(line)]) + line
    yield b"\0\0\x40" + b'{"found_wall_ns": Infinity, "reason": 1, "stack": [' + b" " * 20
    yield b"\0\1\0\0\x07NOTRACE!"


def _cgroup_seeds() -> Iterable[bytes]:
    for newer in range(2):
        yield bytes([newer])
        for index in range(len(FILES)):
            yield bytes([newer, index, 0, index, index, 0, index + 5])
            yield bytes([newer, index, 1, 6]) + b"\nTotal"
            yield bytes([newer, index, 2, 12]) + b"oom_kill max"


TARGETS = (
    Target(
        name="crash_dump",
        text="a ring and a dump that a dead daemon has left, damaged in places",
        make=crash_dump,
        seeds=_dump_seeds,
        words=(b"\xfe\x5a", b"APFTRACE", b'"found_wall_ns"', b"Infinity", b"1e400"),
        max_bytes=400,
    ),
    Target(
        name="cgroup_texts",
        text="the counters of cgroups, of both versions",
        make=cgroup_texts,
        seeds=_cgroup_seeds,
        words=(b"Total ", b"oom_kill ", b"rbytes=", b"max"),
        max_bytes=300,
    ),
)
