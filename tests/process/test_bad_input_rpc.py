"""Bad requests to a real daemon: refused whole, nothing lost, and the next good one works."""

import hashlib
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from tests.process.local_card import NOBODY, LocalCard, a_card, python_for_others
from tools.compose import load_compose
from tools.demo import observe
from tools.errors import DaemonRefused

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs several modules and other users"),
]

STEADY = """
services:
  loop:
    image: host
    command: ["/bin/sh", "-c", "while true; do sleep 1; done"]
    cpus: 0.1
    mem_limit: 32m
    stop_grace_period: 0.2s
    x-apf: {profile: off}
"""
LIMIT_BYTES = 1 << 20  # firmware/control_socket.py


@pytest.fixture(scope="module")
def card() -> Iterator[LocalCard]:
    with a_card() as card:
        card.run_compose(STEADY, "steady")
        card.wait("it is in its own cgroup", lambda: not _row(card)["cgroup"].endswith("/init"))
        yield card


def _row(card: LocalCard) -> dict[str, Any]:
    [row] = card.call("workload.ps")
    return dict(row)


@pytest.fixture(autouse=True)
def unchanged(card: LocalCard) -> Iterator[None]:
    """After every piece of bad input: the same state, the same process, and it still works."""
    before, running = state_of(card), card.first_processes()
    yield
    after = state_of(card)
    assert {key: (before[key], after[key]) for key in before if before[key] != after[key]} == {}
    assert card.first_processes() == running
    row = card.wait_running("steady/loop/0")["steady/loop/0"]
    assert observe.start_ticks(row["pid"]) == row["start_ticks"]


def state_of(card: LocalCard) -> dict[str, Any]:
    """All that a daemon decides and shows, but for what time alone changes."""
    status = card.managing()
    assert status is not None
    keys = ("id", "uuid", "boot_id", "state", "init_pid", "agent_pid", "capacity", "used")
    return {
        "daemon": status["daemon_pid"],
        "decided": (status["workloads"], status["assignments"], status["journal"]["commits"]),
        "ps": card.call("workload.ps"),
        "cnms": [{key: cnm[key] for key in keys} for cnm in card.call("cnm.list")],
        "images": card.call("image.list"),
        "volumes": card.call("volume.list"),
    }


def talk(card: LocalCard, data: bytes, fds: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Send raw bytes, close our half, read all answers until the daemon closes."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(card.run / "apf.sock"))
        try:
            sent = socket.send_fds(sock, [data], list(fds)) if fds else 0
            sock.sendall(data[sent:])
            sock.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has said why already, and closed
        answer = b""
        try:
            while piece := sock.recv(1 << 16):
                answer += piece
        except ConnectionResetError:
            pass
    return [json.loads(line) for line in answer.splitlines()]


def error_of(card: LocalCard, data: bytes) -> tuple[int, str]:
    """The one error that an input is answered with: code and word."""
    answers = talk(card, data)
    assert len(answers) == 1, answers
    assert answers[0]["jsonrpc"] == "2.0"
    return answers[0]["error"]["code"], answers[0]["error"]["data"]["code"]


def request(method: object, request_id: object = 1, **params: object) -> bytes:
    body = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
    return json.dumps(body).encode() + b"\n"


def submission(text: str, name: str) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        return load_compose(file.name, name=name, env={}, profiles=()).workload.to_json()


def refusal(card: LocalCard, method: str, **params: Any) -> DaemonRefused:
    with pytest.raises(DaemonRefused) as caught:
        card.call(method, **params)
    return caught.value


# --- lines ---


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"hello\n", -32700),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "status"\n', -32700),
        (b"\xff\xfe\x00\n", -32700),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "status", "params": {"a": NaN}}\n', -32700),
        (b'{"id": 1, "id": 2, "jsonrpc": "2.0", "method": "status"}\n', -32700),
        (b"null\n", -32600),
        (b"[]\n", -32600),
        (b"[" + request("status").strip() + b"]\n", -32600),
        (b'{"id": 1, "method": "status"}\n', -32600),
        (b'{"jsonrpc": "1.0", "id": 1, "method": "status"}\n', -32600),
        (b'{"jsonrpc": "2.0", "id": {"a": 1}, "method": "status"}\n', -32600),
        (request(7), -32600),
        (request("m" * 65), -32600),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "status", "params": [1]}\n', -32602),
        (request("workload.remove"), -32602),
        (request("workload.remove", name=7), -32602),
        (request("workload.remove", name="x", force=True), -32602),
        (request("workload.submit", workload={"schema": "apf-workload/1"}), -32602),
        (request("workload.submit", workload=[]), -32602),
        (request("cnm.power", slot=1 << 70, action="off"), -32602),
        (request("instance.logs", instance="steady/loop/0", offset=-1), -32602),
    ],
)
def test_a_malformed_request_is_answered_with_its_error(
    card: LocalCard, line: bytes, code: int
) -> None:
    assert error_of(card, line)[0] == code


