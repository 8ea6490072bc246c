"""The daemon before a module that says what it likes: hellos, reports, notices, answers.

The whole card without a simulator: its loop's time stands still until the program moves it, its
links are here, and every request that it sends waits for what the program answers.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from firmware.api import Api
from firmware.board import load_board
from firmware.card import Card, CardPorts
from firmware.decisions import Decisions, WorkloadDecision
from firmware.journal import Journal
from firmware.lease import LeaseState
from firmware.rpc import Dispatcher, MethodTable
from firmware.workload import Workload
from hal.ports import FenceKind, JournalRecord, SlotState
from protocol.apf import (
    LAYOUT_HASH,
    PAIRS,
    Body,
    CapabilitiesReply,
    CapabilitiesRequest,
    HaveReply,
    HaveRequest,
    Heartbeat,
    HelloReply,
    HelloRequest,
    InstanceState,
    InstanceStatus,
    InstanceTelemetry,
    Kind,
    OfferReply,
    OfferRequest,
    Refusal,
    StatusChanged,
    StatusReply,
    StatusRequest,
    Telemetry,
    decode,
    encode,
)
from protocol.mctp.reassembly import Message
from tests.fuzz.reader import Reader
from tests.fuzz.samples import sample_bodies
from tests.fuzz.target import Check, Target
from tests.fuzz.targets.messages import _message
from tests.fuzz.targets.sockets import Caller, Pipe, ask
from tests.unit.firmware.cnm.conftest import ManualLoop
from tests.unit.firmware.transfer_fakes import FakeBlobs
from tests.unit.firmware.window_fakes import FakeWindow, SeededEntropy

BOOT = b"b" * 16
SHOP = Workload.from_json(
    {
        "schema": "apf-workload/1",
        "name": "shop",
        "components": [
            {"name": "web", "image": "host", "argv": ["web"], "replicas": 2, "volumes": []},
            {
                "name": "db",
                "image": "host",
                "argv": ["db"],
                "volumes": [{"name": "data", "target": "/data"}],
                "healthcheck": {"test": ["true"]},
                "restart": {"policy": "on-failure", "max_attempts": 2},
            },
        ],
    }
)
REPLY_OF = dict(PAIRS)
SAMPLES = sample_bodies()
NOTICES: tuple[Body, ...] = (
    Heartbeat(
        boot_id=BOOT,
        seq=1,
        init_state=1,
        bound_epoch=1,
        lease_left_ms=1,
        agent_age_ms=1,
        status_seq=1,
        instances=0,
    ),
    StatusChanged(boot_id=BOOT, status_seq=5),
    Telemetry.of(boot_id=BOOT, seq=1, cpu_milli=3000, memory_bytes=1, temp_mdegc=99_000),
    replace(SAMPLES[InstanceTelemetry], boot_id=BOOT),
)


@cache
def _board() -> Any:
    board = load_board("mock_4", run_dir="/run")
    return replace(board, slots=board.slots[:1])


class Store:
    """A journal whose disk is at hand."""

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], bytes] = {}

    def load(self) -> list[JournalRecord]:
        return [JournalRecord(kind=k, key=key, value=v) for (k, key), v in self.records.items()]

    def submit(self, batch: Iterable[JournalRecord], done: Callable[[None], None]) -> None:
        for record in batch:
            if record.value is None:
                self.records.pop((record.kind, record.key), None)
            else:
                self.records[record.kind, record.key] = record.value
        done(None)

    def close(self) -> None: ...


class Power:
    """A slot that is on, and can't be switched. As every port it answers later."""

    def __init__(self, loop: ManualLoop) -> None:
        self._loop = loop

    def submit(self, request: Any, _deadline_ns: int, done: Callable[[SlotState], None]) -> None:
        state = SlotState(slot=request.slot, present=True, power_good=True, fence=FenceKind.LEASE)
        self._loop.post(lambda: done(state))

    def on_change(self, call: object) -> None: ...


class Bell:
    handle = 77

    def ring(self) -> None: ...

    def clear(self) -> None: ...

    def close(self) -> None: ...


HALVES = bytearray(8 << 20), bytearray(8 << 20)  # large, so they are made once


class Slot:
    """The hardware of the one slot."""

    def __init__(self, loop: ManualLoop) -> None:
        self._loop = loop

    def open_mc(self) -> Pipe:
        return Pipe()

    def open_agent(self) -> Pipe:
        return Pipe()

    def open_window(self, _deadline_ns: int, done: Callable[[Any], None]) -> None:
        for half in HALVES:
            half[:4096] = bytes(4096)
        self._loop.post(lambda: done((FakeWindow(*HALVES), Bell())))


OPERATIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("workload.submit", {"workload": SHOP.to_json()}),
    ("workload.submit", {"workload": SHOP.to_json()}),
    ("workload.remove", {"name": "shop"}),
    ("cnm.drain", {"id": "cnm0"}),
    ("cnm.undrain", {"id": "cnm0"}),
    ("volume.flush", {"name": "data"}),
    ("instance.migrate", {"instance": "shop/web/0"}),
    ("instance.logs", {"instance": "shop/web/0", "offset": 0}),
    ("workload.ps", {}),
    ("cnm.show", {"id": "cnm0"}),
    ("profile.list", {}),
    ("profile.show", {"component": "web"}),
)


