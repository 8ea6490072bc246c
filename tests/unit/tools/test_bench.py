"""`apf bench`: the shape of its rows, its exit codes, and that what it times is the real thing.

No test here asserts a time, or that a figure reaches anything.
"""

import json
import os
import sys
from pathlib import Path

import pytest

from hal.ports import Event
from tools.bench import failover, journal, start
from tools.bench.command import BENCHES
from tools.bench.figures import (
    FRAME_US,
    RUNNING_AGAIN_POWER_MS,
    SATURATION_PER_S,
    WINDOW_SHARE,
    Figure,
    Reached,
    Unmeasured,
)
from tools.bench.measure import Bench, ask_program, time_program, with_bytecode
from tools.bench.state_table import (
    ESCAPED_BOOT_ID,
    FRAME_BYTES,
    FilledStream,
    HandReactor,
    StateTable,
    heartbeat,
    notice_bytes,
    telemetry,
)
from tools.cli import cli

KEYS = {
    *("name", "value", "unit", "baseline", "baseline_name", "ratio", "must", "aim"),
    *("judged", "better", "reached"),
}


def apf(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as info:
        cli.main(["bench", *words])
    out, err = capsys.readouterr()
    return int(info.value.code or 0), out, err


def rows_of(out: str) -> list[dict]:
    envelope = json.loads(out)
    assert (envelope["schema"], envelope["kind"], envelope["warnings"]) == ("apf/1", "bench", [])
    return envelope["data"]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(state_dir=lambda: tmp_path / "state", quick=True, say=lambda text: None)


@pytest.mark.parametrize("name", ["codec", "loop", "window", "journal"])
def test_a_bench_gives_rows_with_positive_values_beside_baselines(capsys, tmp_path, name) -> None:
    status, out, err = apf(capsys, name, "--quick", "--json", "--state", str(tmp_path))
    assert status == 0
    rows = rows_of(out)
    assert rows
    for row in rows:
        assert set(row) == KEYS, row
        assert row["name"].startswith(f"{name}.")
        assert row["value"] > 0
        assert row["baseline"] > 0
        assert row["baseline_name"]
        assert row["ratio"] == pytest.approx(row["value"] / row["baseline"], rel=1e-3)
        assert (row["must"] is None) == (row["aim"] is None) == (row["reached"] is None)
    assert len({row["name"] for row in rows}) == len(rows)
    assert f"bench {name} ..." in err
    assert list(tmp_path.iterdir()) == []  # nothing is left where the card's state is


def test_the_musts_of_the_design_stand_beside_their_figures(capsys, tmp_path) -> None:
    _, out, _ = apf(capsys, "codec", "--quick", "--json")
    goals = {row["name"]: (row["must"], row["aim"]) for row in rows_of(out)}
    assert goals["codec.frame_70B"] == (5, 2)
    assert goals["codec.saturation"] == (50_000, 200_000)
    assert goals["codec.1000_cnms_10_per_s"] == (20, 8)
    assert goals["codec.struct_only_65B"] == (None, None)


def test_people_get_a_table_and_the_words_on_stderr(capsys, monkeypatch) -> None:
    figures = [
        Figure(name="codec.slow", unit="us", value=9.123456, baseline=60, goal=FRAME_US),
        Figure(name="codec.full", unit="msg/s", value=250_000.4, goal=SATURATION_PER_S),
        Figure(name="codec.gone", unit="us", goal=FRAME_US, error="no such thing here"),
    ]
    monkeypatch.setattr("tools.bench.codec.run", lambda bench: figures)
    status, out, err = apf(capsys, "codec")
    assert status == 0  # a figure that misses what it must reach is no error
    slow, full, gone = (line.split() for line in out.splitlines()[1:])
    assert " ".join(slow) == "codec.slow 9.123 us 60 - 0.1521 <= 5 <= 2 MISSED"
    assert " ".join(full) == "codec.full 250000 msg/s - - - >= 50000 >= 200000 aim"
    assert " ".join(gone) == "codec.gone - us - - - <= 5 <= 2 -"
    assert "codec.gone: no such thing here" in err


def test_benches_run_once_each_in_the_order_given_and_all_of_them_without_a_name(
    capsys, monkeypatch
) -> None:
    for name, module in BENCHES.items():
        row = Figure(name=f"{name}.row", unit="ms", value=1)
        monkeypatch.setattr(f"{module}.run", lambda bench, row=row: [row])
    _, out, _ = apf(capsys, "window", "codec", "window", "--json")
    assert [row["name"] for row in rows_of(out)] == ["window.row", "codec.row"]
    _, out, _ = apf(capsys, "--json")
    assert [row["name"] for row in rows_of(out)] == [f"{name}.row" for name in BENCHES]


def test_an_unknown_name_is_bad_usage_and_nothing_is_measured(capsys) -> None:
    status, out, err = apf(capsys, "codec", "nope", "--json")
    assert status == 2
    assert json.loads(out)["error"]["code"] == "usage"
    assert "'nope' is not one of" in err
    assert "bench codec ..." not in err


def test_benches_that_need_no_place_run_where_there_is_none(capsys, monkeypatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    for name in ("APF_RUN", "APF_STATE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert apf(capsys, "codec", "--quick")[0] == 0


def test_what_cannot_be_measured_is_null_with_the_reason(bench, monkeypatch) -> None:
    def no_card(say, *, compiled):
        raise Unmeasured("no namespaces here")

    monkeypatch.setattr(start, "bench_card", no_card)
    monkeypatch.setattr(failover, "bench_card", no_card)
    rows = {figure.name: figure.to_json() for figure in start.run(bench) + failover.run(bench)}
    assert rows["start.import_cpu"]["value"] > 0
    assert "value_error" not in rows["start.import_cpu"]
    for name in ("start.ready", "start.rss_4_cnms", "failover.power.running_again"):
        assert rows[name]["value"] is None
        assert rows[name]["value_error"] == "no namespaces here"
        assert rows[name]["reached"] is None
    assert rows["start.rss_4_cnms"]["must"] == 48


def test_a_state_directory_that_takes_no_files_gives_null_rows(bench) -> None:
    found = journal.run(Bench(state_dir=lambda: Path("/proc/apf"), quick=True, say=bench.say))
    assert len(found) == 8
    assert all(figure.value is None and figure.error for figure in found)


def test_a_goal_is_judged_by_value_or_ratio_in_its_own_direction() -> None:
    def low(value: float) -> Reached | None:
        return Figure(name="x", unit="us", value=value, goal=FRAME_US).reached

    assert [low(2), low(2.1), low(5), low(5.1)] == ["aim", "must", "must", "missed"]

    def share(value: float) -> Reached | None:
        return Figure(name="x", unit="GB/s", value=value, baseline=10, goal=WINDOW_SHARE).reached

    assert [share(9.9), share(9.0), share(8.9)] == ["aim", "must", "missed"]
    assert Figure(name="x", unit="GB/s", value=9.9, goal=WINDOW_SHARE).reached is None
    assert Figure(name="x", unit="us", value=1).reached is None


def test_a_goal_that_waits_for_something_else_grows_by_it() -> None:
    goal = RUNNING_AGAIN_POWER_MS.plus(300)
    assert (goal.must, goal.aim) == (1800, 1000)


def test_values_are_rounded_and_whole_ones_stay_whole() -> None:
    row = Figure(name="x", unit="us", value=1234567.8, baseline=3.0).to_json()
    assert (row["value"], row["baseline"], row["ratio"]) == (1_234_600, 3, 411_520)
    assert isinstance(row["baseline"], int)


def test_the_timed_frame_has_70_bytes_and_reaches_the_record() -> None:
    reactor, stream = HandReactor(), FilledStream(4)
    table = StateTable(reactor)
    cnm = table.add(stream, ESCAPED_BOOT_ID)
    beat, report = heartbeat(ESCAPED_BOOT_ID), telemetry(ESCAPED_BOOT_ID)
    assert len(notice_bytes(beat)) == FRAME_BYTES
    stream.fill(notice_bytes(beat) + notice_bytes(report))
    reactor.watches[4](Event.READ)
    assert (cnm.heartbeat, cnm.telemetry, table.updates) == (beat, report, 2)
    assert cnm.heartbeat_ns
    stream.fill(notice_bytes(heartbeat(bytes(16))))  # another boot than the one that is leased
    reactor.watches[4](Event.READ)
    assert (cnm.heartbeat, table.updates) == (beat, 2)
    reactor.close()


def test_a_program_that_fails_is_unmeasured_in_its_own_words() -> None:
    with pytest.raises(Unmeasured, match=r"(?s)status 3.*1000000 pipes need 2000064 descriptors"):
        ask_program("tools.bench.loop_program", ["loop", 10**6, 1, 0], timeout_s=20)
    with pytest.raises(Unmeasured, match="status 1"):
        time_program([sys.executable, "-c", "raise SystemExit(1)"])


@pytest.mark.parametrize("forbidden", [True, False])
def test_programs_find_bytecode_and_the_environment_is_as_before(
    monkeypatch, tmp_path, forbidden
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", forbidden)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.delenv("PYTHONPYCACHEPREFIX", raising=False)
    with with_bytecode(tmp_path):
        time_program([sys.executable, "-c", "import tools.bench.timing"])
        assert any(tmp_path.rglob("timing.*.pyc")) == forbidden
    assert os.environ["PYTHONDONTWRITEBYTECODE"] == "1"
    assert "PYTHONPYCACHEPREFIX" not in os.environ