def test_an_unknown_method_is_answered_as_such(card: LocalCard) -> None:
    assert error_of(card, request("workload.explode"))[0] == -32601


@pytest.mark.parametrize("depth", [33, 1_000, 400_000])
@pytest.mark.parametrize("kind", ["lists", "objects", "never closed"])
def test_a_deeply_nested_request_is_refused_and_costs_nothing(
    card: LocalCard, depth: int, kind: str
) -> None:
    depth = min(depth, 150_000) if kind == "objects" else depth
    opening, closing = (b'{"a":', b"}") if kind == "objects" else (b"[", b"]")
    nested = opening * depth + b"1" + (b"" if kind == "never closed" else closing * depth)
    line = b'{"jsonrpc":"2.0","id":1,"method":"status","params":{"x":' + nested + b"}}\n"
    assert error_of(card, line)[0] == -32700


def test_a_request_of_the_limit_is_read_and_one_byte_more_is_not(card: LocalCard) -> None:
    def line(size: int) -> bytes:
        head, tail = b'{"jsonrpc":"2.0","id":1,"method":"nothing","params":{"x":"', b'"}}'
        return head + b"x" * (size - len(head) - len(tail)) + tail + b"\n"

    assert error_of(card, line(LIMIT_BYTES))[0] == -32601
    assert error_of(card, line(LIMIT_BYTES + 1)) == (-32600, "request_too_large")
    assert error_of(card, b"x" * (3 * LIMIT_BYTES)) == (-32600, "request_too_large")


def test_good_requests_after_a_bad_line_of_the_same_connection_are_answered(
    card: LocalCard,
) -> None:
    answers = talk(card, b"nonsense\n" + request("status", 5) + b"{}\n" + request("cnm.list", 6))
    assert [answer["id"] for answer in answers] == [None, 5, None, 6]
    assert ["error" in answer for answer in answers] == [True, False, True, False]


def test_half_a_request_and_a_sudden_end_change_nothing(card: LocalCard) -> None:
    assert talk(card, request("workload.remove", name="steady")[:-1]) == []
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(card.run / "apf.sock"))
        sock.send(b'{"jsonrpc"')


def test_more_connections_than_there_may_be_are_told_so_and_those_there_are_served(
    card: LocalCard,
) -> None:
    with_room: list[socket.socket] = []
    try:
        for _ in range(80):
            sock = socket.socket(socket.AF_UNIX)
            with_room.append(sock)
            sock.connect(str(card.run / "apf.sock"))  # blocking: it waits for the backlog
            sock.settimeout(5)
        answer = json.loads(with_room[-1].recv(4096).splitlines()[0])
        assert answer["error"]["data"]["code"] == "too_many_connections"
        with_room[3].sendall(request("status", 9))
        assert with_room[3].recv(1 << 16).startswith(b'{"')
    finally:
        for sock in with_room:
            sock.close()
    card.hang_up()
    card.wait("room again", card.managing)


