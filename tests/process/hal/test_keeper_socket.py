"""The keeper's socket: bad requests, bad clients, and clients whose keeper goes."""

import json
import os
import signal
import socket
import stat

import pytest

from hal.errors import DeadlinePassed, HalError, PeerGone, Refused, Unavailable
from hal.local import wire
from hal.local.client import KeeperClient, KeeperControl, KeeperReply
from hal.local.hostview import LocalHostView
from hal.local.miniloop import MiniLoop
from hal.local.power import LocalPower, state_or_error
from hal.local.server import CLIENTS_LIMIT
from hal.ports import FenceKind, HostProcess, PowerAction, PowerRequest, SlotState
from tests.process.hal.keepers import slot, until

pytestmark = pytest.mark.process
MS = 1_000_000


@pytest.fixture
def keeper(start_keeper):
    return start_keeper(slot())


def raw_answer(keeper, data: bytes) -> dict:
    """Whatever bytes as a request."""
    keeper.control._sock.send(data)
    return json.loads(keeper.control._sock.recv(65536))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"not json", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[1]", "wanted an object"),
        (b"[" * 60_000, "no JSON"),
        (b'{"id": 1}', "op None is unknown"),
        (b'{"id": 1, "op": "explode"}', "op 'explode' is unknown; known: status"),
        (b'{"id": 1, "op": ["status"]}', "is unknown"),
        (b'{"id": 1, "op": "power"}', "action: None"),
        (b'{"id": 1, "op": "power", "action": "on"}', "slot None is not on this board"),
        (b'{"id": 1, "op": "power", "action": "on", "slot": 7}', "slot 7 is not on this board"),
        (b'{"id": 1, "op": "power", "action": "on", "slot": false}', "slot False is not"),
        (b'{"id": 1, "op": "power", "action": "on", "slot": [0]}', "is not on this board"),
        (b'{"id": 1, "op": "power", "action": "reset", "slot": 0}', "action: 'reset'"),
        (b'{"pad": "' + b"x" * 70_000 + b'"}', "a packet of more than 65536 B"),
    ],
)
def test_a_bad_request_is_refused_in_words_and_changes_nothing(
    shared_keeper, data: bytes, words: str
) -> None:
    answer = raw_answer(shared_keeper, data)
    assert answer["ok"] is False
    assert answer["error"]["kind"] == "refused"
    assert words in answer["error"]["text"]
    assert shared_keeper.power(0, "read")["text"] == "never powered"


def test_descriptors_that_a_client_sends_are_closed(shared_keeper) -> None:
    keeper = shared_keeper
    directory = f"/proc/{keeper.process.pid}/fd"
    before = len(os.listdir(directory))
    for _ in range(5):
        socket.send_fds(keeper.control._sock, [b'{"id": 1, "op": "status"}'], [0, 1, 2])
        keeper.control._sock.recv(65536)
    assert len(os.listdir(directory)) == before


def test_clients_beyond_the_limit_are_turned_away_and_places_come_free(keeper) -> None:
    others = [KeeperControl(keeper.run_dir) for _ in range(CLIENTS_LIMIT - 1)]
    until(lambda: keeper.control.call("status")["clients"] == CLIENTS_LIMIT)
    late = KeeperControl(keeper.run_dir)
    message, _ = wire.receive(late._sock)
    assert "clients are connected already" in message["error"]["text"]
    late.close()
    for other in others:
        other.close()
    until(lambda: keeper.control.call("status")["clients"] == 1)


def test_only_its_own_user_may_reach_the_socket(shared_keeper) -> None:
    mode = (shared_keeper.run_dir / "keeper.sock").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_a_client_that_never_reads_is_let_go_and_the_others_are_served(keeper) -> None:
    deaf = KeeperControl(keeper.run_dir)
    deaf._sock.settimeout(5)

    def flood() -> None:
        for number in range(20_000):
            deaf._sock.send(json.dumps({"id": number, "op": "status"}).encode())

    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        flood()
    assert keeper.control.call("status")["pid"] == keeper.process.pid
    deaf.close()


def test_a_very_deep_run_directory_still_has_a_socket(start_keeper, tmp_path) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    assert start_keeper(slot(), where=deep).power(0, "read")["present"]


# --- the client on a loop ---


class Asked:
    """A loop, a client, and what came."""

    def __init__(self, keeper) -> None:
        self.loop = MiniLoop()
        self.client = KeeperClient(keeper.run_dir, self.loop)
        self.came: list = []

    def wait(self, count: int = 1) -> list:
        for _ in range(1000):
            if len(self.came) >= count:
                return self.came
            self.loop.turn(10 * MS)
        raise TimeoutError("no answer")

    def deadline(self, ms: int = 10_000) -> int:
        return self.loop.now_ns() + ms * MS

    def close(self) -> None:
        self.client.close()
        self.loop.close()


