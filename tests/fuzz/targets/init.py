"""A CNM's init between a hostile card and a hostile agent.

Init is the parent of every instance and guards the lease, so that neither end may bring it down.
"""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from firmware.board_types import Module
from firmware.cnm.config import CnmConfig, CnmTiming
from firmware.cnm.init import Init, InitPorts, build_init
from firmware.cnm.instances import INSTANCES_LIMIT
from firmware.cnm.prepared_json import prepared_from_json, prepared_to_json
from firmware.cnm.records import Prepared, ctx_from_json, key_of
from firmware.fields import FieldError
from hal.errors import Refused, Unavailable
from hal.ports import (
    Event,
    ExitReason,
    InstanceExit,
    InstanceLimits,
    InstanceSpec,
    MountSpec,
    Usage,
)
from protocol.apf import Ctx, Grant, HelloRequest, Kind, decode, encode
from protocol.mctp.reassembly import Message
from tests.fuzz.reader import Reader, all_keys, json_text
from tests.fuzz.samples import sample
from tests.fuzz.target import Check, Target
from tests.fuzz.targets.messages import _message
from tests.fuzz.targets.sockets import Pipe
from tests.unit.firmware.cnm.conftest import FakeRuntime
from tests.unit.firmware.window_fakes import MS, FakeReactor, SeededEntropy

CARD = b"c" * 16
PREPARED = Prepared(
    runtime="fake",
    spec=InstanceSpec(
        key=key_of("a", 1),
        argv=["/bin/a"],
        env={"A": "1"},
        cwd="/",
        user="",
        hostname="h",
        rootfs="/r",
        read_only_rootfs=False,
        mounts=[MountSpec(source="/v", target="/d", read_only=True)],
        limits=InstanceLimits(cpu_milli=1, memory_bytes=1, pids=1),
        stop_signal=15,
    ),
)
CONFIG = CnmConfig(
    id="cnm0",
    slot=0,
    vendor_id=0x4150,
    state_dir="/s",
    run_dir="/r",
    cgroup="",
    mc="mock:a",
    agent="mock:b",
    module=Module(
        arch="amd64",
        cores_milli=1000,
        memory_bytes=1 << 30,
        nvme_bytes=1 << 30,
        link_mbit=1,
        runtimes=("fake",),
        labels={},
        accelerators=(),
    ),
    timing=CnmTiming(heartbeat_ms=500, telemetry_ms=500),
)


class MemoryFiles:
    """`hal.ports.Files` in a dictionary."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def read(self, path: str, offset: int = 0, length: int = 1 << 20) -> bytes:
        if path not in self.files:
            raise Unavailable(path)
        return self.files[path][offset : offset + length]

    def write(self, path: str, data: bytes) -> None:
        self.files[path] = bytes(data)

    def append(self, path: str, data: bytes) -> None:
        self.files[path] = self.files.get(path, b"") + bytes(data)

    def size_bytes(self, path: str) -> int | None:
        return len(self.files[path]) if path in self.files else None

    def names(self, _path: str) -> list[str]:
        return []

    def remove(self, path: str) -> None:
        for name in [name for name in self.files if name == path or name.startswith(f"{path}/")]:
            del self.files[name]

    def free_bytes(self) -> int:
        return 1 << 20


class Process:
    """The agent's; killed means that its end is reported a moment later."""

    pid = 7

    def __init__(self, reactor: FakeReactor, on_exit: Any) -> None:
        self._reactor, self._on_exit = reactor, on_exit
        self.ended = False

    def kill(self, signal: int) -> None:
        if not self.ended:
            self.ended = True
            self._reactor.post(lambda: self._on_exit(-signal))


