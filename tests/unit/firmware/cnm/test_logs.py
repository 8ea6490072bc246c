"""Logs by offset: resumed exactly, gaps shown, bounded on disk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.cnm.logs import PAUSE_NS, LogCapture, LogFiles
from hal.errors import LinkDown, StoreFull, Unavailable
from hal.ports import Event


class MemoryFiles:
    """Just what logs need of `Files`."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.full = False

    def append(self, path: str, data: bytes) -> None:
        if self.full:
            raise StoreFull("no space")
        self.data[path] = self.data.get(path, b"") + data

    def read(self, path: str, offset: int = 0, length: int = 1 << 20) -> bytes:
        if path not in self.data:
            raise Unavailable(path)
        return self.data[path][offset : offset + length]

    def remove(self, path: str) -> None:
        for name in [n for n in self.data if n == path or n.startswith(path + "/")]:
            del self.data[name]

    def names(self, path: str) -> list[str]:
        prefix = f"{path}/" if path else ""
        return sorted({n[len(prefix) :].split("/")[0] for n in self.data if n.startswith(prefix)})

    def size_bytes(self, path: str) -> int | None:
        return len(self.data[path]) if path in self.data else None


class FakeStream:
    def __init__(self, handle: int, chunks: list[bytes]) -> None:
        self.handle, self.chunks, self.closed = handle, chunks, False

    def read(self) -> bytes:
        if not self.chunks:
            raise LinkDown("eof")
        return self.chunks.pop(0)

    def close(self) -> None:
        self.closed = True


def small(files: MemoryFiles) -> LogFiles:
    return LogFiles(files, segment_bytes=10, segments=2)


def test_a_reader_that_resumes_at_the_end_gets_exactly_what_is_new() -> None:
    logs = small(MemoryFiles())
    logs.append("a", b"hello ")
    first = logs.read("a", 0, 100)
    logs.append("a", b"world")
    second = logs.read("a", first.start + len(first.data), 100)
    assert first.data + second.data == b"hello world"
    assert second.end == 11


def test_what_was_rotated_away_shows_as_a_gap() -> None:
    logs = small(MemoryFiles())
    for _ in range(5):
        logs.append("a", b"0123456789")
    got = logs.read("a", 0, 100)
    assert (got.start, got.end, len(got.data)) == (30, 50, 20)


def test_an_unknown_log_and_a_read_past_the_end_are_empty() -> None:
    logs = small(MemoryFiles())
    assert logs.read("a", 5, 10).end == 0
    logs.append("a", b"123")
    got = logs.read("a", 99, 10)
    assert (got.start, got.end, got.data) == (3, 3, b"")


def test_a_segment_that_goes_away_during_the_read_is_looked_for_again() -> None:
    files = MemoryFiles()
    logs = small(files)
    for _ in range(2):
        logs.append("a", b"0123456789")
    real_read = files.read

    def racing_read(path: str, offset: int = 0, length: int = 1 << 20) -> bytes:
        files.read = real_read
        logs.append("a", b"x")  # rotates the first segment away
        return real_read(path, offset, length)

    files.read = racing_read
    got = logs.read("a", 0, 100)
    assert got.start == 10
    assert got.data == b"0123456789x"


@given(st.lists(st.binary(min_size=1, max_size=25), max_size=30), st.integers(0, 400))
def test_whatever_is_kept_is_the_true_slice_of_the_stream(parts: list[bytes], offset: int) -> None:
    logs, stream = small(MemoryFiles()), b""
    for part in parts:
        logs.append("a", part)
        stream += part
    got = logs.read("a", offset, 1000)
    assert got.end == len(stream)
    assert got.data == stream[got.start : got.start + len(got.data)]
    assert got.start == max(min(offset, len(stream)), logs.bounds("a")[0])
    assert got.start + len(got.data) == got.end
    assert logs.bounds("a")[0] >= len(stream) - 2 * (10 + 25)


def test_capture_reads_once_a_turn_and_pauses(loop) -> None:
    files = MemoryFiles()
    capture = LogCapture(loop, small(files), lambda fd: stream)
    stream = FakeStream(5, [b"a" * 4, b"b" * 4])
    capture.attach("log", 5)
    watches = loop._watches
    watches[5](Event.READ)
    assert 5 not in watches, "a chatty instance waits for its next turn"
    loop.advance(PAUSE_NS / 1e6)
    watches[5](Event.READ)
    loop.advance(1)
    watches[5](Event.READ)  # the end
    assert stream.closed
    assert small(files).read("log", 0, 99).data == b"aaaabbbb"


def test_a_full_disk_loses_log_bytes_and_nothing_else(loop) -> None:
    files = MemoryFiles()
    capture = LogCapture(loop, small(files), lambda fd: FakeStream(5, [b"lost", b"kept"]))
    capture.attach("log", 5)
    files.full = True
    loop._watches[5](Event.READ)
    loop.advance(1)
    files.full = False
    loop._watches[5](Event.READ)
    assert capture.counters["dropped_bytes"] == 4
    assert small(files).read("log", 0, 9).data == b"kept"


def test_an_output_that_cannot_be_opened_is_counted(loop) -> None:
    def refuse(fd: int) -> FakeStream:
        raise Unavailable("gone")

    capture = LogCapture(loop, small(MemoryFiles()), refuse)
    capture.attach("log", 7)
    capture.attach("log", -1)
    assert capture.counters["open_failed"] == 1


@pytest.mark.parametrize("name", ["junk", "123", "x" * 20])
def test_names_that_are_no_segments_are_left_alone(name: str) -> None:
    files = MemoryFiles()
    files.data[f"a/{name}"] = b"zzz"
    logs = small(files)
    logs.append("a", b"ok")
    assert logs.read("a", 0, 10).data == b"ok"
