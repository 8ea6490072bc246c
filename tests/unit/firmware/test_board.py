"""Boards: what comes with the software is good; what is wrong is refused with file and line."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.board import BoardError, Timing, board_names, check_board, find_board, load_board

RUN = "/run/apf"
GOOD = """\
[board]
name = "bench"
kind = "local"

[slot_default]
window_bytes = 65536
power = "none"

[slot_default.module]
arch = "x86_64"
cores_milli = 1000
memory_bytes = 1
link_mbit = 1
runtimes = ["process"]

[[slot]]
slot = 0
id = "a"
mc = "serial:${run}/tty/${id}-mc?baud=115200"
agent = "serial:${run}/tty/a-agent?baud=115200"
window = "shm:${id}"

[[slot]]
slot = 1
id = "b"
mc = "serial:/dev/ttyS8?baud=115200"
agent = "serial:${run}/tty/b-agent?baud=115200"
window = "shm:b"
"""


@pytest.fixture
def board(tmp_path):
    def write(text, name="bench.toml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def refusal(path, **kwargs):
    with pytest.raises(BoardError) as refused:
        check_board(path, run_dir=RUN, **kwargs)
    return refused.value


@pytest.mark.parametrize("name", board_names())
def test_every_board_that_comes_with_the_software_is_good(name):
    found = check_board(name, run_dir=RUN)
    assert found.name == name
    assert found.slots


def test_the_local_board_has_four_cnms_and_one_gpu():
    found = load_board("local", run_dir=RUN, host_arch="aarch64")
    assert [slot.id for slot in found.slots] == ["cnm0", "cnm1", "cnm2", "cnm3"]
    assert found.slots[0].mc == "serial:/run/apf/tty/cnm0-mc?baud=921600"
    assert found.slots[1].module.accelerators[0].kind == "gpu"
    assert {slot.module.arch for slot in found.slots} == {"arm64"}
    assert {slot.power for slot in found.slots} == {"local"}
    assert found.outside_ttys == ()
    assert [path.rsplit("/", 1)[1] for path in found.files] == ["local.toml", "base.toml"]


def test_the_full_mock_card_has_32_slots():
    found = load_board("mock_32", run_dir=RUN)
    assert [slot.slot for slot in found.slots] == list(range(32))
    assert found.slots[1].module.accelerators  # inherited from mock_4
    assert [slot.id for slot in found.slots] == [f"cnm{n}" for n in range(32)]


def test_rule_5_and_7_the_fence_wait_follows_from_the_constants():
    timing = Timing()
    r = timing.clock_rate_ppm / 1e6
    exact_ms = (timing.lease_ms + timing.stop_ms) * (1 + r) / (1 - r)
    assert timing.fence_wait_min_ms >= exact_ms > timing.fence_wait_min_ms - 1
    assert timing.fence_wait_min_ms == 5512
    assert timing.fence_wait_ms == 5600


def test_rule_6_the_default_lease_outlives_a_crash_of_the_daemon():
    timing = Timing()
    assert timing.lease_ms >= timing.lease_min_rounds_ms
    assert timing.lease_ms >= timing.lease_min_restart_ms


@given(st.integers(100, 600_000), st.integers(10, 60_000), st.integers(0, 100_000))
def test_rule_5_holds_for_any_lease(lease_ms, stop_ms, ppm):
    timing = Timing(lease_ms=lease_ms, stop_ms=stop_ms, clock_rate_ppm=ppm)
    million = 1_000_000
    assert timing.fence_wait_ms * (million - ppm) >= (lease_ms + stop_ms) * (million + ppm)


def test_variables_are_filled_in_and_outside_ttys_are_known(board):
    found = load_board(board(GOOD), run_dir="/tmp/x/")
    assert found.slots[0].mc == "serial:/tmp/x//tty/a-mc?baud=115200"
    assert found.outside_ttys == ("/dev/ttyS8",)


def test_a_missing_tty_is_reported_with_its_line(board):
    error = refusal(board(GOOD), exists=lambda path: False)
    assert (error.line, error.key) == (26, "slot[1].mc")
    assert "/dev/ttyS8" in str(error)
    assert check_board(board(GOOD), run_dir=RUN, exists=lambda path: path == "/dev/ttyS8")


def test_an_unknown_board_names_those_that_are_there():
    error = refusal("lokal")
    assert "local" in str(error)
    assert "mock_4" in str(error)


BAD = {
    "an unknown key": ("window_bytes = 65536", "window_byte = 65536", 6, "slot[0].window_byte"),
    "an unknown table": ("[board]", "[bord]\n[board]", 1, "bord"),
    "an unknown key of the board": ('kind = "local"', 'kind = "local"\nx = 1', 4, "board.x"),
    "an unknown kind": ('kind = "local"', 'kind = "real"', 3, "board.kind"),
    "a wrong type": (
        "cores_milli = 1000",
        'cores_milli = "1000"',
        11,
        "slot[0].module.cores_milli",
    ),
    "no memory": ("memory_bytes = 1", "memory_bytes = 0", 12, "slot[0].module.memory_bytes"),
    "a duplicate slot": ("slot = 1", "slot = 0", 24, "slot[1].slot"),
    "a duplicate id": ('id = "b"', 'id = "a"', 25, "slot[1].id"),
    "a duplicate tty": ("tty/b-agent", "tty/./a-mc", 27, "slot[1].agent"),
    "a duplicate tty at another rate": (
        "tty/b-agent?baud=115200",
        "tty/a-mc?baud=9600",
        27,
        "slot[1].agent",
    ),
    "a duplicate window": ("shm:b", "shm:a", 28, "slot[1].window"),
    "an unknown scheme": ("shm:b", "shmem:b", 28, "slot[1].window"),
    "a window that is no window": ("shm:b", "serial:/dev/x", 28, "slot[1].window"),
    "no baud": ("/dev/ttyS8?baud=115200", "/dev/ttyS8", 26, "slot[1].mc"),
    "a baud of nothing": ("ttyS8?baud=115200", "ttyS8?baud=fast", 26, "slot[1].mc"),
    "a relative tty": ("serial:/dev/ttyS8", "serial:ttyS8", 26, "slot[1].mc"),
    "an unknown variable": ("shm:${id}", "shm:${name}", 21, "slot[0].window"),
    "an odd window": ("window_bytes = 65536", "window_bytes = 65537", 6, "slot[0].window_bytes"),
    "a tiny window": ("window_bytes = 65536", "window_bytes = 4096", 6, "slot[0].window_bytes"),
    "an id with a slash": ('id = "b"', 'id = "../b"', 25, "slot[1].id"),
    "a lease that a restart kills": (
        "[slot_default]",
        "[timing]\nlease_ms = 3000\n[slot_default]",
        6,
        "timing.lease_ms",
    ),
    "thresholds upside down": (
        "[slot_default]",
        "[thresholds]\ncpu_low_percent = 90\n[slot_default]",
        6,
        "thresholds.cpu_low_percent",
    ),
    "more preemptions than there may be": (
        "[slot_default]",
        "[thresholds]\npreemptions_per_hour = 1001\n[slot_default]",
        6,
        "thresholds.preemptions_per_hour",
    ),
    "a tenant without weight": (
        "[slot_default]",
        "[tenants]\nacme = 0\n[slot_default]",
        6,
        "tenants.acme",
    ),
    "a tenant without a name": (
        "[slot_default]",
        "[tenants]\nAcme = 1\n[slot_default]",
        6,
        "tenants.Acme",
    ),
    "broken TOML": ("[slot_default]", "[slot_default", 5, "(file)"),
}


@pytest.mark.parametrize(("old", "new", "line", "key"), BAD.values(), ids=BAD.keys())
def test_a_bad_board_is_refused_at_its_line(board, old, new, line, key):
    assert old in GOOD
    path = board(GOOD.replace(old, new, 1))
    error = refusal(path, exists=lambda tty: True)
    assert (error.key, error.line, error.file) == (key, line, str(path))
    assert error.want
    assert str(error).startswith(f"{path}:{line}: {key}: wanted ")


def test_an_unknown_key_names_the_nearest_one(board):
    error = refusal(board(GOOD.replace("cores_milli", "core_milli")))
    assert "core_milli" in str(error)
    assert "cores_milli" in str(error)


def test_tenants_are_told_apart_only_where_a_board_names_them(board):
    assert load_board(board(GOOD), run_dir=RUN).tenants is None
    assert load_board(board(GOOD + "\n[tenants]\n"), run_dir=RUN).tenants == {}
    named = board(GOOD + "\n[tenants]\nzoo = 1\nacme = 3\n")
    assert load_board(named, run_dir=RUN).tenants == {"acme": 3, "zoo": 1}
    assert load_board(named, run_dir=RUN).thresholds.preemptions_per_hour == 0


def test_no_slots_is_refused(board):
    assert refusal(board('[board]\nname = "x"\nkind = "mock"\n')).key == "slot"


def test_a_child_changes_one_slot_and_its_line_is_the_childs(board):
    board(GOOD)
    child = board(
        '[board]\nname = "child"\ninherit = "bench.toml"\n\n[[slot]]\nslot = 1\nid = "c"\n',
        "child.toml",
    )
    found = load_board(child, run_dir=RUN)
    assert [slot.id for slot in found.slots] == ["a", "c"]
    child.write_text(child.read_text().replace('"c"', '"a"'))
    error = refusal(child)
    assert (error.file, error.line, error.key) == (str(child), 7, "slot[1].id")


def test_an_error_of_the_parent_names_the_parents_file(board):
    parent = board(GOOD.replace("shm:b", "shm:a"))
    child = board('[board]\nname = "child"\ninherit = "bench.toml"\n', "child.toml")
    error = refusal(child, exists=lambda tty: True)
    assert (error.file, error.line) == (str(parent), 28)


def test_a_circle_of_inheritance_is_refused(board):
    one = board('[board]\nname = "one"\ninherit = "two.toml"\n', "one.toml")
    board('[board]\nname = "two"\ninherit = "one.toml"\n', "two.toml")
    assert refusal(one).key == "board.inherit"
    missing = board('[board]\nname = "x"\ninherit = "nothing.toml"\n', "x.toml")
    assert refusal(missing).line == 3


def test_a_name_is_a_board_of_ours_and_a_path_is_a_file(tmp_path):
    assert find_board("local").name == "local.toml"
    assert str(find_board("./local")) == "local"
    assert find_board(tmp_path / "a.toml") == tmp_path / "a.toml"


@pytest.mark.parametrize(
    "text",
    [
        'board = "a word"\n[[slot]]\nslot = 0\n',
        '[board]\nname = "x"\ninherit = "a\\u0000b"\n',
        f'[board]\nname = "x"\nvendor_id = {"1" * 5000}\n',
    ],
    ids=["board that is no table", "parent with a zero byte", "number of 5,000 digits"],
)
def test_what_only_a_careless_reader_stumbles_over_is_refused(board, text):
    with pytest.raises(BoardError):
        load_board(board(text), run_dir=RUN)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_board_or_are_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("board") / "x.toml"
    path.write_bytes(GOOD.encode() + data)
    try:
        load_board(path, run_dir=RUN)
    except BoardError as exc:
        error = exc
        assert str(path) in str(error)
