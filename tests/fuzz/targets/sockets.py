"""Lines of JSON: the daemon's control socket, its client, and the stream of init and agent."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from firmware import rpc
from firmware.cnm.local_stream import REQUESTS_LIMIT, UNSENT_LIMIT, LocalPeer
from firmware.control_connection import (
    BACKLOG_CUT_BYTES,
    MAX_LINE_BYTES,
    MAX_OUTSTANDING,
    MAX_WAITING_FDS,
    Connection,
)
from firmware.fields import Fields
from firmware.workload import Workload
from hal.errors import LinkDown, StoreFull
from hal.ports import Event
from hal.service_ports import PeerCredentials
from tests.fuzz.reader import Reader, all_keys, json_text
from tests.fuzz.target import Check, Target
from tests.fuzz.targets.documents import SMALL
from tests.unit.firmware.window_fakes import MS, FakeReactor
from tools.client import Client
from tools.errors import DaemonRefused, DaemonUnreachable

MAX_ANSWER = 17 << 20


def ask(method: str, number: object = 1, **params: object) -> bytes:
    message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
    return json.dumps(message).encode()


class Methods:
    """A method of each kind."""

    def __init__(self) -> None:
        self.table = rpc.MethodTable()
        self.dispatcher = rpc.Dispatcher(self.table)
        self.open: list[rpc.Deferred] = []
        self.done = self.taken = 0
        self.table.add("echo", rpc.Role.READ, self._echo)
        self.table.add("later", rpc.Role.READ, self._later)
        self.table.add("full", rpc.Role.OPERATE, self._full)
        self.table.add("submit", rpc.Role.OPERATE, self._submit)
        self.table.add("follow", rpc.Role.READ, self._follow)
        self.table.add("blob", rpc.Role.OPERATE, self._blob, fds=1)
        self.table.add("stop", rpc.Role.ADMIN, lambda _call: None)

    def _echo(self, call: rpc.Call) -> object:
        fields: Fields = call.params
        found = {
            "text": fields.text("text", ""),
            "number": fields.integer("number", 0, high=9),
            "list": list(fields.texts("list", max_items=4)),
            "flag": fields.boolean("flag", False),
        }
        fields.done()
        self.done += 1
        return found

    def _later(self, _call: rpc.Call) -> object:
        self.open.append(rpc.Deferred())
        return self.open[-1]

    def _blob(self, call: rpc.Call) -> object:
        self.taken += 1
        return call.take_fd()

    def _full(self, _call: rpc.Call) -> object:
        raise StoreFull("no room")

    def _submit(self, call: rpc.Call) -> object:
        workload = Workload.from_json(call.params.rest().get("workload"))
        self.done += 1
        return workload.to_json()

    def _follow(self, call: rpc.Call) -> object:
        call.caller.on_room(lambda: call.caller.notify("event", {"room": True}) and None)
        return call.caller.notify("event", {"text": "x" * 3000})


class Caller:
    """Operator without descriptors."""

    role = rpc.Role.OPERATE
    peer = PeerCredentials(pid=1, uid=7, gid=7)

    def notify(self, _method: str, _params: Mapping[str, object]) -> bool:
        return False

    def discard(self, fds: Sequence[int]) -> None:
        assert not fds

    def on_room(self, _call: object) -> None: ...

    def on_close(self, _call: object) -> None: ...


REQUESTS: list[Any] = [
    {
        "jsonrpc": "2.0",
        "id": "a",
        "method": "echo",
        "params": {"text": "t", "number": 1, "list": ["a"], "flag": True},
    },
    {"jsonrpc": "2.0", "id": 2**53 - 1, "method": "submit", "params": {"workload": SMALL}},
    {"jsonrpc": "2.0", "method": "later"},
    {"jsonrpc": "2.0", "id": None, "method": "blob", "params": {}},
]
WORDS = (*all_keys(*REQUESTS), "stop", "full", "follow")


def json_rpc(_scratch: Path) -> Check:
    def check(data: bytes) -> bool:
        line = json_text(data, REQUESTS, WORDS)
        try:
            value = rpc.parse(line)
        except rpc.RpcError:
            value = None
        else:
            assert json.dumps(value) == json.dumps(json.loads(line))
        methods, answers = Methods(), []
        open_one = methods.dispatcher.dispatch(line, Caller(), [], answers.append)
        assert (open_one is None) or not open_one.settled
        for deferred in methods.open:
            deferred.complete({"ok": True})
        assert len(answers) <= 1
        for answer in answers:
            _judge(answer)
        del answers[:]
        methods.dispatcher.dispatch(ask("echo", 7), Caller(), [], answers.append)
        assert json.loads(answers[0])["id"] == 7
        return methods.done > 1

    return check


def _judge(line: bytes) -> None:
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    answer = json.loads(line)
    assert answer["jsonrpc"] == "2.0"
    if "method" not in answer:
        assert ("result" in answer) != ("error" in answer)


class Wire:
    """The client's end of a stream connection; what is read and written the program says."""

    handle = 5
    peer = PeerCredentials(pid=1, uid=7, gid=7)

    def __init__(self) -> None:
        self.inbox = bytearray()
        self.room = 1 << 30
        self.out = bytearray()
        self.ended = self.closed = False
        self.fds: list[int] = []
        self.given = self.discarded = 0

    def read(self) -> tuple[bytes, list[int]]:
        if not self.inbox and self.ended:
            raise LinkDown("the peer closed it")
        data = bytes(self.inbox[:65536])
        del self.inbox[:65536]
        fds, self.fds = self.fds, []
        return data, fds

    def write(self, data: memoryview) -> int:
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        self.out += taken
        return len(taken)

    def discard(self, fds: Sequence[int]) -> None:
        self.discarded += len(fds)

    def close(self) -> None:
        self.closed = True


