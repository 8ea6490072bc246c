"""`apf explain`, `plan`, `top`, `heatmap`: what is asked, what is shown, how it ends."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from firmware.allocator import AllocatorState, Capacity, CnmView, Constraints, Demand
from firmware.allocator.explain import explain
from firmware.allocator.score import CRITERIA
from firmware.history import SERIES
from firmware.occupancy import RESOURCES, occupancy
from firmware.placement_rows import UNMEASURED, amounts_row, demand_row, shape_row, verdict_row
from tools.commands.explain import CRITERIA as WORDS
from tools.output import Output

MIB = 1 << 20
GIB = 1 << 30
ROOT = Path(__file__).parents[3]
COMPOSE = "services:\n  web:\n    image: nginx:1\n"


def books():
    state = AllocatorState()
    for number in range(3):
        capacity = Capacity(cpu_milli=4000, memory_bytes=2 * GIB)
        state.add_cnm(CnmView(id=f"cnm{number}", arch="arm64", capacity=capacity, labels={}))
    state.commit("x/y/0", "cnm2", Demand(memory_bytes=1900 * MIB, cpu_milli=100))
    return state


def explanation(here=None, memory_bytes=512 * MIB, **changes):
    """As the card answers it."""
    demand = Demand(cpu_milli=500, memory_bytes=memory_bytes)
    found = explain(books(), demand, Constraints(workload="shop", component="db"))
    return {
        "instance": "shop/db/0",
        "workload": "shop",
        "component": "db",
        "cnm": here,
        "target": None,
        "ended": None,
        "waits": here is None,
        "pinned_to": [],
        "demand": demand_row(demand),
        "best": found.best,
        "runner_up": found.runner_up,
        "decided_by": found.decided_by,
        "criteria": list(CRITERIA),
        "cnms": [verdict_row(v, here, frozenset()) for v in found.verdicts],
        **changes,
    }


def row(name, phase="RUNNING"):
    component = name.split("/")[1]
    return {"instance": name, "component": component, "phase": phase}


# --- explain ---


def test_every_criterion_of_the_score_has_words():
    assert set(CRITERIA) <= WORDS.keys()


def test_explain_says_whether_others_are_stopped_for_what_waits(apf, daemon):
    text = "low/web/0 on cnm1 will be stopped for it if nothing else makes room"
    preemption = {"priority": 80, "text": text, "cnm": "cnm1", "victims": ["low/web/0"]}
    daemon.answers["instance.explain"] = explanation(None, preemption=preemption)
    assert f"  priority 80: {text}\n" in apf("explain", "shop/db/0").stdout
    daemon.answers["instance.explain"] = explanation("cnm0", preemption=None)
    assert "priority" not in apf("explain", "shop/db/0").stdout


def test_explain_shows_why_here_and_why_not_there_with_numbers_and_remedies(apf, daemon):
    daemon.answers["instance.explain"] = explanation("cnm0")
    result = apf("explain", "shop/db/0")
    assert result.exit_code == 0
    assert daemon.calls == [("instance.explain", {"instance": "shop/db/0"})]
    text = result.stdout
    assert text.startswith("shop/db/0 is on cnm0\n  asks for cpu 0.5, memory 512.0 MiB\n")
    assert "cnm0 before cnm1 by id (" in text
    lines = {line.split()[0]: line for line in text.splitlines()[4:]}
    assert "1 (here)" in lines["cnm0"]
    assert "it fits, equal to cnm0, whose name comes first" in lines["cnm1"]
    assert "512.0 MiB / 148.0 MiB free of 2.0 GiB" in lines["cnm2"]
    assert "memory: wants 512 MiB, 148 MiB free of 2 GiB" in lines["cnm2"]
    assert "364 MiB less memory; or release of x/y/0" in lines["cnm2"]


def test_explain_says_by_which_criterion_and_against_what(apf, daemon):
    scores = {"cnm0": dict.fromkeys(CRITERIA, 0), "cnm1": dict.fromkeys(CRITERIA, 7)}
    found = explanation("cnm1", decided_by=CRITERIA[0])
    for one in found["cnms"]:
        one["criteria"] = scores.get(one["id"], {})
    daemon.answers["instance.explain"] = found
    text = apf("explain", "shop/db/0").stdout
    assert "today it would go to cnm0: the card has changed since it was placed" in text
    assert f"cnm0 before cnm1 by {CRITERIA[0]}: 0 against 7, less is better" in text
    assert f"it fits, behind cnm0 by {CRITERIA[0]}: 7 against 0" in text


def test_explain_of_what_waits_says_so_and_has_no_winner(apf, daemon):
    daemon.answers["instance.explain"] = explanation(None, memory_bytes=3 * GIB)
    text = apf("explain", "shop/db/0").stdout
    assert text.startswith("shop/db/0 waits: no module can hold it now\n")
    assert "before" not in text
    assert text.count("1 GiB less memory") == 2


def test_explain_of_a_component_takes_those_that_wait_first_and_not_all(apf, daemon):
    names = [f"shop/db/{n}" for n in range(20)]
    daemon.answers["workload.ps"] = [
        row("shop/web/0"), *(row(n, "PENDING" if n == "shop/db/9" else "RUNNING") for n in names)
    ]  # fmt: skip
    daemon.answers["instance.explain"] = lambda params: explanation("cnm0", **params)
    result = apf("explain", "shop/db", "--json")
    found = json.loads(result.stdout)
    assert (found["schema"], found["kind"]) == ("apf/1", "explain")
    assert [item["instance"] for item in found["data"]][:3] == [
        "shop/db/9", "shop/db/0", "shop/db/1",
    ]  # fmt: skip
    assert len(found["data"]) == 16
    assert "4 more instances" in apf("explain", "shop/db").stderr


def test_explain_of_a_component_that_is_not_there_is_3(apf, daemon):
    daemon.answers["workload.ps"] = [row("shop/web/0")]
    result = apf("explain", "shop/nothing")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "'nothing'" in result.stderr


# --- plan ---


@pytest.fixture
def compose(tmp_path):
    path = tmp_path / "shop.yaml"
    path.write_text(COMPOSE)
    return str(path)


def planned(name, cnm, **changes):
    demand = demand_row(Demand(cpu_milli=500, memory_bytes=GIB)) if cnm else None
    return {
        "instance": name,
        "component": name.split("/")[1],
        "cnm": cnm,
        "demand": demand,
        "pending": {},
        "cnms": [],
        **changes,
    }


def test_plan_shows_each_instance_and_says_that_nothing_was_changed(apf, daemon, compose):
    plan = {"name": "shop", "fits": True, "instances": [planned("shop/web/0", "cnm1")]}
    plan["refusals"] = [{"code": "image_missing", "text": "web: image nginx:1 is not on this card"}]
    daemon.answers["workload.plan"] = plan
    result = apf("plan", compose)
    assert result.exit_code == 0
    [(method, params)] = daemon.calls
    assert method == "workload.plan"
    assert params["workload"]["components"][0]["image"] == "nginx:1"
    assert result.stdout.splitlines()[1].split() == [
        "shop/web/0", "cnm1", "cpu", "0.5,", "memory", "1.0", "GiB",
    ]  # fmt: skip
    assert "nothing was changed" in result.stderr
    assert "a submit would be refused: web: image nginx:1" in result.stderr
    document = json.loads(apf("plan", compose, "--json").stdout)
    assert (document["kind"], document["data"]) == ("plan", plan)
    assert document["warnings"][-1]["code"] == "image_missing"


def test_plan_of_what_would_not_fit_is_1_with_the_reasons(apf, daemon, compose):
    late = explanation(None, memory_bytes=3 * GIB)
    reasons = {one["id"]: one["reason"] for one in late["cnms"]}
    plan = {
        "name": "shop",
        "fits": False,
        "refusals": [],
        "instances": [
            planned("shop/web/0", "cnm1"),
            planned("shop/db/0", None, pending=reasons, cnms=late["cnms"]),
            planned("shop/db/1", None, pending=reasons),
        ],
    }
    daemon.answers["workload.plan"] = plan
    result = apf("plan", compose)
    assert result.exit_code == 1
    assert "shop/web/0" in result.stdout
    assert "2 of 3 instances of shop would not fit" in result.stderr
    assert "cnm0: memory: wants 3 GiB, has 2 GiB (would fit with 1 GiB less memory)" in (
        result.stderr
    )
    failed = json.loads(apf("plan", compose, "--json").stdout)
    assert (failed["kind"], failed["error"]["code"]) == ("error", "would_not_fit")
    assert failed["error"]["data"] == plan


def test_plan_of_a_bad_file_is_2_and_asks_nobody(apf, daemon, tmp_path):
    bad = tmp_path / "bad.yaml"
    bad.write_text("services: 7\n")
    assert apf("plan", str(bad)).exit_code == 2
    assert daemon.calls == []


# --- top ---


def top():
    state = books()
    seen = occupancy(state)
    rows = {
        cnm: [amounts_row(name, amounts[name], UNMEASURED) for name in RESOURCES]
        for cnm, amounts in seen.cnms.items()
    }
    return {
        "at": "2026-11-22T10:00:00.000Z",
        "resources": [amounts_row(name, seen.card[name], 700) for name in RESOURCES],
        "cnms_known": 3,
        "instances": 1,
        "cnms": [
            {
                "id": cnm,
                "state": "LEASED",
                "takes_none": None,
                "instances": 1,
                "fullest_permille": 500,
                "resources": lines,
            }
            for cnm, lines in rows.items()
        ],
        "pending": 2,
        "mix": [shape_row(shape) for shape in seen.mix],
        "components": [
            {
                "workload": "x",
                "component": "y",
                "instances": 1,
                "cpu_milli": 90,
                "memory_bytes": GIB,
                "reserved_cpu_milli": 100,
                "reserved_memory_bytes": 1900 * MIB,
            }
        ],
    }


def test_top_once_shows_resources_modules_and_components(apf, daemon):
    daemon.answers["card.top"] = top()
    result = apf("top", "--once")
    assert result.exit_code == 0
    text = result.stdout
    assert "\x1b" not in text
    assert "1 instances, 2 wait for room" in text
    memory = next(line for line in text.splitlines() if line.startswith("memory"))
    assert "6.0 GiB" in memory
    assert "1.9 GiB (30.9 %)" in memory
    assert "148.0 MiB" in memory, "stranded on cnm2, where no second one fits"
    assert "accelerators" not in text, "the card has none"
    assert next(line for line in text.splitlines() if line.startswith("x/y"))
    assert json.loads(apf("top", "--once", "--json").stdout)["data"] == top()
    assert daemon.calls[0] == ("card.top", {"cnms": 4096, "components": 10})


def test_top_shows_the_tenants_where_they_share_the_card(apf, daemon):
    row = {"weight": 3, "resource": "cpu", "share_percent": 62, "running": 5, "waiting": 7}
    daemon.answers["card.top"] = {**top(), "tenants": [{"tenant": "acme", **row}]}
    shown = apf("top", "--once").stdout
    assert "TENANT" in shown
    line = next(line for line in shown.splitlines() if "acme" in line)
    assert line.split() == ["acme", "3", "62", "%", "cpu", "5", "7"]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_top_on_a_narrow_terminal_drops_columns_and_cuts_no_name_and_no_figure(
    apf, daemon, monkeypatch, width
):
    wide = Output.console
    found = top()
    for module in found["cnms"]:
        module["takes_none"] = ["memory 512.0 MiB, cpu 250, of any arch"]
    daemon.answers["card.top"] = found
    whole = [line.split("  ") for line in apf("top", "--once").stdout.splitlines()]

    def narrow(self):
        console = wide(self)
        console.width = width
        return console

    monkeypatch.setattr(Output, "console", narrow)
    tables = apf("top", "--once").stdout.partition("\n\n")[2]
    lines = [line.split("  ") for line in tables.splitlines() if line]
    named = {words[0]: words for words in whole}
    for module in found["cnms"]:
        assert [words[1] for words in lines if words[0] == module["id"]] == ["LEASED"]
    for words in lines:
        assert words[0] in named, "the name of each row, and of each table, is whole"
        cells = [cell.strip() for cell in words if cell.strip()]
        uncut = [cell.strip() for cell in named[words[0]] if cell.strip()]
        assert cells[:-1] == uncut[: len(cells) - 1]
        last = uncut[len(cells) - 1]
        assert cells[-1] == last or (" MiB" in last and last.startswith(cells[-1]))


def test_top_into_a_file_is_one_look(apf, daemon):
    daemon.answers["card.top"] = top()
    assert apf("top").stdout == apf("top", "--once").stdout


def test_top_as_json_is_one_line_a_second_until_it_is_interrupted(daemon, tmp_path):
    daemon.answers["card.top"] = top()
    process = subprocess.Popen(  # what a shell starts in the background ignores the signal
        ["env", "--default-signal=INT", sys.executable, "-m", "tools", "--run", str(tmp_path),
         "top", "--json"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert [json.loads(line) for line in lines] == [top(), top()]


def test_top_on_a_terminal_ends_with_q_and_leaves_it_as_it_was(daemon, tmp_path):
    daemon.answers["card.top"] = top()
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    size = {"TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tools", "--run", str(tmp_path), "top"],
        cwd=ROOT, stdin=theirs, stdout=theirs, env=os.environ | size,
    )  # fmt: skip
    try:
        assert b"\x1b[?1049h" in read_until(ours, b"wait for room"), "on a screen of its own"
        os.write(ours, b"xq")
        read_until(ours, b"\x1b[?1049l")
        assert process.wait(20) == 0
        assert termios.tcgetattr(theirs) == before
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def read_until(handle, wanted):
    """What a terminal shows, up to and with these bytes; it fails when they do not come."""
    seen = b""
    while wanted not in seen:
        ready, _, _ = select.select([handle], [], [], 30)
        assert ready, seen
        seen += os.read(handle, 65536)
    return seen


# --- heatmap ---


def history(cnms=2, columns=4, page=None):
    rows = []
    for number in range(cnms):
        values = {name: [None] * columns for name in SERIES}
        values["cpu"] = [None, 0, 500, 1000]
        values["cpu_used"] = [None, 10, 20, number]
        rows.append({"id": f"cnm{number}", "permille": values})
    return {
        "step_ms": 60_000,
        "columns": columns,
        "newest": 77,
        "newest_at": "2026-11-22T10:00:00.000Z",
        "series": list(SERIES),
        "cnms": rows,
        "next": page,
    }


def texts(path):
    return [
        "".join(item.itertext()) for item in ET.parse(path).iter() if item.tag.endswith("}text")
    ]


def test_heatmap_draws_each_module_and_each_resource_that_is_there(apf, daemon, tmp_path):
    pytest.importorskip("matplotlib")
    daemon.answers["card.history"] = history()
    path = tmp_path / "card.svg"
    result = apf("heatmap", "--since", "30m", "-o", str(path))
    assert (result.exit_code, result.stdout) == (0, "")
    assert daemon.calls == [("card.history", {"since_ms": 1_800_000})]
    words = texts(path)
    assert words.count("cnm0") == words.count("cnm1") == 2
    assert {"cpu, reserved", "cpu, measured use"} <= set(words)
    assert "memory, reserved" not in words, "nothing is known of it"
    assert any("% of what the module has" in word for word in words)
    assert any("1 min" in word for word in words)
    first = path.read_bytes()
    apf("heatmap", "--since", "30m", "-o", str(path))
    assert path.read_bytes() == first, "equal data, equal file"


def test_heatmap_writes_a_png_too(apf, daemon, tmp_path):
    pytest.importorskip("matplotlib")
    daemon.answers["card.history"] = history()
    path = tmp_path / "card.png"
    assert apf("heatmap", "--series", "cpu", "-o", str(path)).exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_heatmap_names_some_of_many_modules_and_none_twice(apf, daemon, tmp_path):
    pytest.importorskip("matplotlib")
    daemon.answers["card.history"] = history(cnms=300)
    path = tmp_path / "card.svg"
    assert apf("heatmap", "--series", "cpu", "-o", str(path)).exit_code == 0
    names = [word for word in texts(path) if word.startswith("cnm")]
    assert 30 < len(names) <= 64
    assert len(set(names)) == len(names)


def test_heatmap_as_json_has_the_numbers_of_all_pages_and_needs_no_library(apf, daemon):
    def answer(params):
        found = history(cnms=1, page=1 if "cursor" not in params else None)
        found["cnms"][0]["id"] = f"cnm{params.get('cursor', 0)}"
        return found

    daemon.answers["card.history"] = answer
    result = apf("heatmap", "--json", "--series", "cpu", MPLCONFIGDIR="/nowhere")
    data = json.loads(result.stdout)["data"]
    assert [row["id"] for row in data["cnms"]] == ["cnm0", "cnm1"]
    assert data["cnms"][0]["permille"] == {"cpu": [None, 0, 500, 1000]}
    assert (data["file"], data["series"], data["step_ms"]) == (None, ["cpu"], 60_000)
    assert daemon.calls[1] == ("card.history", {"since_ms": 3_600_000, "cursor": 1, "newest": 77})


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "-o FILE.png"),
        (["-o", "card.gif"], 2, ".svg"),
        (["-o", "card.svg", "--since", "soon"], 2, "duration"),
        (["-o", "card.svg", "--since", "2d"], 2, "at most 1d"),
        (["-o", "card.svg", "--series", "cpus"], 2, "accelerators"),
        (["-o", "/nowhere/at/all.svg"], 1, "/nowhere/at/all.svg"),
    ],
)
def test_heatmap_says_what_is_wrong_with_its_words(apf, daemon, words, code, said):
    pytest.importorskip("matplotlib")
    daemon.answers["card.history"] = history()
    result = apf("heatmap", *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr


def test_heatmap_without_its_library_says_what_to_install(apf, daemon, monkeypatch, tmp_path):
    daemon.answers["card.history"] = history()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = apf("heatmap", "-o", str(tmp_path / "card.svg"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "pip install 'adaptive-peripheral-fabric[plot]'" in result.stderr


def test_nothing_but_the_heatmap_loads_the_drawing_library():
    words = "import sys, tools.commands.heatmap, tools.commands.top, firmware.app; " \
        "sys.exit('matplotlib' in sys.modules or 'numpy' in sys.modules)"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", words], cwd=ROOT, check=False).returncode == 0
