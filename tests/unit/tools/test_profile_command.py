"""`apf profile ls|show`, and the plot of use against reservation."""

import copy
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.commands.profile import HUMAN, describe, human_kbit
from tools.usage_plot import ASCII, BLOCKS, COLUMNS, ROWS, can_show_blocks, plot

MIB = 1 << 20
NOTHING = dict.fromkeys(
    ("declared", "limit", "reserved", "next", "p50", "p90", "peak", "lower", "upper")
)
ROW = {
    "workload": "shop",
    "component": "db",
    "image": "busybox",
    "digest": "1f9477246344aa00",
    "profile": "auto",
    "samples": 30,
    "age_ms": 1500,
    "measured_ms": 300_000,
    "confidence_ms": 300_000,
    "ooms": 1,
    "memory_floor_bytes": 115 * MIB,
    "resources": {
        "cpu_milli": {
            **NOTHING, "declared": 100, "reserved": 100, "next": 138, "p50": 200, "p90": 200,
            "peak": 200,
        },
        "memory_bytes": {**NOTHING, "reserved": 32 * MIB, "next": 115 * MIB, "peak": 100 * MIB},
        "nvme_kbit": {**NOTHING, "p50": 0, "p90": 1200, "peak": 12_500},
        "link_kbit": NOTHING,
    },
    "bins": {
        "cpu_milli": [{"low": 192, "high": 200, "ppm": 1_000_000}],
        "memory_bytes": [
            {"low": 0, "high": 50 * MIB, "ppm": 500_000},
            {"low": 96 * MIB, "high": 100 * MIB, "ppm": 500_000},
        ],
        "nvme_kbit": [{"low": 0, "high": 0, "ppm": 1_000_000}],
        "link_kbit": [],
    },
}  # fmt: skip
UNUSED = {**copy.deepcopy(ROW), "workload": None, "component": "old", "profile": None}
UNKNOWN = {
    **copy.deepcopy(ROW), "component": "web", "age_ms": None, "samples": 0, "ooms": 0,
    "memory_floor_bytes": None, "resources": dict.fromkeys(ROW["resources"], NOTHING),
    "bins": {resource: [] for resource in ROW["bins"]},
}  # fmt: skip


def test_ls_has_a_line_for_each_resource_with_its_unit(apf, daemon):
    daemon.answers["profile.list"] = [ROW, UNUSED, UNKNOWN]
    lines = [line.split("  ") for line in apf("profile", "ls").stdout.splitlines()]
    lines = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert lines[0] == [
        "COMPONENT", "IMAGE", "SAMPLES", "AGE", "RESOURCE", "DECLARED", "LIMIT", "RESERVED", "NEXT",
        "P50", "P90", "PEAK",
    ]  # fmt: skip
    assert lines[1] == [
        "shop/db", "busybox", "30", "1.5 s", "cpu", "0.1 cores", "-", "0.1 cores", "0.138 cores",
        "0.2 cores", "0.2 cores", "0.2 cores",
    ]  # fmt: skip
    assert lines[2][:5] == ["memory", "-", "-", "32.0 MiB", "115.0 MiB"]
    assert lines[3] == ["nvme", *"----", "0 kbit/s", "1.2 Mbit/s", "12.5 Mbit/s"]
    assert [line[0] for line in lines[4:]] == ["(old)", "memory", "nvme", "shop/web"]


def test_both_give_programs_what_the_daemon_said(apf, daemon):
    daemon.answers["profile.list"] = [ROW]
    daemon.answers["profile.show"] = [ROW, UNUSED]
    document = json.loads(apf("profile", "ls", "--json").stdout)
    assert (document["kind"], document["data"]) == ("profile_ls", [ROW])
    document = json.loads(apf("profile", "show", "db", "--json").stdout)
    assert (document["kind"], document["data"]) == ("profile_show", [ROW, UNUSED])
    assert daemon.calls[-1] == ("profile.show", {"component": "db"})


def test_an_unknown_component_is_refused(apf, daemon):
    error = {"code": 1, "message": "no", "data": {"code": "unknown_profile"}}
    daemon.answers["profile.show"] = {"error": error}
    assert apf("profile", "show", "nobody").exit_code == 3


