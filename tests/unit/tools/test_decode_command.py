"""`apf decode`: input forms, exit codes, what is printed."""

import io
import json
from pathlib import Path

import pytest

from tools.cli import cli
from tools.decode import MAX_INPUT_BYTES

GOOD = "7e0107010908e800800281e17e"  # Get EID in a dialect A frame
BAD = "7e010310203089db7e"


def apf(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as info:
        cli.main(["decode", *words])
    out, err = capsys.readouterr()
    return int(info.value.code or 0), out, err


def test_good_bytes_end_0_with_a_tree_without_colour(capsys) -> None:
    status, out, err = apf(capsys, GOOD)
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == "serial: ok"
    assert "  mctp: ok" in lines
    assert "    control: ok" in lines
    assert "      cmd = 2 (get_eid)" in lines
    assert "\x1b" not in out


def test_bad_bytes_end_1_and_are_named(capsys) -> None:
    status, out, _ = apf(capsys, BAD)
    assert status == 1
    assert out.startswith("serial: BAD bad_fcs at byte 6: FCS is 0x89DB, the bytes give 0x8924")


def test_json_is_one_envelope_good_or_bad(capsys) -> None:
    for words, status in ((GOOD, 0), (BAD, 1)):
        got, out, _ = apf(capsys, words, "--json")
        document = json.loads(out)
        assert got == status
        assert document.keys() == {"schema", "kind", "data", "warnings"}
        assert (document["schema"], document["kind"]) == ("apf/1", "decode")
        assert document["data"]["ok"] is (status == 0)


@pytest.mark.parametrize(
    "text",
    [
        GOOD.upper(),
        " ".join(GOOD[at : at + 2] for at in range(0, len(GOOD), 2)),
        ":".join(GOOD[at : at + 2] for at in range(0, len(GOOD), 2)),
        ", ".join("0x" + GOOD[at : at + 2] for at in range(0, len(GOOD), 2)),
    ],
)
def test_hex_may_be_written_as_people_write_it(capsys, text: str) -> None:
    assert apf(capsys, text)[0] == 0


def test_a_file_may_hold_bytes_or_hex_text(capsys, tmp_path: Path) -> None:
    raw = tmp_path / "raw.bin"
    raw.write_bytes(bytes.fromhex(GOOD) * 3)
    text = tmp_path / "text.hex"
    text.write_text(GOOD + "\n" + GOOD + "\n")
    status, out, err = apf(capsys, str(raw))
    assert (status, out.count("serial: ok"), err) == (0, 3, "3 pieces, 0 of them bad\n")
    assert apf(capsys, str(text))[1].count("serial: ok") == 2


def test_standard_input_is_read(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(bytes.fromhex(GOOD))))
    assert apf(capsys, "-")[0] == 0


def test_packets_may_be_separated_by_bars(capsys) -> None:
    status, out, _ = apf(capsys, "01080a8800|01080a5801", "--json")
    data = json.loads(out)["data"]
    assert status == 1  # 00 01 is no whole control message
    assert data[1]["fields"]["message"] == "0001"
    assert apf(capsys, "01080a8800|01080a5801", "--layer", "control")[0] == 2


def test_the_layer_serial_judges_framing_only(capsys) -> None:
    odd = "7e0104aabbccdd6da17e"  # dialect B around bytes that are no MCTP packet
    assert apf(capsys, odd, "--layer", "serial")[0] == 0
    assert apf(capsys, odd)[0] == 1
    assert apf(capsys, BAD, "--layer", "serial")[0] == 1


@pytest.mark.parametrize(
    "words",
    [
        ["zz"],
        ["7e0"],
        [""],
        ["no/such/file"],
        [GOOD, "--layer", "pldm"],
        [GOOD, "--vendor-id", "65536"],
        [],
        ["ab" * 5000 + "q"],
    ],
)
def test_what_can_not_be_read_is_usage_and_ends_2(capsys, words: list[str]) -> None:
    status, out, err = apf(capsys, *words, "--json")
    assert status == 2
    assert err.startswith("apf: ")
    assert json.loads(out)["kind"] == "error"


@pytest.mark.parametrize("content", [b"", b"\0" * (MAX_INPUT_BYTES + 1)])
def test_an_empty_and_a_huge_file_are_refused(capsys, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file.bin"
    file.write_bytes(content)
    assert apf(capsys, str(file))[0] == 2
