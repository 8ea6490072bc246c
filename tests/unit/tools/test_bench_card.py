"""The benchmarks that need a whole card: they start one, measure, and leave nothing."""

import json
import os
import tempfile
from pathlib import Path

import pytest

from tools.bench.card import bench_card
from tools.bench.figures import Unmeasured
from tools.cli import cli

pytestmark = pytest.mark.process


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def processes_of(place: Path) -> list[str]:
    """Command lines that name the place."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it has ended
            if str(place).encode() in line:
                found.append(line.replace(b"\0", b" ").decode())
    return found


@pytest.mark.parametrize("name", ["start", "failover"])
def test_a_card_is_measured_and_nothing_of_it_is_left(capsys, place, name) -> None:
    with pytest.raises(SystemExit) as info:
        cli.main(["bench", name, "--quick", "--json"])
    out, err = capsys.readouterr()
    assert not info.value.code
    assert f"bench {name}: a card in a temporary place" in err
    rows = json.loads(out)["data"]
    assert rows
    measured = [row for row in rows if row["value"] is not None]
    assert measured, [row["value_error"] for row in rows]
    assert all(row["value"] >= 0 for row in measured)
    for row in rows:
        assert (row["value"] is None) == ("value_error" in row)
    if name == "failover" and "failover.power.running_again" in {r["name"] for r in measured}:
        times = {row["name"].removeprefix("failover.power."): row["value"] for row in measured}
        assert times["detected"] <= times["fencing"] <= times["fenced"] <= times["running_again"]
    assert list(place.iterdir()) == []
    assert processes_of(place) == []


def test_a_benchmark_that_breaks_takes_its_card_along(place) -> None:
    def break_off() -> None:
        with bench_card(lambda text: None, compiled=False) as card:
            assert processes_of(place)
            assert card.call("status")["ready"]
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        break_off()
    assert list(place.iterdir()) == []
    assert processes_of(place) == []


def test_a_card_that_does_not_come_up_is_said_with_its_log(place, monkeypatch) -> None:
    monkeypatch.setattr("tools.bench.card.BOARD", "no-such-board")
    with pytest.raises(Unmeasured, match="no-such-board"), bench_card(print, compiled=False):
        pytest.fail("it came up")
    assert list(place.iterdir()) == []
    assert processes_of(place) == []
