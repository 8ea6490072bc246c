"""firmware.control_socket over the real UNIX socket; time and the loop are the test's."""

import array
import contextlib
import json
import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firmware import control_connection as cc
from firmware import control_socket as cs
from firmware import rpc
from hal.errors import Refused, StoreFull, Unavailable
from hal.linux.unix_server import UnixServer, group_id
from hal.ports import Event
from tests.unit.firmware.fake_reactor import FakeReactor

SECOND = 1_000_000_000


class Rig:
    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.reactor = FakeReactor()
        self.table = rpc.MethodTable()
        self.roles = rpc.RolePolicy(admin_uids=frozenset({os.getuid()}))
        self.open: list[rpc.Deferred] = []
        self.callers: list[rpc.Caller] = []
        self.got: list[bytes] = []
        self.room: list[str] = []
        self.closes: list[str] = []
        self.table.add("echo", rpc.Role.READ, self._echo)
        self.table.add("big", rpc.Role.READ, lambda _call: "x" * 100_000)
        self.table.add("later", rpc.Role.READ, self._later)
        self.table.add("blob", rpc.Role.READ, self._blob, fds=1)
        self.table.add("follow", rpc.Role.READ, self._follow)
        self.table.add("stop", rpc.Role.ADMIN, lambda _call: True)
        self.server = UnixServer(self.path)
        self.control = cs.ControlSocket(
            self.reactor, self.server, rpc.Dispatcher(self.table), self.roles
        )
        self.control.start()
        self.clients: list[socket.socket] = []

    def _echo(self, call: rpc.Call) -> object:
        return call.params.text("text", max_bytes=2 << 20)

    def _later(self, _call: rpc.Call) -> object:
        self.open.append(rpc.Deferred())
        return self.open[-1]

    def _blob(self, call: rpc.Call) -> object:
        fd = call.take_fd()
        self.got.append(os.read(fd, 100))
        os.close(fd)
        return True

    def _follow(self, call: rpc.Call) -> object:
        self.callers.append(call.caller)
        call.caller.on_room(lambda: self.room.append("room"))
        call.caller.on_close(lambda: self.closes.append("closed"))
        return True

    def connect(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(5)
        client.connect(self.path)
        self.clients.append(client)
        self.pump()
        return client

    def pump(self, turns: int = 50) -> None:
        """Dispatch what is ready until nothing is."""
        for _ in range(turns):
            poll = select.poll()
            for handle, (events, _call) in self.reactor.watches.items():
                wanted = select.POLLIN if events & Event.READ else 0
                poll.register(handle, wanted | (select.POLLOUT if events & Event.WRITE else 0))
            ready = poll.poll(0)
            for handle, mask in ready:
                if handle in self.reactor.watches:
                    seen = Event(0)
                    if mask & select.POLLIN:
                        seen |= Event.READ
                    if mask & select.POLLOUT:
                        seen |= Event.WRITE
                    if mask & (select.POLLHUP | select.POLLERR):
                        seen |= Event.HANGUP
                    self.reactor.watches[handle][1](seen)
            self.reactor.advance(0)
            if not ready:
                return

    def close(self) -> None:
        self.control.close()
        for client in self.clients:
            client.close()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path / "s")
    yield made
    made.close()


def ask(method: str, request_id: object = 1, **params: object) -> bytes:
    message = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
    return json.dumps(message).encode() + b"\n"


def drain(client: socket.socket) -> bytes:
    """What has come so far; the end of the stream adds b"<end>"."""
    client.setblocking(False)
    data = b""
    with contextlib.suppress(BlockingIOError):
        while True:
            try:
                part = client.recv(1 << 20)
            except ConnectionResetError:
                part = b""
            if not part:
                return data + b"<end>"
            data += part
    return data


def words(data: bytes) -> list[object]:
    """Error words or results of the lines, in order."""
    found: list[object] = []
    for line in data.splitlines():
        if line == b"<end>":
            found.append("<end>")
            continue
        message = json.loads(line)
        if "error" in message:
            found.append(message["error"]["data"]["code"])
        else:
            found.append(message.get("result", message.get("method")))
    return found


def test_requests_are_answered_in_order_however_the_bytes_are_cut(rig: Rig) -> None:
    client = rig.connect()
    stream = ask("echo", 1, text="a") + b"\r\n  \n" + ask("echo", 2, text="b")
    for byte in stream:
        client.sendall(bytes([byte]))
        rig.pump()
    assert words(drain(client)) == ["a", "b"]
    client.sendall(b"".join(ask("echo", n, text=str(n)) for n in range(100)))
    rig.pump()
    assert words(drain(client)) == [str(n) for n in range(100)]