def test_show_plots_what_was_measured_and_marks_what_is_reserved(apf, daemon):
    daemon.answers["profile.show"] = [ROW]
    shown = apf("profile", "show", "db").stdout.splitlines()
    assert shown[0] == "shop/db  image busybox (1f9477246344)"
    assert "at least 115.0 MiB from now on" in shown[2]
    axis = shown[shown.index("cpu: p50 0.2 cores, p90 0.2 cores, peak 0.2 cores") + ROWS + 1]
    assert axis.endswith(" 0.2 cores")
    assert axis.index("*") == 1 + COLUMNS // 2  # declared and reserved are the same
    assert axis.index("N") == 1 + 138 * COLUMNS // 200
    assert not any(line.startswith("link") for line in shown)
    assert not any("\x1b" in line for line in shown)


def test_a_terminal_without_blocks_gets_ascii(apf, daemon):
    daemon.answers["profile.show"] = [ROW]
    assert "█" in "\n".join(describe(ROW, blocks=True))
    "\n".join(describe(ROW, blocks=False)).encode("ascii")
    assert can_show_blocks("utf-8")
    assert not can_show_blocks("ascii")
    assert not can_show_blocks("latin-1")
    assert not can_show_blocks(None)
    assert not can_show_blocks("no-such-encoding")
    stream = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    for line in describe(ROW, blocks=can_show_blocks(stream.encoding)):
        stream.write(line + "\n")
    stream.flush()


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (UNKNOWN, "nothing was measured yet"),
        ({**UNKNOWN, "profile": "off"}, "profile: off"),
        (UNUSED, "30 samples, 5m00s measured, the last 1.5 s ago"),
    ],
)
def test_what_there_is_to_say_is_said_in_words(row, words):
    assert any(words in line for line in describe(row, blocks=True))


def test_bandwidth_is_in_bits_a_second():
    assert [human_kbit(value) for value in (None, 0, 999, 1000, 12_345)] == [
        "-", "0 kbit/s", "999 kbit/s", "1.0 Mbit/s", "12.3 Mbit/s",
    ]  # fmt: skip
    assert list(HUMAN) == list(ROW["resources"])


# --- the plot ---


def test_a_plot_by_hand():
    """Ten columns from 0 to 100: half of the samples below 10, the rest above 90."""
    found = plot([(0, 9, 500_000), (95, 100, 500_000)], {"R": 50}, blocks=True, columns=10)
    assert found == [" █        █"] * ROWS + ["└─────R────┘"]
    found = plot([(0, 9, 750_000), (95, 100, 250_000)], {}, blocks=False, columns=10)
    # 28 steps for the first one, so 10 for a third of it: a whole row, and three of seven
    assert found == [" #", " #", " #        -", " #        #", "+----------+"]


def test_nothing_makes_no_plot():
    assert plot([], {}, blocks=True) == []
    assert plot([(0, 0, 1_000_000)], {"R": 0}, blocks=True) == []


bins = st.lists(
    st.tuples(st.integers(0, 1 << 50), st.integers(0, 1 << 50), st.integers(0, 10**6)).map(
        lambda item: (min(item[:2]), max(item[:2]), item[2])
    ),
    max_size=20,
)


@given(bins, st.dictionaries(st.sampled_from("DLRN"), st.integers(0, 1 << 50)), st.booleans())
def test_a_plot_is_of_one_size_and_shows_whatever_was_seen(found, marks, blocks):
    lines = plot(found, marks, blocks=blocks)
    if not lines:
        return
    assert len(lines) == ROWS + 1
    assert all(len(line) <= COLUMNS + 2 for line in lines)
    glyphs = BLOCKS if blocks else ASCII
    assert set("".join(lines[:-1])) <= set(glyphs)
    lowest = lines[ROWS - 1][1:].ljust(COLUMNS)
    top = max([high for _low, high, _ppm in found] + list(marks.values()))
    for low, _high, ppm in found:
        assert not ppm or lowest[min(low * COLUMNS // top, COLUMNS - 1)] != " "
    assert not marks or set(lines[-1]) & {*marks, "*"}
