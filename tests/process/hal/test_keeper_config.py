"""What the keeper is told, and what it finds out about the host's cgroups."""

import json
from pathlib import Path

import pytest

from hal.errors import Refused, Unavailable
from hal.local.cgroups import find_trees
from hal.local.config import parse_config, read_config

SLOT = {"slot": 0, "id": "cnm0", "argv": ["/sbin/init"], "window_bytes": 1 << 20}
LINK = {"name": "mc", "baud": 115200}


def test_common_argv_and_env_are_taken_where_a_slot_has_none_of_its_own(tmp_path: Path) -> None:
    config = parse_config(
        {
            "argv": ["/common"],
            "env": {"A": "1", "B": "2"},
            "cwd": "/tmp",
            "slots": [
                {"slot": 0, "id": "a"},
                {"slot": 1, "id": "b", "argv": ["/own"], "env": {"B": "3"}, "cwd": "/usr"},
            ],
        },
        tmp_path,
    )
    first, second = config.slots
    assert (first.argv, first.env, first.cwd) == (("/common",), {"A": "1", "B": "2"}, "/tmp")
    assert (second.argv, second.env, second.cwd) == (("/own",), {"A": "1", "B": "3"}, "/usr")
    assert config.cgroup_of(first) == f"/apf/{config.run_id}/a"
    assert config.namespaces


def test_the_run_id_is_the_same_for_the_same_directory_and_another_for_another(tmp_path) -> None:
    ids = [parse_config({}, directory).run_id for directory in (tmp_path, tmp_path, tmp_path / "b")]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ([], "the config: list, wanted an object"),
        ({"slot": []}, "the config: unknown key 'slot'"),
        ({"run_id": "../etc"}, "run_id: '../etc'"),
        ({"namespaces": "maybe"}, "namespaces: 'maybe'"),
        ({"slots": {}}, "slots: dict, wanted a list"),
        ({"slots": [SLOT] * 65}, "slots: 65 entries, at most 64"),
        ({"slots": [SLOT, {**SLOT, "id": "x"}]}, "slots: slot 0 is given twice"),
        ({"slots": [SLOT, {**SLOT, "slot": 1}]}, "slots: id cnm0 is given twice"),
        ({"slots": [{**SLOT, "slot": "0"}]}, "slots[0].slot: '0', wanted an integer"),
        ({"slots": [{**SLOT, "slot": True}]}, "slots[0].slot: True"),
        ({"slots": [{**SLOT, "id": "a/b"}]}, "slots[0].id: 'a/b'"),
        ({"slots": [{**SLOT, "id": None}]}, "slots[0].id: None"),
        ({"slots": [{**SLOT, "window_bytes": 5000}]}, "slots[0].window_bytes: a window of 5000 B"),
        ({"slots": [{**SLOT, "argv": []}]}, "slots[0].argv: empty"),
        ({"slots": [{**SLOT, "argv": ["bin/init"]}]}, "wanted an absolute path"),
        ({"slots": [{**SLOT, "argv": ["a\0b"]}]}, "without a zero byte"),
        ({"slots": [{**SLOT, "argv": "init"}]}, "slots[0].argv: str, wanted a list"),
        ({"slots": [{**SLOT, "env": {"A=B": "1"}}]}, "slots[0].env: 'A=B' can't name"),
        ({"slots": [{**SLOT, "env": {"A": 1}}]}, "slots[0].env.A: 1, wanted a string"),
        ({"slots": [{**SLOT, "links": [LINK, LINK]}]}, "a name is given twice: mc, mc"),
        ({"slots": [{**SLOT, "links": [{**LINK, "baud": 50}]}]}, "slots[0].links[0].baud: 50"),
        ({"slots": [{**SLOT, "links": [{**LINK, "parity": 1}]}]}, "unknown key 'parity'"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(tmp_path: Path, wrong: object, words: str) -> None:
    with pytest.raises(Refused) as caught:
        parse_config(wrong, tmp_path)
    assert words in str(caught.value)


def test_a_file_that_is_absent_or_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "keeper.json"
    with pytest.raises(Unavailable, match=r"keeper\.json"):
        read_config(path, tmp_path)
    for text in ("{", "[" * 100_000, " " * (1 << 21)):
        path.write_text(text)
        with pytest.raises(Refused, match=r"keeper\.json"):
            read_config(path, tmp_path)
    path.write_text(json.dumps({"slots": [SLOT]}))
    assert read_config(path, tmp_path).slots[0].window_bytes == 1 << 20


HYBRID = """\
24 1 0:21 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
25 24 0:22 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
26 24 0:23 / /sys/fs/cgroup/my\\040freezer rw - cgroup cgroup rw,freezer
27 24 0:24 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""
PURE = "30 1 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_the_hierarchies_of_a_hybrid_a_pure_and_a_bare_host_are_told_apart() -> None:
    hybrid, pure, bare = find_trees(HYBRID), find_trees(PURE), find_trees("")
    assert hybrid.unified == "/sys/fs/cgroup/unified"
    assert hybrid.v1 == ("/sys/fs/cgroup/memory", "/sys/fs/cgroup/my freezer")
    assert hybrid.freezer == "/sys/fs/cgroup/my freezer"
    assert (pure.unified, pure.v1, pure.freezer) == ("/sys/fs/cgroup", (), "")
    assert bare.all == ()