def push(rig: Rig, client: socket.socket, data: bytes) -> bytes:
    """Send all of it, as far as the far end takes it, and read what comes back."""
    client.setblocking(False)
    got = b""
    while data and not got.endswith(b"<end>"):
        try:
            data = data[client.send(data) :]
        except BrokenPipeError:
            data = b""
        except BlockingIOError:
            rig.pump()
            got += drain(client)
    for _ in range(20):
        rig.pump()
        if not got.endswith(b"<end>"):
            got += drain(client)
    return got


def test_a_line_of_the_limit_is_read_and_a_longer_one_is_told_and_cut(rig: Rig) -> None:
    client, other = rig.connect(), rig.connect()
    text = "x" * (cc.MAX_LINE_BYTES - len(ask("echo", text="")) + 1)
    line = ask("echo", text=text)
    assert len(line) == cc.MAX_LINE_BYTES + 1  # with its newline
    assert words(push(rig, client, line)) == [text]
    assert words(push(rig, client, b" " + line)) == ["request_too_large", "<end>"]
    assert words(push(rig, rig.connect(), b"y" * (2 << 20))) == ["request_too_large", "<end>"]
    assert rig.control.counters["too_large"] == 2
    other.sendall(ask("echo", text="still here"))
    rig.pump()
    assert words(drain(other)) == ["still here"]


def test_the_connection_after_the_last_is_told_and_closed(rig: Rig) -> None:
    for _ in range(cs.MAX_CONNECTIONS):
        rig.connect()
    assert words(drain(rig.connect())) == ["too_many_connections", "<end>"]
    rig.clients[0].close()
    rig.pump()
    late = rig.connect()
    late.sendall(ask("echo", text="in"))
    rig.pump()
    assert words(drain(late)) == ["in"]


def test_whoever_may_only_look_leaves_connections_for_the_administrator(rig: Rig) -> None:
    rig.control._roles = rpc.RolePolicy(admin_uids=frozenset())
    for _ in range(cs.MAX_CONNECTIONS - cs.ADMIN_CONNECTIONS):
        rig.connect()
    assert words(drain(rig.connect())) == ["too_many_connections", "<end>"]
    rig.control._roles = rig.roles
    for _ in range(cs.ADMIN_CONNECTIONS):
        rig.connect()
    assert rig.control.connections == cs.MAX_CONNECTIONS
    assert words(drain(rig.connect())) == ["too_many_connections", "<end>"]


def test_a_half_request_times_out_and_a_whole_one_does_not(rig: Rig) -> None:
    half, idle = rig.connect(), rig.connect()
    half.sendall(b'{"jsonrpc"')
    rig.pump()
    rig.reactor.advance(cc.HALF_REQUEST_NS - SECOND)
    assert drain(half) == b""
    half.sendall(b":")  # a byte now and then does not buy time
    rig.pump()
    rig.reactor.advance(2 * SECOND)
    assert words(drain(half)) == ["request_timeout", "<end>"]
    rig.reactor.advance(600 * SECOND)
    assert drain(idle) == b""


def test_the_time_of_a_half_request_counts_from_its_own_first_byte(rig: Rig) -> None:
    client = rig.connect()
    whole = ask("echo", text="a")
    client.sendall(whole[:5])
    rig.pump()
    rig.reactor.advance(8 * SECOND)
    client.sendall(whole[5:] + whole[:5])
    rig.pump()
    rig.reactor.advance(8 * SECOND)
    assert words(drain(client)) == ["a"]
    rig.reactor.advance(3 * SECOND)
    assert words(drain(client)) == ["request_timeout", "<end>"]


