"""`apf bench scale` with a few modules: its rows, and that what is played is what modules say."""

import json

import pytest

from protocol.apf import Grant, Heartbeat, Telemetry, decode, encode_notice
from protocol.mctp.fragment import fragment
from protocol.mctp.reassembly import Reassembler
from protocol.mctp.serial import SerialDeframer
from protocol.mctp.serial_frame import frame_serial
from tools.bench import scale_farm
from tools.bench.scale_card import boot_of
from tools.cli import cli


def heard(stream: bytes) -> list[object]:
    """The bodies of what comes over a line."""
    reassembler = Reassembler()
    messages = [
        reassembler.feed(packet, link=0, now_ns=0) for packet in SerialDeframer().feed(stream)
    ]
    return [decode(message.data).body for message in messages if message is not None]


def test_a_few_modules_are_managed_again_after_a_kill_and_none_is_fenced(capsys) -> None:
    with pytest.raises(SystemExit) as info:
        cli.main(["bench", "scale", "--quick", "--json"])
    out, _err = capsys.readouterr()
    rows = {row["name"]: row for row in json.loads(out)["data"]}
    assert not info.value.code, out
    assert rows.pop("scale.fenced")["value"] == 0
    assert rows.keys() == {
        "scale.cpu",
        "scale.rss",
        "scale.ready",
        "scale.killed_to_managing",
        "scale.killed_to_managing_cpu",
    }
    for row in rows.values():
        assert row["value"] > 0, row


def test_a_played_module_counts_its_heartbeats_and_names_its_boot() -> None:
    script = scale_farm.Script(3, 5, b"")
    found = heard(script.heartbeat() + script.heartbeat() + script.telemetry["mc"])
    assert [type(body) for body in found] == [Heartbeat, Heartbeat, Telemetry]
    assert [body.seq for body in found[:2]] == [1, 2]  # type: ignore[attr-defined]
    assert {body.boot_id for body in found} == {boot_of(3)}  # type: ignore[attr-defined]


@pytest.mark.parametrize("seq", [0, 0x7D7E7D7E])
def test_a_grant_is_known_by_its_mark_and_no_other_notice_is(seq) -> None:
    mark = scale_farm._grant_mark()
    grant = Grant(card_uuid=b"\x7e" * 16, epoch=7, boot_id=b"\x7d" * 16, seq=seq, lease_ms=5000)
    other = Telemetry.of(boot_id=bytes(16), seq=seq)
    for body, count in ((grant, 1), (other, 0)):
        message = encode_notice(body, message_id=9)
        packets = fragment(message, dest_eid=9, src_eid=8, tag=7, to=True)
        frames = b"".join(map(frame_serial, packets))
        assert frames.count(mark) == count