class Socket:
    """What a connection needs of the control socket."""

    def __init__(self, methods: Methods) -> None:
        self.reactor = FakeReactor()
        self.dispatcher = methods.dispatcher
        self.counters: Counter[str] = Counter()
        self.forgotten = 0

    def forget(self, _connection: Connection) -> None:
        self.forgotten += 1


def connection(_scratch: Path) -> Check:
    """A client that sends lines, halves of lines and descriptors, reads or does not, and goes."""

    def check(data: bytes) -> bool:
        reader, methods = Reader(data), Methods()
        server, wire = Socket(methods), Wire()
        client = Connection(server, wire, rpc.Role.OPERATE, 0)  # type: ignore[arg-type]
        client.start()
        while reader.left and not client.closed:
            _client_acts(reader, wire, server, client, methods)
            assert client._out_bytes <= BACKLOG_CUT_BYTES + MAX_ANSWER
            assert len(client._in) <= MAX_LINE_BYTES + 65536
            assert len(client._fds) <= MAX_WAITING_FDS
            assert len(client._open) <= MAX_OUTSTANDING
        client.close()
        server.reactor.advance(1000 * MS)
        assert server.forgotten == 1
        assert wire.discarded + len(wire.fds) + methods.taken == wire.given, "a descriptor leaks"
        for line in bytes(wire.out).splitlines(keepends=True):
            if line.endswith(b"\n"):
                _judge(line)
        return methods.done > 0

    return check


def _size(reader: Reader) -> int:
    """Mostly small; now and then as much as breaks a limit."""
    size = reader.byte()
    return size if size < 250 else (size - 249) * 200_000


def _client_acts(
    reader: Reader, wire: Wire, server: Socket, client: Connection, methods: Methods
) -> None:
    action = reader.byte() % 10
    if action < 3:
        wire.inbox += json_text(reader.piece(), REQUESTS, WORDS) + b"\n" * (action != 2)
    elif action == 3:
        wire.inbox += ask(reader.choice(("echo", "later", "follow", "submit"))) + b"\n"
    elif action == 4:
        wire.inbox += reader.choice((b"x", b"\n", b"[", b'"', b" ")) * _size(reader)
    elif action == 5:
        wire.room = reader.choice((0, 1, 100, 1 << 20, 1 << 30))
    elif action == 6:
        server.reactor.advance(reader.byte() * 50 * MS)
        client.sweep(server.reactor.now_ns())
    elif action == 7 and methods.open:
        methods.open.pop().complete({"text": "y" * _size(reader)})
    elif action == 8:
        client.notify("event", {"n": 1})
        if reader.byte() > 250:
            wire.ended = True
    elif action == 9:
        more = [1000 + n for n in range(reader.byte() % 4)]
        wire.fds += more  # those before them may not have been read
        wire.given += len(more)
    for _ in range(4):
        if client.closed or wire.handle not in server.reactor.watches:
            break
        before = _moved(wire, client)
        client.on_ready(Event.READ | (Event.WRITE if client._out else Event(0)))
        server.reactor.settle()
        if _moved(wire, client) == before:
            break  # and so it would be the next time


def _moved(wire: Wire, client: Connection) -> tuple[int, ...]:
    """What a turn of the loop changes when there is something to do."""
    return len(wire.inbox), len(wire.fds), len(client._in), client._out_bytes, len(client._open)


class Pipe:
    """One end of the stream between init and agent."""

    handle = 9

    def __init__(self) -> None:
        self.inbox = bytearray()
        self.out = bytearray()
        self.room = 1 << 30
        self.closed = False

    def read(self) -> bytes:
        data = bytes(self.inbox[:4096])
        del self.inbox[:4096]
        return data

    def write(self, data: bytes) -> int:
        taken = bytes(data[: self.room])
        self.room -= len(taken)
        self.out += taken
        return len(taken)

    def close(self) -> None:
        self.closed = True


LINES: list[Any] = [
    {"id": 1, "op": "start", "args": {"instance": "a", "generation": 1}},
    {"id": 1, "ok": {"state": 1}},
    {"id": 2, "refused": {"reason": 10, "retry_after_ms": 5, "text": "later"}},
    {"op": "ping", "args": {"link_tx_bytes": 1}},
]
LINE_WORDS = all_keys(*LINES)