class Bench:
    """One card, booted as far as its first question."""

    def __init__(self) -> None:
        self.loop = ManualLoop()
        self.store = Store()
        slot = _board().slots[0]
        ports = CardPorts(
            entropy=SeededEntropy(1),
            power=Power(self.loop),
            journal=self.store,
            blobs=FakeBlobs(self.loop),  # type: ignore[arg-type]
            host=None,
            slots={slot.id: Slot(self.loop)},
            runc_roots={},
            wall_ns=lambda: 1_700_000_000_000_000_000 + self.loop.now_ns(),
        )
        self.card = Card(_board(), self.loop, ports, safe_mode=False)
        self.card.start(lambda _error: None)
        [self.cnm] = self.card.inventory
        self.asked: list[tuple[str, bytes, int]] = []  # link, request, tag; oldest first
        self.staged: dict[str, InstanceStatus] = {}
        self.seq = 0
        for name in ("mc", "agent"):
            link = getattr(self.cnm, name).link
            link.send_message = lambda data, name=name, **more: self._sent(name, data, **more)
        table = MethodTable()
        Api(self.card, pids=dict).register(table)
        self.dispatcher = Dispatcher(table)
        self.answers: list[bytes] = []
        self.loop.advance(1)

    def _sent(self, link: str, data: bytes, *, tag: int, to: bool, urgent: bool = False) -> bool:
        notice = data[0] == 0x7E and data[4] == Kind.NOTICE
        if to and not notice:
            self.asked.append((link, data, tag))
        return True

    def submit(self) -> None:
        changes = self.card.volumes.ensure(["shop/data", "data"])
        self.card.decisions.accept(WorkloadDecision(workload=SHOP), changes, lambda _error: None)
        self.card.reconciler.kick_workload("shop")

    def operate(self, method: str, params: dict[str, Any]) -> None:
        """What somebody at the control socket wants."""
        self.dispatcher.dispatch(ask(method, **params), Caller(), [], self.answers.append)

    def tell(self, link: str, data: bytes, *, to: bool = True, tag: int = 7) -> None:
        if data:
            message = Message(8, 9, to, tag, data[0] & 0x7F, False, data)
            getattr(self.cnm, link).link.on_message(message)

    def answer(self, twist: Callable[[bytes], bytes] = bytes) -> None:
        """The oldest question: the honest answer, or what `twist` makes of its body."""
        if not self.asked:
            return
        link, data, tag = self.asked.pop(0)
        if data[0] == 0:
            self.tell(
                link, bytes([0, data[1] & 0x1F, data[2]]) + twist(b"\0\0\0"), to=False, tag=tag
            )
            return
        request = decode(data)
        body = twist(self.honest(request.body).to_bytes())
        self.tell(link, data[:4] + b"\0" + data[5:11] + b"\0" + body, to=False, tag=tag)

    def refuse(self, reason: int) -> None:
        if self.asked and self.asked[0][1][0] == 0x7E:
            link, data, tag = self.asked.pop(0)
            body = Refusal(reason=reason, retry_after_ms=5, text="no").to_bytes()
            self.tell(link, data[:4] + b"\0" + data[5:11] + b"\1" + body, to=False, tag=tag)

    def honest(self, request: Body) -> Body:
        self.seq += 1
        match request:
            case HelloRequest():
                return replace(
                    SAMPLES[HelloReply],  # type: ignore[type-var]
                    boot_id=BOOT,
                    layout_hash=LAYOUT_HASH,
                    version_min=1,
                    version_current=1,
                    bound_card_uuid=bytes(16),
                )
            case CapabilitiesRequest():
                return CapabilitiesReply(
                    arch="arm64",
                    cores_milli=8000,
                    memory_bytes=1 << 34,
                    nvme_bytes=1 << 38,
                    link_mbit=1000,
                    window_tx_bytes=1 << 20,
                    window_rx_bytes=1 << 20,
                    accelerators=(),
                    runtimes=("oci", "process"),
                    labels=(("zone", "a"),),
                )
            case StatusRequest():
                entries = tuple(self.staged.values())
                return StatusReply(
                    boot_id=BOOT, status_seq=self.seq, total=len(entries), entries=entries
                )
            case OfferRequest():
                return OfferReply(state=0)
            case HaveRequest():
                return HaveReply(bits=b"\xff" * (-(-len(request.digests) // 8)))
        return self._command(request)

    def _command(self, request: Any) -> Body:
        """Deploys are ready at once, starts run at once."""
        reply: Any = SAMPLES[REPLY_OF[type(request)]]
        if not hasattr(reply, "status_seq") or not hasattr(request, "generation"):
            return reply  # type: ignore[no-any-return]
        name = type(request).__name__
        state = {"Start": 4, "Commit": 4, "Stop": 6}.get(name.removesuffix("Request"), 2)
        found = InstanceState(state)
        self.staged[request.instance] = InstanceStatus(
            instance=request.instance, generation=request.generation, state=found
        )
        if name == "RemoveRequest":
            del self.staged[request.instance]
        changes = {"status_seq": self.seq, "state": found}
        known = {key: value for key, value in changes.items() if hasattr(reply, key)}
        return replace(reply, **known)

    def step(self, reader: Reader) -> None:
        action = reader.byte() % 16
        if action < 6:
            self.answer()
        elif action < 8:
            self.answer(lambda body: _twisted(body, reader))
        elif action == 8:
            self.refuse(reader.byte() % 24)
        elif action == 9 and self.asked:
            self.asked.pop(0)
        elif action < 12:
            notice = reader.choice(NOTICES)
            data = encode(notice, kind=Kind.NOTICE, message_id=1)
            head, body = data[:12], data[12:]
            data = head + (_twisted(body, reader) if action == 11 else body)
            self.tell(reader.choice(("mc", "agent")), data)
        elif action == 12:
            self.tell(reader.choice(("mc", "agent")), _message(reader.piece()))
        elif action == 13:
            self.loop.advance(reader.byte() * 10)
        elif action == 14:
            self.operate(*reader.choice(OPERATIONS))
        else:
            self._report(reader)

    def _report(self, reader: Reader) -> None:
        """An instance is, says the module, in a state of its choice."""
        name = reader.choice(("shop/web/0", "shop/web/1", "shop/db/0", "x/y/9", "no slash", "//"))
        self.staged[name] = InstanceStatus(
            instance=name,
            generation=reader.number(1 + reader.byte() % 8),
            state=reader.byte() % 16,
            pid=reader.byte(),
            health=reader.byte() % 8,
            exit_reason=reader.byte() % 8,
            exit_status=reader.byte() - 128,
        )

    def beat(self) -> None:
        self.seq += 1
        beat = replace(NOTICES[0], seq=self.seq, status_seq=self.seq)  # type: ignore[type-var]
        self.tell("mc", encode(beat, kind=Kind.NOTICE, message_id=1))

    def look(self) -> None:
        """What people see has a form, whatever came."""
        card = self.card
        shown = [card.status(), card.views.cnms(), card.views.instances(None), card.volumes.show()]
        shown += [card.views.cnm_detail(self.cnm), [e.to_json() for e in card.events.since(0)]]
        json.dumps(shown, allow_nan=False)
        assert all(json.loads(line) for line in self.answers)


def _twisted(body: bytes, reader: Reader) -> bytes:
    """Some of its bytes are others; mostly its length stays."""
    wire = bytearray(body)
    for _ in range(1 + reader.byte() % 4):
        at = reader.byte() % (len(wire) + 1)
        piece = reader.take(1 + reader.byte() % 9)
        wire[at : at + len(piece)] = piece
    return bytes(wire[: len(body)] if reader.byte() & 7 else wire)


def card(_scratch: Path) -> Check:
    def check(data: bytes) -> bool:
        bench, reader = Bench(), Reader(data)
        while reader.left:
            bench.step(reader)
            bench.loop.advance(0)
        bench.look()
        for _ in range(6):  # and from now on the truth
            for _ in range(6):
                bench.answer()
            bench.beat()
            bench.loop.advance(100)
        bench.look()
        journal = Journal(Store())
        journal._store = bench.store
        journal.load()
        Decisions(journal, bench.loop, bench.card.events).load()
        return bench.cnm.lease.state is LeaseState.LEASED

    return check


def _programs() -> Iterable[bytes]:
    boot = bytes([0] * 8)
    yield boot + bytes([14, *[0] * 30, 10, 0, 0, 13, 20, *[0] * 8])
    yield boot + bytes([14, *[0] * 12, 15, 0, 0, 1, 3, 5, 1, 1, 200, 10, 1, 1, *[0] * 8, 13, 99])
    for index in range(8):
        yield bytes([0] * index) + bytes([6, 1, index * 5, 3, 255, 255, 255, 255, 1, 14, *[0] * 9])
        yield boot + bytes([14]) + bytes([0] * index * 3) + bytes([8, 1 + index * 3, 13, 20, 0, 0])
        yield boot + bytes([14, *[0] * 20, 11, index % 4, 1, 16 + index * 4, 7]) + b"\xff" * 8
        yield boot + bytes([14, *[0] * 20, 15, index % 6, index, index, 7, 9, index, 1, 2, 3])
        yield boot + bytes(
            [14, *[0] * 20, 15, index % 3, 0, 1, index, 0, 0, 1, 1, 10, 1, 1, 0, 0, 0]
        )


TARGETS = (
    Target(
        name="card",
        text="the daemon before a module that answers and reports what it likes",
        make=card,
        seeds=_programs,
        max_bytes=512,
    ),
)