class Bench:
    """One init, with everything around it in the hands of a program."""

    def __init__(self) -> None:
        self.reactor = FakeReactor()
        self.runtime = FakeRuntime()
        self.pipe = Pipe()
        self.process: Process | None = None
        self.line = Pipe()
        self.init: Init = build_init(
            CONFIG,
            InitPorts(
                reactor=self.reactor,
                entropy=SeededEntropy(1),
                open_mc=lambda: self.line,
                start_agent=self._start_agent,
                runtimes={"fake": self.runtime},
                files=MemoryFiles(),
                logs=MemoryFiles(),
                open_output=self._no_output,
                node_usage=lambda: Usage(cpu_us=0, memory_bytes=1),
                window_tx_bytes=0,
                window_rx_bytes=0,
                halt=None,
                log=lambda _text: None,
            ),
        )
        self.sent: list[bytes] = []
        self.init.endpoint.link.send_message = self._send  # type: ignore[method-assign,assignment]
        self.init.start()
        self.ctx = Ctx(card_uuid=CARD, epoch=1, boot_id=self.init.identity.boot_id)
        self.bases, self.words = _operations(self.ctx)

    def _no_output(self, _fd: int) -> Any:
        raise Refused("no output here")

    def _start_agent(self, on_exit: Any) -> tuple[Pipe, Process]:
        self.pipe, self.process = Pipe(), Process(self.reactor, on_exit)
        return self.pipe, self.process

    def _send(self, data: bytes, *, tag: int, to: bool, urgent: bool = False) -> bool:
        self.sent.append(data)
        return True

    def receive(self, data: bytes) -> None:
        if data:
            message = Message(0, 8, True, 1, data[0] & 0x7F, False, data)
            self.init.endpoint.link.on_message(message)

    def say(self, line: bytes) -> None:
        """The agent says a line."""
        self.pipe.inbox += line
        for _ in range(4):
            peer = self.init.supervisor.peer
            if peer is not None:
                peer._on_event(Event.READ | Event.WRITE)
        self.reactor.settle()

    def grant(self) -> None:
        seq = self.init.mc._heartbeat_seq
        body = Grant(card_uuid=CARD, epoch=1, boot_id=self.ctx.boot_id, seq=seq, lease_ms=5000)
        self.receive(encode(body, kind=Kind.NOTICE, message_id=1))

    def step(self, reader: Reader) -> None:
        action = reader.byte() % 12
        if action < 4:
            self.say(json_text(reader.piece(), self.bases, self.words) + b"\n")
        elif action == 4:
            base = reader.choice(self.bases)
            self.say(json.dumps(base).encode() + b"\n")
        elif action == 5:
            self.receive(_message(reader.piece()))
        elif action == 6:
            self.grant()
        elif action == 7:
            self.reactor.advance(reader.byte() * 25 * MS)
        elif action in (8, 9):
            self._runtime_acts(reader, action)
        elif action == 10:
            hello = sample(HelloRequest)
            self.receive(encode(hello, kind=Kind.REQUEST, message_id=reader.byte()))
        elif self.process is not None:
            self.process.kill(9)

    def _runtime_acts(self, reader: Reader, action: int) -> None:
        keys = list(self.runtime.starts)
        if not keys:
            return
        key = reader.choice(keys)
        if action == 8:
            self.runtime.started(key)
        elif reader.byte() & 1:
            reason = reader.choice(list(ExitReason))
            self.runtime.exit(key, InstanceExit(reason=reason, status=reader.byte()))
        else:
            self.runtime.fail(key, Unavailable("no"))


@cache
def _operations(ctx: Ctx) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """A line of each kind, and the words in them."""
    who = {
        "ctx": {"card": ctx.card_uuid.hex(), "epoch": ctx.epoch, "boot": ctx.boot_id.hex()},
        "instance": "a",
        "generation": 1,
    }
    prepared = {"instance": "a", "generation": 1, "prepared": prepared_to_json(PREPARED)}
    operations: dict[str, dict[str, Any]] = {
        "hello": {"card": CARD.hex(), "epoch": 1},
        "stage": {**who, "spec": "ab" * 32, "volumes": ["v"]},
        "prepared": prepared,
        "start": who,
        "stop": {**who, "grace_ms": 1000},
        "remove": who,
        "status": {"cursor": 0},
    }
    lines: list[dict[str, Any]] = [
        {"id": number, "op": name, "args": args}
        for number, (name, args) in enumerate(operations.items())
    ]
    lines.append({"op": "ping", "args": {"link_tx_bytes": 1, "link_rx_bytes": None}})
    return lines, (*all_keys(*lines), *("held", "usage", "info", "look", "abort"))