# --- who may ---

CHILD = """
import json, socket, sys
sock = socket.socket(socket.AF_UNIX)
try:
    sock.connect(sys.argv[1])
except PermissionError:
    print(json.dumps("no way in"))
    sys.exit()
words = []
for method, params in json.loads(sys.argv[2]):
    body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    sock.sendall(json.dumps(body).encode() + b"\\n")
    line = b""
    while not line.endswith(b"\\n"):
        line += sock.recv(65536)
    error = json.loads(line).get("error")
    words.append([error["code"], error["data"]["code"]] if error else "good")
print(json.dumps(words))
"""


def ask_as_nobody(card: LocalCard, asks: list[tuple[str, dict[str, object]]]) -> Any:
    found = python_for_others()
    if found is None:
        pytest.skip("no interpreter that another user may run")
    python, env = found
    done = subprocess.run(
        [python, "-c", CHILD, str(card.run / "apf.sock"), json.dumps(asks)],
        user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", env=env,
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_another_user_may_not_even_connect_and_with_a_way_in_may_only_read(
    card: LocalCard,
) -> None:
    socket_file = card.run / "apf.sock"
    for place in (card.place, card.run):
        place.chmod(0o755)
    try:
        assert ask_as_nobody(card, [("status", {})]) == "no way in"
        socket_file.chmod(0o666)
        workload = submission(STEADY, "sneaky")
        forbidden: list[tuple[str, dict[str, object]]] = [
            ("workload.submit", {"workload": workload}),
            ("workload.remove", {"name": "steady"}),
            ("instance.migrate", {"instance": "steady/loop/0"}),
            ("cnm.power", {"slot": 0, "action": "off"}),
            ("cnm.drain", {"id": "cnm0"}),
            ("image.begin", {"ref": "x", "manifest": {}}),
            ("image.remove", {"ref": "x"}),
            ("volume.flush", {"name": "x"}),
            ("shutdown", {}),
        ]
        answers = ask_as_nobody(card, [("status", {}), ("workload.ps", {}), *forbidden])
        assert answers[:2] == ["good", "good"]
        assert answers[2:] == [[-32001, "unauthorised"]] * len(forbidden)
    finally:
        socket_file.chmod(0o660)
        card.place.chmod(0o700)


# --- workloads ---


def test_a_second_submit_with_the_same_name_is_refused(card: LocalCard) -> None:
    other = submission(STEADY.replace("loop:", "other:"), "steady")
    assert refusal(card, "workload.submit", workload=other).code == "name_taken"


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        ("cpus: 64", "core"),
        ("mem_limit: 900g", "memory"),
        ("deploy: {resources: {reservations: {devices: [{capabilities: [fpga], count: 1}]}}}", ""),
        (
            "deploy: {resources: {reservations: {devices: [{capabilities: [gpu], count: 3}]}}}",
            "gpu",
        ),
        ("deploy: {placement: {constraints: ['node.labels.zone == mars']}}", "zone"),
        ("platform: linux/riscv64", "arch"),
    ],
)
def test_a_component_that_no_module_can_ever_hold_is_refused_with_a_reason_for_each(
    card: LocalCard, extra: str, word: str
) -> None:
    text = "services:\n  huge:\n    image: host\n    command: [sleep, '1']\n    " + extra + "\n"
    refused = refusal(card, "workload.submit", workload=submission(text, "huge"))
    assert refused.code == "never_fits"
    reasons = refused.data["components"]["huge"]  # type: ignore[index]
    assert reasons.keys() == {"cnm0", "cnm1", "cnm2", "cnm3"}
    assert all(word in why for why in reasons.values()), reasons


