"""The stream between init and agent: every request answered once, every bound kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.cnm.local_stream import LINE_LIMIT, REQUESTS_LIMIT, LocalPeer
from firmware.cnm.records import RefusedError
from hal.errors import LinkDown
from hal.ports import Event
from protocol.apf import RefusalReason
from tests.unit.firmware.cnm.conftest import ManualLoop


class Pipe:
    """Two ends in memory; `room` bounds what one write takes."""

    def __init__(self, handle: int) -> None:
        self.handle, self.inbox, self.far, self.room = handle, bytearray(), None, 1 << 30
        self.closed = False

    def read(self) -> bytes:
        if not self.inbox and self.far.closed:
            raise LinkDown("far end closed")
        data = bytes(self.inbox[:4096])
        del self.inbox[:4096]
        return data

    def write(self, data: bytes) -> int:
        if self.far.closed:
            raise LinkDown("far end closed")
        taken = bytes(data[: self.room])
        self.far.inbox += taken
        return len(taken)

    def close(self) -> None:
        self.closed = True


class Pair:
    def __init__(self, loop: ManualLoop) -> None:
        self.loop = loop
        self.ends = Pipe(1), Pipe(2)
        self.ends[0].far, self.ends[1].far = self.ends[1], self.ends[0]
        self.agent, self.init = (LocalPeer(loop, end) for end in self.ends)

    def pump(self, turns: int = 50) -> None:
        for _ in range(turns):
            for peer in (self.agent, self.init):
                if peer.up:
                    peer._on_event(Event.READ | Event.WRITE)
            self.loop.advance(0)


@pytest.fixture
def pair(loop) -> Pair:
    return Pair(loop)


def test_a_request_gets_its_own_answer(pair) -> None:
    pair.init.on_request = lambda op, args, reply: reply({"op": op, **args})
    got = []
    for number in range(3):
        pair.agent.request("echo", {"n": number}, got.append)
    pair.pump()
    assert got == [{"op": "echo", "n": n} for n in range(3)]


def test_a_name_that_is_not_utf_8_goes_through(pair) -> None:
    """As the file system gives it: surrogateescape."""
    pair.init.on_request = lambda op, args, reply: reply(args)
    got = []
    pair.agent.request("echo", {"path": "/srv/\udcff"}, got.append)
    pair.pump()
    assert got == [{"path": "/srv/\udcff"}]


def test_a_refusal_comes_as_it_was_given(pair) -> None:
    error = RefusedError(RefusalReason.NO_LEASE, "not now", retry_after_ms=7)
    pair.init.on_request = lambda op, args, reply: reply(error)
    got = []
    pair.agent.request("start", {}, got.append)
    pair.pump()
    assert (got[0].reason, got[0].text, got[0].retry_after_ms) == (
        RefusalReason.NO_LEASE,
        "not now",
        7,
    )


def test_a_notice_comes_and_is_not_answered(pair) -> None:
    seen = []
    pair.init.on_notice = lambda op, args: seen.append((op, args))
    pair.agent.notify("ping", {"a": 1})
    pair.pump()
    assert seen == [("ping", {"a": 1})]


def test_the_end_of_the_stream_answers_every_open_request(pair) -> None:
    got, lost = [], []
    pair.agent.on_lost = lost.append
    pair.init.on_request = lambda op, args, reply: None
    pair.agent.request("a", {}, got.append)
    pair.agent.request("b", {}, got.append)
    pair.pump()
    pair.init.close()
    pair.pump()
    assert [error.reason for error in got] == [RefusalReason.INTERNAL] * 2
    assert len(lost) == 1
    pair.agent.request("c", {}, got.append)
    pair.pump()
    assert got[2].reason is RefusalReason.BUSY


def test_too_many_open_requests_are_refused_as_busy(pair) -> None:
    got = []
    for _ in range(REQUESTS_LIMIT + 1):
        pair.agent.request("a", {}, got.append)
    pair.loop.advance(0)
    assert [error.reason for error in got] == [RefusalReason.BUSY]


def test_a_slow_reader_gets_all_of_it_in_order(pair) -> None:
    pair.ends[0].room = 7
    seen = []
    pair.init.on_notice = lambda op, args: seen.append(args["n"])
    for number in range(20):
        pair.agent.notify("n", {"n": number})
    pair.pump(200)
    assert seen == list(range(20))


@pytest.mark.parametrize(
    "line",
    [b"nonsense\n", b"[1]\n", b'"x"\n', b"x" * (LINE_LIMIT + 1), b"\xff\n", b"[" * 9999 + b"\n"],
)
def test_what_is_no_message_ends_the_stream(pair, line) -> None:
    lost = []
    pair.init.on_lost = lost.append
    pair.ends[1].inbox += line
    pair.pump(300)
    assert len(lost) == 1
    assert not pair.init.up


@given(st.binary(max_size=200))
def test_no_bytes_raise(data: bytes) -> None:
    pair = Pair(ManualLoop())
    pair.ends[1].inbox += data + b"\n"
    pair.pump(3)


def test_an_answer_to_nothing_is_ignored(pair) -> None:
    pair.agent.request("a", {}, lambda answer: None)
    pair.ends[0].inbox += b'{"id":99,"ok":{}}\n{"id":[1],"ok":{}}\n'
    pair.pump()
    assert pair.agent.up


@pytest.mark.parametrize(
    "line",
    [
        b'{"id":1,"refused":{"reason":10,"retry_after_ms":Infinity,"text":""}}\n',
        b'{"id":1,"refused":{"reason":[],"retry_after_ms":1,"text":""}}\n',
        b'{"id":1,"refused":7}\n',
        b'{"id":1,"ok":7}\n',
    ],
)
def test_an_answer_that_can_not_be_read_is_an_error_of_that_request(pair, line) -> None:
    got = []
    pair.agent.request("a", {}, got.append)
    pair.ends[0].inbox += line
    pair.pump()
    assert [error.reason for error in got] == [RefusalReason.INTERNAL]
    assert pair.agent.up


def test_true_is_not_the_first_request(pair) -> None:
    got = []
    pair.init.on_request = lambda _op, _args, _reply: None
    pair.agent.request("a", {}, got.append)
    pair.ends[0].inbox += b'{"id":true,"ok":{}}\n'
    pair.pump()
    assert got == []