@pytest.fixture
def asked(keeper):
    made = Asked(keeper)
    yield made
    made.close()


def test_answers_find_their_requests(asked: Asked) -> None:
    asked.client.request("status", {}, asked.deadline(), lambda r: asked.came.append(("s", r)))
    asked.client.request("nothing", {}, asked.deadline(), lambda r: asked.came.append(("n", r)))
    asked.client.request(
        "pids", {"slot": 0}, asked.deadline(), lambda r: asked.came.append(("p", r))
    )
    answers = dict(asked.wait(3))
    assert isinstance(answers["s"], KeeperReply)
    assert isinstance(answers["n"], Refused)
    assert answers["p"].result == {"processes": [], "total": 0}


def test_a_deadline_ends_a_request_once_and_its_late_answer_is_counted(
    asked: Asked, keeper
) -> None:
    os.kill(keeper.process.pid, signal.SIGSTOP)  # so that the answer is late for sure
    asked.client.request("status", {}, asked.deadline(1), asked.came.append)
    assert isinstance(asked.wait()[0], DeadlinePassed)
    os.kill(keeper.process.pid, signal.SIGCONT)
    for _ in range(200):
        asked.loop.turn(5 * MS)
        if asked.client.late_answers:
            break
    assert asked.client.late_answers == 1
    assert len(asked.came) == 1


def test_the_keepers_death_fails_what_waits_and_is_told_once(asked: Asked, keeper) -> None:
    lost: list[HalError] = []
    asked.client.on_lost(lost.append)
    os.kill(keeper.process.pid, signal.SIGSTOP)  # SIGSTOP: it takes the request and says nothing
    asked.client.request("status", {}, asked.deadline(), asked.came.append)
    keeper.kill()
    assert isinstance(asked.wait()[0], PeerGone)
    assert len(lost) == 1
    assert not asked.client.connected
    asked.came.clear()
    asked.client.request("status", {}, asked.deadline(), asked.came.append)
    assert asked.came == []  # through the mailbox, also then
    assert isinstance(asked.wait()[0], PeerGone)
    assert len(lost) == 1


def test_without_a_keeper_the_client_says_what_to_do(tmp_path) -> None:
    loop = MiniLoop()
    with pytest.raises(Unavailable, match="apf up"):
        KeeperClient(tmp_path, loop)
    loop.close()


def test_a_client_that_is_held_up_has_all_its_answers(asked: Asked, keeper) -> None:
    for _ in range(wire.PENDING_LIMIT):
        asked.client.request("status", {}, asked.deadline(), asked.came.append)
    for _ in range(wire.PENDING_LIMIT):  # a turn of the keeper each, with several of its own
        keeper.control.call("status")
    results = asked.wait(wire.PENDING_LIMIT)
    assert [type(result) for result in results] == [KeeperReply] * wire.PENDING_LIMIT


def test_more_requests_than_may_wait_are_refused(asked: Asked, keeper) -> None:
    os.kill(keeper.process.pid, signal.SIGSTOP)
    for _ in range(400):
        asked.client.request("status", {}, asked.deadline(), asked.came.append)
    os.kill(keeper.process.pid, signal.SIGCONT)
    results = asked.wait(400)
    refused = [result for result in results if isinstance(result, Refused)]
    served = [result for result in results if isinstance(result, KeeperReply)]
    assert refused
    assert served
    assert len(refused) + len(served) == 400


def test_power_and_host_view_work_together(asked: Asked) -> None:
    power, view = LocalPower(asked.client), LocalHostView(asked.client)
    request = PowerRequest(slot=0, action=PowerAction.ON)
    power.submit(request, asked.deadline(), asked.came.append)
    state = asked.wait()[0]
    assert isinstance(state, SlotState)
    assert state.fence is (FenceKind.POWER if os.geteuid() == 0 else FenceKind.LEASE)
    asked.came.clear()
    view.submit_lookup(0, [1, 77], asked.deadline(), asked.came.append)
    found = asked.wait()[0]
    assert list(found) == [1]
    assert isinstance(found[1], HostProcess)
    assert found[1].pid == state.init_pid
    asked.came.clear()
    view.submit_lookup(9, [1], asked.deadline(), asked.came.append)
    assert isinstance(asked.wait()[0], Refused)


@pytest.mark.parametrize(
    "raw",
    [None, [], {}, {"slot": 0, "fence": "magic"}, {"fence": "power"}, {"fence": "power", "x": 1}],
)
def test_a_slot_state_of_another_language_is_an_error(raw: object) -> None:
    assert isinstance(state_or_error(raw), PeerGone)