def local_stream(_scratch: Path) -> Check:
    def check(data: bytes) -> bool:
        reader, reactor, pipe = Reader(data), FakeReactor(), Pipe()
        peer = LocalPeer(reactor, pipe)
        answers: list[object] = []
        got: list[object] = []
        lost: list[str] = []
        asked = 0
        peer.on_request = lambda op, args, reply: (got.append(op), reply({"args": args}))[0]  # type: ignore[func-returns-value]
        peer.on_notice = lambda op, _args: got.append(op)
        peer.on_lost = lost.append
        while reader.left and peer.up:
            action = reader.byte() % 6
            if action < 3:
                pipe.inbox += json_text(reader.piece(), LINES, LINE_WORDS) + b"\n" * (action > 0)
            elif action == 3:
                asked += 1
                peer.request("a", {"n": 1}, answers.append)
            elif action == 4:
                pipe.room = reader.choice((0, 3, 1 << 30))
            else:
                pipe.inbox += b"z" * _size(reader)
            for _ in range(80):
                before = len(pipe.inbox), len(peer._unsent)
                if peer.up and any(before):
                    peer._on_event(Event.READ | Event.WRITE)
                if (len(pipe.inbox), len(peer._unsent)) == before:
                    break  # and so it would be the next time
            reactor.settle()
            assert len(peer._pending) <= REQUESTS_LIMIT
            assert len(peer._unsent) <= UNSENT_LIMIT
        peer.close("done")
        reactor.settle()
        assert len(answers) == asked, "a request has one answer"
        assert len(lost) == 1
        assert pipe.closed
        assert all(json.loads(line) for line in bytes(pipe.out).split(b"\n")[:-1])
        return bool(got) or any(isinstance(answer, dict) for answer in answers)

    return check


class Answers:
    """A socket whose far end has said what it says, and hung up."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def settimeout(self, _timeout: float | None) -> None: ...

    def send(self, data: memoryview) -> int:
        return len(data)

    def recv(self, size: int) -> bytes:
        piece, self._data = self._data[:size], self._data[size:]
        return piece


class Hand:
    """A clock that stands still."""

    def now_ns(self) -> int:
        return 0


ANSWERS: list[Any] = [
    {"jsonrpc": "2.0", "id": 1, "result": {"a": 1}},
    {
        "jsonrpc": "2.0",
        "id": 1,
        "error": {"code": -32000, "message": "no", "data": {"code": "busy", "path": "a"}},
    },
    {"jsonrpc": "2.0", "method": "event", "params": {"seq": 1}},
]
ANSWER_WORDS = all_keys(*ANSWERS)


def client(_scratch: Path) -> Check:
    """What a tool makes of a daemon's answers."""

    def check(data: bytes) -> bool:
        one = Client.__new__(Client)
        one._path, one._timeout_ms, one._next_id = "/s", 1000, 1
        one._buffer, one._scanned, one._held = bytearray(), 0, []
        one._clock = Hand()  # type: ignore[assignment]
        one._socket = Answers(json_text(data, ANSWERS, ANSWER_WORDS) + b"\n")  # type: ignore[assignment]
        try:
            one.call("status")
        except (DaemonRefused, DaemonUnreachable) as exc:
            json.dumps(exc.data)
            return isinstance(exc, DaemonRefused)
        return True

    return check


def _line_seeds(bases: list[Any]) -> Iterable[bytes]:
    for index, base in enumerate(bases):
        yield json.dumps(base).encode()
        for place in range(8):
            yield bytes([index, place, 5, 1, place])
            yield bytes([index, 3, place, 255, 5, 1, place])


def _programs(bases: list[Any]) -> Iterable[bytes]:
    for base in bases:
        line = json.dumps(base).encode()
        if len(line) < 256:
            yield bytes([0, len(line)]) + line + bytes([3, 0, 3, 1, 5, 0, 3, 2, 6, 9, 5, 4, 7, 30])
            yield bytes([3, 3, 1, len(line)]) + line + bytes([9, 3, 4, 3, 9, 6, 255])
    yield bytes([3, 1] * 70) + bytes([5, 0] + [3, 2] * 20 + [6, 255, 6, 255, 6, 255])
    yield bytes([4, 0, 255, 5, 255, 5, 255])


TARGETS = (
    Target(
        name="json_rpc",
        text="one line of the control socket into the dispatcher, and a good one after it",
        make=json_rpc,
        seeds=lambda: _line_seeds(REQUESTS),
        words=(
            *(json.dumps(word).encode() for word in WORDS),
            b"\\ud800",
            b"NaN",
            b"[[[[",
            b"1e999",
        ),
    ),
    Target(
        name="connection",
        text="a client of the control socket that does what it likes",
        make=connection,
        seeds=lambda: _programs(REQUESTS),
        max_bytes=1024,
    ),
    Target(
        name="local_stream",
        text="lines between init and agent",
        make=local_stream,
        seeds=lambda: _programs(LINES),
        words=tuple(json.dumps(word).encode() for word in LINE_WORDS),
        max_bytes=1024,
    ),
    Target(
        name="client",
        text="a daemon's answers into the tools' client",
        make=client,
        seeds=lambda: _line_seeds(ANSWERS),
        words=tuple(json.dumps(word).encode() for word in ANSWER_WORDS),
        max_bytes=1024,
    ),
)
