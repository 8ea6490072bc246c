"""Numbered chunks through a window by processes that may be killed at any time.

The reader keeps in a small file how many chunks it has, and a CRC-32C over their ends; after each
connection it tells the writer which one it wants next. A chunk that comes twice, out of order or
changed ends the reader with an error (each has a CRC-32C of its own in the ring, too). `Worker` is
such a process, forked from this one.
"""

import os
import signal
import struct
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from firmware.loop import Loop
from firmware.window import WindowChannel
from hal.linux.clock import LinuxClock
from hal.linux.entropy import LinuxEntropy
from hal.registry import Registry, World
from protocol.crc import crc32c
from protocol.window import KIND_BLOB, KIND_LOG

CHUNK_BYTES: Final = 65_536
END_BYTES: Final = 64
LIMIT_NS: Final = 900_000_000_000
_PROGRESS: Final = struct.Struct("<QQ")  # chunks, CRC of them
_PATTERN: Final = b"".join(
    (number * 2_654_435_761 & 0xFFFF_FFFF).to_bytes(4, "little") for number in range(32_768)
)


def chunk(number: int) -> bytes:
    """What chunk `number` holds: no two of the first 65,536 are the same."""
    return _PATTERN[number % CHUNK_BYTES : number % CHUNK_BYTES + CHUNK_BYTES - 8] + struct.pack(
        "<Q", number
    )


def crc_of(chunks: int) -> int:
    """CRC-32C over the ends of all of them."""
    crc = 0
    for number in range(chunks):
        crc = crc32c(chunk(number)[-END_BYTES:], crc)
    return crc


def progress(path: Path) -> tuple[int, int]:
    """Chunks and CRC; (0, 0) before the first."""
    data = path.read_bytes() if path.exists() else b""
    return _PROGRESS.unpack(data) if len(data) == _PROGRESS.size else (0, 0)


class _End:
    """A channel on a loop of its own, until `done` or the limit."""

    def __init__(self, spec: str) -> None:
        self.loop = Loop(LinuxClock())
        window, bell = Registry(World(reactor=self.loop)).open_shared_window(spec)
        self.channel = WindowChannel(window, bell, self.loop, LinuxEntropy())
        self.channel.expect(True)
        self.done = False

    def run(self) -> None:
        self.channel.attach()
        self.loop.call_later(LIMIT_NS, self.loop.stop)
        self.loop.run()
        self.channel.close()
        assert self.done, f"not done in time: {dict(self.channel.counters)}"

    def finish(self) -> None:
        self.done = True
        self.loop.stop()


def write(spec: str, chunks: int) -> None:
    """Send what the reader wants, until it wants no more."""
    end = _End(spec)
    state = {"next": -1}

    def pump() -> None:
        while 0 <= state["next"] < chunks:
            number = state["next"]
            if not end.channel.send(KIND_BLOB, 1, number, chunk(number)):
                return  # on_space comes
            state["next"] = number + 1

    def wanted(_kind: int, _transfer: int, number: int, _data: bytes) -> None:
        state["next"] = number
        end.finish() if number == chunks else pump()

    def connected() -> None:
        state["next"] = -1

    end.channel.on_chunk, end.channel.on_space = wanted, pump
    end.channel.on_connect = connected
    end.run()


def read(spec: str, chunks: int, kept: Path) -> None:
    """Take all of them, once each and in order."""
    end = _End(spec)
    count, crc = progress(kept)
    state = {"count": count, "crc": crc, "asked": False}
    fd = os.open(kept, os.O_RDWR | os.O_CREAT, 0o600)

    def ask() -> None:
        if not state["asked"]:
            state["asked"] = end.channel.send(KIND_LOG, 1, state["count"], b"want")

    def connected() -> None:
        state["asked"] = False
        ask()

    def got(_kind: int, _transfer: int, number: int, data: bytes) -> None:
        assert number == state["count"], f"chunk {number} came, {state['count']} was wanted"
        assert data == chunk(number), f"chunk {number} is not what was sent"
        state["crc"] = crc32c(data[-END_BYTES:], int(state["crc"]))
        state["count"] = number + 1
        os.pwrite(fd, _PROGRESS.pack(state["count"], state["crc"]), 0)
        if state["count"] == chunks:
            state["asked"] = False
            ask()

    def told() -> None:
        """The writer knows that all is there: it took the last word, or went when it had."""
        taken = end.channel.tx_gone == end.channel.tx_put or not end.channel.connected
        if state["count"] == chunks and state["asked"] and taken:
            end.finish()

    end.channel.on_chunk, end.channel.on_connect = got, connected
    end.channel.on_space, end.channel.on_taken = ask, told
    end.channel.on_disconnect = told
    end.run()
    os.close(fd)


class Worker:
    """`run` in a process of its own."""

    def __init__(self, run: Callable[[], None]) -> None:
        self._run = run
        self.pid = 0
        self.kills = 0

    def start(self) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                self._run()
                status = 0
            except BaseException:  # noqa: BLE001  said, and judged by the status
                traceback.print_exc()
            finally:
                os._exit(status)

    def ended(self) -> bool:
        """Raises AssertionError when it ended badly."""
        if not self.pid:
            return True
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return False
        self.pid = 0
        code = os.waitstatus_to_exitcode(status)
        assert code == 0, f"a worker ended with status {code}"
        return True

    def kill_and_restart(self) -> None:
        """SIGKILL, wherever it is, and another one."""
        if self.pid:
            self.stop()
            self.kills += 1
            self.start()

    def stop(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