def test_a_flood_is_slowed_down_and_nothing_of_it_is_lost(rig: Rig) -> None:
    client = rig.connect()
    count = cc.RATE_BURST + 200
    client.sendall(b"".join(ask("echo", n, text="") for n in range(count)))
    got = b""
    for _ in range(40):
        rig.pump()
        got += drain(client)
    assert len(words(got)) == cc.RATE_BURST
    for _ in range(40):
        rig.reactor.advance(SECOND // 50)
        rig.pump()
        got += drain(client)
    assert len(words(got)) == count
    assert rig.control.counters["throttled"] > 0


def test_too_many_open_answers_are_refused_and_late_ones_still_come(rig: Rig) -> None:
    client = rig.connect()
    client.sendall(b"".join(ask("later", n) for n in range(cc.MAX_OUTSTANDING + 1)))
    rig.pump()
    assert words(drain(client)) == ["too_many_outstanding"]
    rig.open[5].complete("five")
    assert words(drain(client)) == ["five"]
    client.sendall(ask("later", "again"))
    rig.pump()
    assert len(rig.open) == cc.MAX_OUTSTANDING + 1


def test_an_answer_that_never_comes_is_given_up(rig: Rig) -> None:
    client = rig.connect()
    client.sendall(ask("later"))
    rig.pump()
    rig.reactor.advance(cc.ANSWER_NS + SECOND)
    assert words(drain(client)) == ["deadline_passed"]
    rig.open[0].complete("too late")
    assert drain(client) == b""


def test_an_answer_for_somebody_who_left_is_dropped(rig: Rig) -> None:
    client = rig.connect()
    client.sendall(ask("later"))
    rig.pump()
    client.close()
    rig.pump()
    rig.open[0].complete("nobody hears")
    assert rig.control.connections == 0


def test_who_left_a_notification_whose_end_came_later_keeps_no_place(rig: Rig) -> None:
    client = rig.connect()
    client.sendall(b'{"jsonrpc": "2.0", "method": "later"}\n')
    rig.pump()
    client.close()
    rig.pump()
    assert rig.control.connections == 1, "it may have asked for something else as well"
    rig.open[0].complete("to nobody")
    rig.reactor.advance(2 * SECOND)
    assert rig.control.connections == 0


def test_a_client_that_only_shut_its_writing_side_still_gets_its_answer(rig: Rig) -> None:
    client = rig.connect()
    client.sendall(ask("later") + ask("echo", text="a"))
    client.shutdown(socket.SHUT_WR)
    rig.pump()
    assert words(drain(client)) == ["a"]
    rig.open[0].complete("b")
    rig.pump()
    assert words(drain(client)) == ["b", "<end>"]
    assert rig.control.connections == 0


def test_answers_that_are_not_read_stop_the_reading_of_requests(rig: Rig) -> None:
    client = rig.connect()
    client.sendall(b"".join(ask("big", n) for n in range(30)))
    rig.pump()
    connection = next(iter(rig.control._connections.values()))
    assert connection._out_bytes < cc.BACKLOG_PAUSE_BYTES + 200_000
    got = b""
    for _ in range(60):
        got += drain(client)
        rig.pump()
    assert len(words(got)) == 30


def test_a_reader_that_takes_nothing_is_cut_off_and_counted(rig: Rig) -> None:
    client = rig.connect()
    client.sendall(b"".join(ask("big", n) for n in range(10)))
    rig.pump()
    rig.reactor.advance(cc.WRITE_STALL_NS + SECOND)
    assert rig.control.connections == 0
    assert rig.control.counters["slow_readers_cut"] == 1


def test_answers_that_pile_up_cut_the_connection(rig: Rig) -> None:
    client = rig.connect()
    client.sendall(b"".join(ask("later", n) for n in range(60)))
    rig.pump()
    for deferred in rig.open:
        deferred.complete("x" * 50_000)
    assert rig.control.connections == 0
    assert rig.control.counters["slow_readers_cut"] == 1


def test_a_slow_subscriber_is_held_and_told_when_there_is_room(rig: Rig) -> None:
    client = rig.connect()
    client.sendall(ask("follow"))
    rig.pump()
    sent = 0
    while rig.callers[0].notify("event", {"n": sent, "pad": "x" * 5000}):
        sent += 1
    assert rig.callers[0].notify("event", {"n": -1}) is False
    assert rig.room == []
    got = b""
    for _ in range(60):
        got += drain(client)
        rig.pump()
    assert rig.room == ["room"]
    assert len(words(got)) == sent + 1
    client.close()
    rig.pump()
    assert rig.closes == ["closed"]
    assert rig.callers[0].notify("event", {}) is False


def send_with_fds(client: socket.socket, data: bytes, fds: list[int]) -> None:
    socket.send_fds(client, [data], fds)


@pytest.fixture
def open_fds() -> Callable[[], int]:
    return lambda: len(os.listdir("/proc/self/fd"))


def readable(text: bytes) -> int:
    reader, writer = os.pipe()
    os.write(writer, text)
    os.close(writer)
    return reader


def test_a_descriptor_comes_with_its_request(rig: Rig, open_fds: Callable[[], int]) -> None:
    client = rig.connect()
    before = open_fds()
    for n, pipelined in enumerate([b"", ask("echo", text="first")]):
        fd = readable(b"blob %d" % n)
        send_with_fds(client, pipelined + ask("blob"), [fd])
        os.close(fd)
        rig.pump()
    assert rig.got == [b"blob 0", b"blob 1"]
    assert open_fds() == before


def test_descriptors_that_nobody_takes_are_closed(rig: Rig, open_fds: Callable[[], int]) -> None:
    client = rig.connect()
    before = open_fds()
    fd = readable(b"")
    send_with_fds(client, ask("echo", text="a"), [fd, fd])
    rig.pump()
    assert rig.control.counters["descriptors_unclaimed"] == 2
    send_with_fds(client, b"{half", [fd])
    rig.pump()
    client.close()
    rig.pump()
    os.close(fd)
    assert open_fds() == before - 2  # the client and its connection


@pytest.mark.parametrize("batches", [[5], [3, 2], [9]])
def test_too_many_descriptors_close_the_connection(
    rig: Rig, open_fds: Callable[[], int], batches: list[int]
) -> None:
    client = rig.connect()
    before = open_fds()
    fd = readable(b"")
    for count in batches:
        send_with_fds(client, b"{", [fd] * count)
        rig.pump()
    assert words(drain(client)) == ["too_many_descriptors", "<end>"]
    os.close(fd)
    assert open_fds() == before - 1


def test_an_unauthorised_caller_is_refused(tmp_path: Path) -> None:
    rig = Rig(tmp_path / "s")
    rig.control._roles = rpc.RolePolicy(admin_uids=frozenset())
    client = rig.connect()
    client.sendall(ask("stop") + ask("echo", text="may look"))
    rig.pump()
    assert words(drain(client)) == ["unauthorised", "may look"]
    rig.close()


def test_the_kernel_says_who_the_peer_is(rig: Rig) -> None:
    rig.connect()
    peer = next(iter(rig.control._connections.values())).peer
    assert (peer.pid, peer.uid, peer.gid) == (os.getpid(), os.getuid(), os.getgid())
    assert peer.groups == frozenset(os.getgroups())


def test_the_listener_rests_while_no_descriptor_is_left(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room() -> None:
        raise StoreFull("EMFILE")

    monkeypatch.setattr(rig.server, "accept", no_room)
    client = rig.connect()
    assert rig.server.handle not in rig.reactor.watches
    monkeypatch.undo()
    rig.reactor.advance(cs.ACCEPT_RETRY_NS)
    rig.pump()
    client.sendall(ask("echo", text="in"))
    rig.pump()
    assert words(drain(client)) == ["in"]


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "apf.sock"
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    first = UnixServer(str(path))
    assert path.stat().st_mode & 0o777 == 0o660
    with pytest.raises(Unavailable, match="another process listens"):
        UnixServer(str(path))
    first.close()
    assert not path.exists()
    assert os.listdir(tmp_path) == []


def test_a_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "apf.sock"
    path.write_text("precious")
    with pytest.raises(Refused, match="no socket"):
        UnixServer(str(path))
    assert path.read_text() == "precious"


def test_a_path_that_is_too_long_is_refused_with_words(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="shorter APF_RUN"):
        UnixServer(str(tmp_path / ("x" * 120)))
    with pytest.raises(Unavailable):
        UnixServer(str(tmp_path / "no" / "s"))


def test_a_closed_server_leaves_the_socket_of_its_successor(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = UnixServer(str(path))
    path.unlink()
    second = UnixServer(str(path))
    first.close()
    assert path.exists()
    second.close()


def test_groups_are_found_by_name() -> None:
    assert group_id("root") == 0
    assert group_id("no-such-group-here") is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.binary(max_size=50) | st.sampled_from([b"\n", ask("echo", text="a"), b"[{"])))
def test_any_stream_of_bytes_leaves_the_next_client_unharmed(rig: Rig, parts: list[bytes]) -> None:
    client = rig.connect()
    for part in parts:
        client.sendall(part)
        rig.pump()
    client.close()
    rig.pump()
    good = rig.connect()
    good.sendall(ask("echo", text="fine"))
    rig.pump()
    assert words(drain(good)) == ["fine"]
    good.close()
    rig.pump()
    assert rig.control.connections == 0


def test_a_truncated_control_message_is_seen(rig: Rig) -> None:
    """More descriptors than the kernel hands over in one read are an error, not a shorter list."""
    client = rig.connect()
    fd = readable(b"")
    fds = array.array("i", [fd] * 20)
    client.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    os.close(fd)
    rig.pump()
    assert words(drain(client)) == ["too_many_descriptors", "<end>"]
