"""The measured program of `apf bench loop`, in an interpreter of its own:

    python -m tools.bench.loop_program KIND PIPES PER_S SECONDS

A writer process feeds each of PIPES pipes PER_S messages a second, evenly spread; this process
reads them on one loop for SECONDS and prints what that cost as JSON. KIND:

    loop     firmware.loop.Loop over LinuxClock; the message goes into a table
    asyncio  the same with asyncio's add_reader
    links    frames through Link, Endpoint and the CNM's record: the card's whole receive path
"""

import argparse
import json
import os
import resource
import struct
import sys
from collections.abc import Callable
from typing import Final

from hal.linux.clock import LinuxClock
from hal.ports import Event
from tools.bench.measure import cpu_ns
from tools.bench.timing import MS, SECOND

MESSAGE: Final = struct.Struct("<16sIHIQQQQ")  # about what a telemetry message holds
READ_BYTES: Final = 4096
WARM_NS: Final = 300 * MS
TICK_NS: Final = MS  # of the writer
SPARE_FDS: Final = 64
EXIT_NO_FDS: Final = 3


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("loop", "asyncio", "links"))
    parser.add_argument("pipes", type=int)
    parser.add_argument("per_s", type=int)
    parser.add_argument("seconds", type=float)
    args = parser.parse_args()
    wanted = 2 * args.pipes + SPARE_FDS
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        sys.stderr.write(f"{args.pipes} pipes need {wanted} descriptors, the limit is {hard}")
        return EXIT_NO_FDS
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    pipes = [os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC) for _ in range(args.pipes)]
    messages = _frames(len(pipes)) if args.kind == "links" else [_message(i) for i in range(256)]
    span_ns = int(args.seconds * SECOND)
    writer = os.fork()  # before anything is watched; this process has one thread
    if writer == 0:
        for read_fd, _ in pipes:
            os.close(read_fd)
        _feed([end for _, end in pipes], messages, args.per_s, span_ns + 2 * WARM_NS)
        os._exit(0)
    for _, write_fd in pipes:
        os.close(write_fd)
    ends = [end for end, _ in pipes]
    measure = {"loop": _on_loop, "asyncio": _on_asyncio, "links": _on_links}[args.kind]
    found = measure(ends, span_ns)
    for end in ends:
        os.close(end)  # the writer ends at its next write
    os.waitpid(writer, 0)
    print(json.dumps(found))
    return 0


def _message(number: int) -> bytes:
    return MESSAGE.pack(bytes(16), number, 0x7F, 500, 1 << 29, 1 << 30, 1 << 31, 1 << 32)


def _frames(count: int) -> list[bytes]:
    from tools.bench.state_table import boot_id_of, heartbeat, notice_bytes

    return [notice_bytes(heartbeat(boot_id_of(number))) for number in range(count)]


def _feed(ends: list[int], messages: list[bytes], per_s: int, span_ns: int) -> None:
    """Write at the given rate until the time is up or nobody reads any more."""
    clock = LinuxClock()
    start_ns = clock.now_ns()
    sent = 0
    while (past_ns := clock.now_ns() - start_ns) < span_ns:
        due = past_ns * per_s * len(ends) // SECOND
        while sent < due:
            index = sent % len(ends)
            sent += 1
            try:
                os.write(ends[index], messages[index % len(messages)])
            except BlockingIOError:
                continue  # the reader is that far behind: it shows in its count
            except BrokenPipeError:
                return
        clock.wait(clock.now_ns() + TICK_NS)


class _Count:
    """CPU time and messages between the end of the warm-up and the end."""

    def __init__(self) -> None:
        self.messages = 0
        self._from = (0, 0)

    def begin(self) -> None:
        self._from = (cpu_ns(), self.messages)

    def result(self) -> dict[str, float]:
        return {"cpu_ns": cpu_ns() - self._from[0], "messages": self.messages - self._from[1]}


def _reader(end: int, count: _Count, table: dict[bytes, object]) -> Callable[[Event], None]:
    """The least that a handler does: read, unpack, remember. The same for both loops."""

    def read(_events: Event) -> None:
        data = os.read(end, READ_BYTES)
        for at in range(0, len(data) - MESSAGE.size + 1, MESSAGE.size):
            fields = MESSAGE.unpack_from(data, at)
            table[fields[0]] = fields
            count.messages += 1

    return read


def _on_loop(ends: list[int], span_ns: int) -> dict[str, float]:
    from firmware.loop import Loop

    count, table = _Count(), dict[bytes, object]()
    loop = Loop(LinuxClock())
    for end in ends:
        read = _reader(end, count, table)
        loop.watch(end, Event.READ, read)
    loop.call_later(WARM_NS, count.begin)
    loop.call_later(WARM_NS + span_ns, loop.stop)
    loop.run()
    return count.result()


def _on_asyncio(ends: list[int], span_ns: int) -> dict[str, float]:
    import asyncio

    count, table = _Count(), dict[bytes, object]()
    loop = asyncio.new_event_loop()
    for end in ends:
        loop.add_reader(end, _reader(end, count, table), Event.READ)
    loop.call_later(WARM_NS / SECOND, count.begin)
    loop.call_later((WARM_NS + span_ns) / SECOND, loop.stop)
    loop.run_forever()
    found = count.result()
    loop.close()
    return found


def _on_links(ends: list[int], span_ns: int) -> dict[str, float]:
    from firmware.loop import Loop
    from hal.linux.pipe import PipeReader
    from tools.bench.state_table import StateTable, boot_id_of

    loop = Loop(LinuxClock())
    table = StateTable(loop)
    for number, end in enumerate(ends):
        table.add(PipeReader(os.dup(end)), boot_id_of(number))
    count = _Count()

    def take() -> None:
        count.messages = table.updates

    def begin() -> None:
        take()
        count.begin()

    loop.call_later(WARM_NS, begin)
    loop.call_later(WARM_NS + span_ns, loop.stop)
    loop.run()
    take()
    found = count.result()
    for cnm in table.cnms:
        cnm.mc.link.close()
    return found


if __name__ == "__main__":
    sys.exit(main())
