"""Whatever its agent says, init goes on: heartbeats have a wire form, and answers come."""

import json

import pytest

from firmware.cnm.prepared_json import prepared_from_json, prepared_to_json
from firmware.fields import FieldError
from protocol.apf import InstanceState, decode
from tests.fuzz.targets.init import CARD, PREPARED, Bench
from tests.unit.firmware.window_fakes import MS


@pytest.fixture
def bench() -> Bench:
    return Bench()


def answer(bench: Bench, line: str) -> dict[str, object]:
    del bench.pipe.out[:]
    bench.say(line.encode() + b"\n")
    said = [json.loads(found) for found in bytes(bench.pipe.out).splitlines()]
    return next(found for found in said if "id" in found)


@pytest.mark.parametrize("value", ["-1", "18446744073709551616", "true", "Infinity", '"x"', "[1]"])
def test_a_ping_with_numbers_that_can_not_be_stops_no_telemetry(bench: Bench, value: str) -> None:
    bench.say(f'{{"op":"ping","args":{{"link_tx_bytes":{value}}}}}\n'.encode())
    bench.reactor.advance(1_500 * MS)
    assert {decode(data).opcode for data in bench.sent} >= {0x0201, 0x0301}


@pytest.mark.parametrize(
    ("op", "changes"),
    [
        ("hello", {"epoch": 1 << 64}),
        ("hello", {"epoch": -1}),
        ("hello", {"card": "abcd"}),
        ("stage", {"generation": 1 << 64}),
        ("stage", {"generation": -1}),
        ("stage", {"instance": ""}),
        ("stage", {"instance": "a\nb"}),
        ("stage", {"instance": "x" * 129}),
        ("stage", {"instance": 7}),
        ("stage", {"volumes": [1]}),
        ("stage", {"volumes": "ab"}),
        ("stage", {"ctx": {"card": "ab", "epoch": 1, "boot": "cd"}}),
        ("stop", {"grace_ms": float("inf")}),
        ("stop", {"grace_ms": -5}),
        ("status", {"cursor": -1}),
        ("usage", {"cursor": float("inf")}),
    ],
)
def test_arguments_without_a_wire_form_are_refused_and_change_nothing(
    bench: Bench, op: str, changes: dict[str, object]
) -> None:
    base = next((line for line in bench.bases if line["op"] == op), {"args": {}})
    args = {**base["args"], **changes}
    said = answer(bench, json.dumps({"id": 9, "op": op, "args": args}))
    assert "refused" in said
    assert bench.init.table.count == 0
    assert bench.init.guard.binding.epoch == 0
    bench.reactor.advance(1_500 * MS)
    assert decode(bench.sent[-1])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key", "../../etc"),
        ("argv", "sh"),
        ("env", {"A=B": "1"}),
        ("mounts", [["/a", "/b"]]),
        ("mounts", [["/a", "/b", 1]]),
        ("limits", [1, 2]),
        ("limits", [1, 2, -3]),
        ("stop_signal", 65),
        ("later", 1),
    ],
)
def test_what_was_prepared_is_read_strictly(name: str, value: object) -> None:
    document = prepared_to_json(PREPARED)
    document["spec"][name] = value
    with pytest.raises(FieldError):
        prepared_from_json(document)


def test_what_was_prepared_under_another_key_is_never_started(bench: Bench) -> None:
    """Signals go to the key that init knows: it could not be killed."""
    hello, stage, prepared = (json.dumps(line) for line in bench.bases[:3])
    answer(bench, hello)
    assert "ok" in answer(bench, stage)
    assert "ok" in answer(bench, prepared.replace(PREPARED.spec.key, "other.1"))
    [instance] = bench.init.table.listing()
    assert instance.state is InstanceState.FAILED
    assert "other.1" in instance.text


def test_the_same_agent_with_good_words_has_its_way(bench: Bench) -> None:
    for line in bench.bases[:3]:
        assert "ok" in answer(bench, json.dumps(line))
    bench.grant()
    assert "ok" in answer(bench, json.dumps(bench.bases[3]))
    assert bench.runtime.calls == [("start", PREPARED.spec.key)]
    assert bench.init.guard.binding.card_uuid == CARD
