"""firmware.rpc: whatever comes in gives an answer or nothing, never an exception."""

import json
import re
from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware import rpc
from firmware.fields import Fields
from hal.errors import StoreFull
from hal.service_ports import PeerCredentials


class FakeCaller:
    def __init__(self, role: rpc.Role = rpc.Role.ADMIN) -> None:
        self.role = role
        self.peer = PeerCredentials(pid=1, uid=7, gid=7)
        self.discarded: list[int] = []

    def notify(self, method: str, params: Mapping[str, object]) -> bool:
        raise AssertionError

    def discard(self, fds: Sequence[int]) -> None:
        self.discarded.extend(fds)

    def on_room(self, call: Callable[[], None]) -> None:
        raise AssertionError

    def on_close(self, call: Callable[[], None]) -> None:
        raise AssertionError


class Rig:
    def __init__(self) -> None:
        self.table = rpc.MethodTable()
        self.dispatcher = rpc.Dispatcher(self.table)
        self.caller = FakeCaller()
        self.fds: list[int] = []
        self.answers: list[dict[str, object]] = []
        self.open: list[rpc.Deferred] = []
        self.effects: list[object] = []
        self.table.add("echo", rpc.Role.READ, self._echo)
        self.table.add("later", rpc.Role.READ, self._later)
        self.table.add("full", rpc.Role.READ, self._full)
        self.table.add("move", rpc.Role.OPERATE, self._echo)
        self.table.add("blob", rpc.Role.READ, lambda call: call.take_fd(), fds=1)
        self.table.add("careless", rpc.Role.READ, lambda _call: True, fds=1)

    def _echo(self, call: rpc.Call) -> object:
        value = call.params.text_or_none("text")
        call.params.done()
        self.effects.append(value)
        return {"text": value}

    def _later(self, _call: rpc.Call) -> object:
        self.open.append(rpc.Deferred())
        return self.open[-1]

    def _full(self, _call: rpc.Call) -> object:
        raise StoreFull("no space for 12 B")

    def send(self, line: bytes | Mapping[str, object]) -> rpc.Deferred | None:
        data = line if isinstance(line, bytes) else json.dumps(line).encode()
        return self.dispatcher.dispatch(
            data, self.caller, self.fds, lambda text: self.answers.append(json.loads(text))
        )

    def ask(self, method: str, request_id: object = 1, **params: object) -> dict[str, object]:
        self.send({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
        return self.answers[-1]

    def word(self) -> tuple[object, object]:
        error = self.answers[-1]["error"]
        assert isinstance(error, dict)
        return error["code"], error["data"]["code"]


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.mark.parametrize("request_id", ["a", 0, -5, 2**53 - 1, None, "x" * 128])
def test_an_answer_echoes_the_id(rig: Rig, request_id: object) -> None:
    assert rig.ask("echo", request_id, text="hi") == {
        "jsonrpc": "2.0",
        "id": request_id,
        "result": {"text": "hi"},
    }


@pytest.mark.parametrize("request_id", [1.5, True, [], {}, "x" * 129, 2**53])
def test_other_ids_are_refused(rig: Rig, request_id: object) -> None:
    rig.ask("echo", request_id)
    assert rig.word() == (rpc.INVALID_REQUEST, "bad_id")
    assert rig.answers[0]["id"] is None
    assert rig.effects == []


@pytest.mark.parametrize(
    ("line", "code", "word"),
    [
        (b"", rpc.PARSE_ERROR, "parse"),
        (b"{", rpc.PARSE_ERROR, "nesting"),
        (b'{"a":', rpc.PARSE_ERROR, "nesting"),
        (b"nonsense", rpc.PARSE_ERROR, "parse"),
        (b"\xff\xfe", rpc.PARSE_ERROR, "parse"),
        (b'{"jsonrpc":"2.0","id":1,"id":2,"method":"echo"}', rpc.PARSE_ERROR, "parse"),
        (b'{"jsonrpc":"2.0","id":1,"method":"echo","params":{"text":NaN}}', -32700, "parse"),
        (b'{"jsonrpc":"2.0","id":1,"method":"echo","params":{"text":1e999}}', -32602, "bad_params"),
        (b'{"id":1e999}', rpc.INVALID_REQUEST, "bad_id"),
        (b'["",' + b'"",' * 70_000 + b"1]", rpc.PARSE_ERROR, "nesting"),
        (b"[1" + b",1" * 140_000 + b"]", rpc.PARSE_ERROR, "nesting"),
        (b"[" + b"[]" * 40_000 + b"]", rpc.PARSE_ERROR, "nesting"),
        (b'{"jsonrpc":"2.0","id":1,"method":"echo","params":{"text":"\\ud800"}}', -32700, "parse"),
        (b"1" * 5000, rpc.PARSE_ERROR, "parse"),
        (b"[" * 100_000, rpc.PARSE_ERROR, "nesting"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, rpc.PARSE_ERROR, "nesting"),
        (b"[" * 33 + b"]" * 33, rpc.PARSE_ERROR, "nesting"),
        (b"[" * 32 + b"]" * 32, rpc.INVALID_REQUEST, "batch_unsupported"),
        (b"[]", rpc.INVALID_REQUEST, "batch_unsupported"),
        (b"5", rpc.INVALID_REQUEST, "not_a_request"),
        (b'{"id":1,"method":"echo"}', rpc.INVALID_REQUEST, "not_a_request"),
        (b'{"jsonrpc":"2.0","id":1,"method":5}', rpc.INVALID_REQUEST, "not_a_request"),
        (b'{"jsonrpc":"2.0","id":1,"method":"echo","x":1}', rpc.INVALID_REQUEST, "not_a_request"),
        (b'{"jsonrpc":"2.0","id":1,"method":"nope"}', rpc.METHOD_NOT_FOUND, "unknown_method"),
        (b'{"jsonrpc":"2.0","id":1,"method":"echo","params":[1]}', -32602, "bad_params"),
        (b'{"jsonrpc":"2.0","id":1,"method":"echo","params":{"text":5}}', -32602, "bad_params"),
        (b'{"jsonrpc":"2.0","id":1,"method":"echo","params":{"txet":"a"}}', -32602, "bad_params"),
        (b'{"jsonrpc":"2.0","id":1,"method":"blob"}', -32602, "descriptor_missing"),
        (b'{"jsonrpc":"2.0","id":1,"method":"full"}', rpc.REFUSED, "store_full"),
    ],
)
def test_bad_input_is_answered_with_its_reason_and_changes_nothing(
    rig: Rig, line: bytes, code: int, word: str
) -> None:
    rig.send(line)
    assert len(rig.answers) == 1
    assert rig.word() == (code, word)
    assert rig.effects == []
    assert rig.dispatcher.errors == {word: 1}


def test_brackets_in_strings_do_not_count_as_nesting(rig: Rig) -> None:
    text = '[{"' * 200 + "\\"
    assert rig.ask("echo", text=text)["result"] == {"text": text}


def test_a_bad_parameter_is_named_with_what_was_wanted(rig: Rig) -> None:
    error = rig.ask("echo", txet="a")["error"]
    assert isinstance(error, dict)
    assert error["data"]["path"] == "txet"
    assert "did you mean 'text'" in error["message"]


def test_a_role_that_is_too_low_is_refused_before_the_handler_runs(rig: Rig) -> None:
    rig.caller.role = rpc.Role.READ
    rig.ask("move", text="a")
    assert rig.word() == (rpc.UNAUTHORISED, "unauthorised")
    assert rig.effects == []
    rig.caller.role = rpc.Role.OPERATE
    assert "result" in rig.ask("move", text="a")


def test_roles_follow_the_peers_uid_and_groups() -> None:
    policy = rpc.RolePolicy(admin_uids=frozenset({0, 500}), operate_gids=frozenset({77}))

    def role(uid: int, gid: int, *groups: int) -> rpc.Role:
        peer = PeerCredentials(pid=1, uid=uid, gid=gid, groups=frozenset(groups))
        return policy.role_of(peer)

    assert role(0, 0) is rpc.Role.ADMIN
    assert role(500, 9) is rpc.Role.ADMIN
    assert role(501, 77) is rpc.Role.OPERATE
    assert role(501, 9, 4, 77) is rpc.Role.OPERATE
    assert role(501, 9, 4) is rpc.Role.READ


def test_a_notification_is_carried_out_and_never_answered(rig: Rig) -> None:
    rig.send({"jsonrpc": "2.0", "method": "echo", "params": {"text": "a"}})
    rig.send({"jsonrpc": "2.0", "method": "nope"})
    rig.send({"jsonrpc": "2.0", "method": "later"})
    rig.open[0].complete(1)
    assert rig.effects == ["a"]
    assert rig.answers == []


def test_a_deferred_answer_comes_once_and_the_first_outcome_counts(rig: Rig) -> None:
    assert rig.send({"jsonrpc": "2.0", "id": "q", "method": "later"}) is rig.open[0]
    assert rig.answers == []
    rig.open[0].complete({"done": True})
    rig.open[0].fail(rpc.busy("late", "late"))
    assert rig.answers == [{"jsonrpc": "2.0", "id": "q", "result": {"done": True}}]


def test_a_deferred_may_fail_with_what_a_port_reported(rig: Rig) -> None:
    rig.send({"jsonrpc": "2.0", "id": 1, "method": "later"})
    rig.open[0].fail_from(StoreFull("no space"))
    assert rig.word() == (rpc.REFUSED, "store_full")


def test_a_handler_may_answer_before_it_returns_its_deferred(rig: Rig) -> None:
    def ready(_call: rpc.Call) -> rpc.Deferred:
        deferred = rpc.Deferred()
        deferred.complete(3)
        return deferred

    rig.table.add("ready", rpc.Role.READ, ready)
    assert rig.send({"jsonrpc": "2.0", "id": 1, "method": "ready"}) is None
    assert rig.answers[0]["result"] == 3


def test_a_descriptor_goes_to_the_request_that_takes_one_and_is_never_left_open(rig: Rig) -> None:
    rig.fds[:] = [10, 11, 12]
    rig.ask("echo")
    assert rig.ask("blob")["result"] == 10
    rig.ask("careless")
    assert rig.caller.discarded == [11]
    rig.caller.role = rpc.Role.READ
    rig.table.add("secret", rpc.Role.ADMIN, lambda call: call.take_fd(), fds=1)
    rig.ask("secret")
    assert rig.word() == (rpc.UNAUTHORISED, "unauthorised")
    assert rig.caller.discarded == [11, 12]
    assert rig.fds == []


def test_an_answer_that_is_too_large_is_replaced_by_an_error(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "MAX_RESPONSE_BYTES", 1000)
    rig.ask("echo", text="x" * 1000)
    assert rig.word() == (rpc.REFUSED, "response_too_large")


def naive_depth(line: bytes) -> int:
    """Depth of a well-formed text, one character at a time."""
    depth = most = 0
    for token in re.finditer(rb'"(?:\\.|[^"\\])*"|[\[\]{}]', line, re.DOTALL):
        if token[0] in (b"[", b"{"):
            depth += 1
        elif token[0] in (b"]", b"}"):
            depth -= 1
        most = max(most, depth)
    return most


nested = st.recursive(
    st.none() | st.text(alphabet='[]{}"\\ab', max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=30,
)


@given(nested, st.integers(0, 40))
def test_the_depth_of_any_json_text_is_judged_as_a_slow_scan_would(
    value: object, wrap: int
) -> None:
    line = b"[" * wrap + json.dumps(value).encode() + b"]" * wrap
    assert bool(rpc.complexity(line)) == (naive_depth(line) > rpc.MAX_DEPTH)


request_like = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | nested,
        "id": st.integers() | st.text(max_size=3) | nested,
        "method": st.sampled_from(["echo", "move", "blob", "later", "full"]) | nested,
        "params": st.dictionaries(st.sampled_from(["text", "other"]), nested) | nested,
    },
)


@given(
    st.binary(max_size=60)
    | request_like.map(lambda v: json.dumps(v).encode())
    | st.tuples(
        request_like.map(lambda v: json.dumps(v).encode()), st.integers(0, 60), st.integers(0, 255)
    ).map(lambda t: t[0][: t[1]] + bytes([t[2]]) + t[0][t[1] + 1 :])
)
def test_any_bytes_give_one_answer_or_none_and_never_an_exception(line: bytes) -> None:
    rig = Rig()
    rig.send(line)
    assert len(rig.answers) <= 1
    for answer in rig.answers:
        assert answer["jsonrpc"] == "2.0"
        assert ("result" in answer) != ("error" in answer)


def test_params_are_read_by_the_same_strict_reader_as_everything_else() -> None:
    call = rpc.Call("m", Fields({"n": 3}), FakeCaller())
    assert call.params.integer("n", high=5) == 3