def test_a_missing_image_is_refused_with_its_name(card: LocalCard) -> None:
    text = "services: {web: {image: 'not/there:1'}}"
    refused = refusal(card, "workload.submit", workload=submission(text, "web"))
    assert refused.code == "image_missing"
    assert "not/there:1" in refused.text


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("workload.remove", {"name": "nobody"}),
        ("workload.ps", {"workload": "nobody"}),
        ("instance.migrate", {"instance": "steady/loop/7"}),
        ("instance.migrate", {"instance": "steady/loop/0", "to": "cnm9"}),
        ("instance.logs", {"instance": "nobody/x/0"}),
        ("cnm.show", {"id": "cnm9"}),
        ("cnm.drain", {"id": "../cnm0"}),
        ("cnm.power", {"slot": 99, "action": "off"}),
        ("image.remove", {"ref": "nothing"}),
        ("image.commit", {"ref": "nothing"}),
        ("volume.flush", {"name": "nothing"}),
    ],
)
def test_what_is_not_there_is_refused_by_name(
    card: LocalCard, method: str, params: dict[str, object]
) -> None:
    assert refusal(card, method, **params).exit_code == 3


# --- images ---


def manifest(ref: str, layer: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(layer).hexdigest()
    config = {"env": {}, "entrypoint": [], "cmd": [], "cwd": "", "user": "", "stop_signal": 15}
    layers = [{"digest": digest, "size_bytes": len(layer)}]
    return {
        "schema": "apf-image/1",
        "ref": ref,
        "arch": "amd64",
        "config": config,
        "layers": layers,
    }


def test_a_blob_with_a_wrong_digest_is_refused_and_not_kept(card: LocalCard) -> None:
    layer, wrong = os.urandom(300_000), os.urandom(300_000)
    digest = hashlib.sha256(layer).hexdigest()
    assert card.call("image.begin", ref="bad:1", manifest=manifest("bad:1", layer)) == {
        "missing": [digest]
    }
    params = {"ref": "bad:1", "digest": digest, "size_bytes": len(layer)}
    other_end = layer[:-1] + bytes([layer[-1] ^ 1])
    for content in (wrong, layer[:-1], other_end, b""):
        with tempfile.TemporaryFile() as file:
            file.write(content)
            file.flush()
            file.seek(0)
            with pytest.raises(DaemonRefused) as caught:
                card.call("image.blob", fds=[file.fileno()], **params)
        assert caught.value.exit_code == 3
    assert refusal(card, "image.commit", ref="bad:1").code
    stored = {path.name for path in (card.state / "blobs").rglob("*") if path.is_file()}
    assert not stored & {digest, hashlib.sha256(wrong).hexdigest()}


def test_a_blob_without_a_descriptor_or_with_one_that_is_no_file_is_refused(
    card: LocalCard,
) -> None:
    layer = os.urandom(1000)
    card.call("image.begin", ref="bad:2", manifest=manifest("bad:2", layer))
    digest = hashlib.sha256(layer).hexdigest()
    params = {"ref": "bad:2", "digest": digest, "size_bytes": len(layer)}
    assert refusal(card, "image.blob", **params).exit_code == 3
    read_end, write_end = os.pipe()  # a silent one: it gets its answer later (hal/linux/blobs.py)
    directory = os.open("/", os.O_RDONLY)
    try:
        for fds in ([directory], [directory, read_end]):
            with pytest.raises(DaemonRefused):
                card.call("image.blob", fds=fds, **params)
    finally:
        for fd in (read_end, write_end, directory):
            os.close(fd)


@pytest.mark.parametrize(
    "change",
    [
        {"schema": "apf-image/9"},
        {"layers": []},
        {"layers": [{"digest": "00", "size_bytes": 1}]},
        {"layers": [{"digest": "0" * 64, "size_bytes": -1}]},
        {"ref": "another:1"},
        {"config": {"stop_signal": 999}},
        {"more": 1},
    ],
)
def test_a_wrong_image_manifest_is_refused(card: LocalCard, change: dict[str, object]) -> None:
    document = manifest("bad:3", b"x") | change
    assert refusal(card, "image.begin", ref="bad:3", manifest=document).exit_code == 3