def init(_scratch: Path) -> Check:
    def check(data: bytes) -> bool:
        bench, reader = Bench(), Reader(data)
        while reader.left:
            bench.step(reader)
            assert bench.init.table.count <= INSTANCES_LIMIT
        bench.reactor.advance(1_100 * MS)  # telemetry and many heartbeats: all have a wire form
        if bench.process is not None:
            bench.process.kill(9)
        bench.reactor.advance(2_100 * MS)  # the longest back-off
        bench.say(b'{"id":77,"op":"info","args":{}}\n{"id":78,"op":"status","args":{"cursor":0}}\n')
        lines = [json.loads(line) for line in bytes(bench.pipe.out).splitlines()]
        answers = {line.get("id"): line for line in lines}
        assert answers[77]["ok"]["boot"] == bench.ctx.boot_id.hex()
        assert "ok" in answers[78]
        _judge_sent(bench.sent)
        return bool(bench.runtime.calls) or bench.init.table.count > 0

    return check


def _judge_sent(sent: Iterable[bytes]) -> None:
    for data in list(sent)[-20:]:
        if data[0] == 0x7E:
            decode(data)


def prepared(_scratch: Path) -> Check:
    """What init makes of the agent's `prepared` and contexts."""
    base = prepared_to_json(PREPARED)
    base["healthcheck"] = {
        "argv": ["a"],
        "interval_ms": 1,
        "timeout_ms": 1,
        "retries": 1,
        "start_period_ms": 0,
    }
    context = {"card": "ab" * 16, "epoch": 3, "boot": "cd" * 16}
    words = all_keys(base, context)

    def check(data: bytes) -> bool:
        try:
            value = json.loads(json_text(data, (base, context), words))
            ctx = ctx_from_json(value) if data[:1] == b"\1" else None
            found = prepared_from_json(value) if ctx is None else None
        except (KeyError, TypeError, ValueError, RecursionError, FieldError):
            return False
        if found is not None:
            assert prepared_from_json(prepared_to_json(found)) == found
        if ctx is not None:
            assert (len(ctx.card_uuid), len(ctx.boot_id)) == (16, 16)
        return True

    return check


def _programs() -> Iterable[bytes]:
    bench = Bench()
    yield bytes([4, 0, 6, 4, 1, 4, 2, 4, 3, 8, 0, 4, 4, 7, 60, 9, 0, 1, 0, 1, 4, 5, 4, 6])
    yield bytes([6, 4, 0, 6, 4, 1, 4, 2, 4, 3, 7, 250, 7, 250, 8, 0, 4, 3, 11, 7, 9, 4, 6, 10, 3])
    for index in range(len(bench.bases)):
        for place in range(6):
            edit = bytes([index, 2, place, 255, 5, 1, place])
            yield bytes([6, 4, 0, 4, 1, 4, 2, 0, len(edit)]) + edit + bytes([7, 90, 4, 6])
            edit = bytes([index, 0, 2, place, 0, 5, 1, place * 3])
            yield bytes([6, 4, 0, 4, 1, 4, 2, 4, 3, 0, len(edit)]) + edit + bytes([8, 0, 7, 90])
    for place in range(len("ab")):
        yield bytes([7, 2, place, 5, 1, place])


TARGETS = (
    Target(
        name="init",
        text="a CNM's init between a card and an agent that say anything",
        make=init,
        seeds=_programs,
        max_bytes=512,
    ),
    Target(
        name="prepared",
        text="what the agent says it has prepared, and contexts, as JSON",
        make=prepared,
        seeds=lambda: [
            *(
                bytes([index, a, b, 5, 1, c])
                for index in range(2)
                for a in range(5)
                for b in range(6)
                for c in range(3)
            ),
            *(json.dumps(prepared_to_json(PREPARED)).encode(), b"\0", b"\1"),
        ],
        max_bytes=512,
    ),
)
