"""What the components must have written, and the Compose files that make them write it."""

import hashlib
import json
import platform

import pytest

from firmware.board import load_board
from tools.compose import load_compose
from tools.demo.breaking import Break, compose_env
from tools.demo.context import HERE, ROOT_MARK, Context
from tools.demo.errors import StepFailed
from tools.demo.expected import (
    catalog_files,
    catalog_output,
    check_consecutive,
    last_stay,
    ledger_entries,
    output_of,
)
from tools.demo.hashing import blob_path, sha256_file
from tools.demo.manifest import read_directory, read_volume
from tools.demo.mode import Mode
from tools.demo.places import DemoPlaces
from tools.demo.rootfs import APPLETS, build_rootfs
from tools.demo.steps.bring_up import differences
from tools.paths import Places

VARIABLES = {
    "DEMO_IMAGE": "busybox",
    "DEMO_TOKEN": "t",
    "DEMO_DATA": "/srv",
    "DEMO_BULK_BYTES": "33554432",
    "DEMO_LINES": "10",
}


def put(state, data):
    digest = hashlib.sha256(data).hexdigest()
    path = blob_path(state, digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return digest


def manifest(state, entries):
    return put(state, json.dumps({"schema": "apf-volume/1", "entries": entries}).encode())


def entry(path, digest="", kind="file", target=""):
    return {"path": path, "kind": kind, "digest": digest, "target": target}


def context(tmp_path, *, root):
    return Context(
        demo=DemoPlaces(top=tmp_path, places=Places(run=tmp_path, state=tmp_path)),
        apf=None,
        clock=None,
        board=load_board("local", run_dir=tmp_path),
        board_source="local",
        mode=Mode(containers=root, root=root, busybox="", why=""),
        token="t",
        patience_ms=1,
        data="/srv",
        say=print,
    )


@pytest.mark.parametrize(
    ("name", "root"),
    [
        ("shop", True),
        ("shop", False),
        ("bulk", True),
        ("hello", True),
        ("hello", False),
        ("lines", False),
    ],
)
def test_every_compose_file_of_the_demo_normalises_without_a_warning(tmp_path, name, root):
    found = load_compose(str(context(tmp_path, root=root).compose(name)), env=VARIABLES)
    assert [item.to_json() for item in found.warnings] == []
    volumes = [mount for part in found.workload.components for mount in part.volumes]
    assert bool(volumes) == (root and name in ("shop", "bulk"))
    limited = [part.resources.pids for part in found.workload.components]
    assert all(limited) if root else not any(limited)


def test_the_shop_has_what_the_steps_look_at():
    parts = load_compose(str(HERE / "shop.yaml"), env=VARIABLES).workload.components
    by_name = {part.name: part for part in parts}
    assert by_name["web"].replicas == 3
    assert by_name["web"].placement.spread
    assert [(a.kind, a.count) for a in by_name["infer"].resources.accelerators] == [("gpu", 1)]
    assert {d.component: d.condition.value for d in by_name["ledger"].depends_on} == {
        "seed": "completed",
        "catalog": "healthy",
    }
    assert by_name["catalog"].healthcheck is not None
    assert {part.restart.policy.value for part in parts} >= {"no", "always", "on-failure"}
    for part in parts:  # by its shell an instance is known in /proc
        assert tuple(part.argv or ())[:2] == ("/bin/sh", "-c"), part.name


def test_a_broken_output_is_another_output():
    def script(env):
        parts = load_compose(str(HERE / "shop.yaml"), env=env).workload.components
        return next(part.argv for part in parts if part.name == "web")[2]

    greeting = output_of("web", "shop/web/0")[0].split()[0]
    assert f'"{greeting} from' in script(VARIABLES)
    assert f'"{greeting} from' not in script({**VARIABLES, **compose_env(Break.OUTPUT)})


def test_only_marked_lines_are_left_out_without_root(tmp_path):
    text = context(tmp_path, root=False).compose("shop").read_text()
    assert "volumes" not in text
    assert not [line for line in text.splitlines() if line.endswith(ROOT_MARK)]
    assert "healthcheck" in text


def test_the_catalogs_checksums_are_what_sha256sum_prints():
    assert catalog_output()[2] == f"{hashlib.sha256(b'').hexdigest()}  empty"
    assert catalog_files()["deep/er/items"].startswith(b"1\n2\n3\n")
    assert catalog_files()["numbers"].endswith(b"\n50000\n")


def test_a_ledger_is_numbers_with_their_time():
    assert ledger_entries("7 12.05\n8 12.10\n9 1") == [(7, 1205), (8, 1210)]
    assert ledger_entries("") == []
    for line in ("7", "x 1.00", "7 1.0", "7 1.00 more"):
        with pytest.raises(StepFailed, match="a line that is none"):
            ledger_entries(f"{line}\n")


def test_a_gap_and_a_repetition_are_seen():
    check_consecutive([(5, 0), (6, 0)], 5, "it")
    with pytest.raises(StepFailed, match="it: 7 where 6 should be"):
        check_consecutive([(5, 0), (7, 0)], 5, "it")
    with pytest.raises(StepFailed, match="it: 5 where 6 should be"):
        check_consecutive([(5, 0), (5, 0)], 5, "it")
    with pytest.raises(StepFailed, match="it: 5 where 1 should be"):
        check_consecutive([(5, 0)], 1, "it")


def test_the_last_stay_begins_behind_the_last_jump():
    assert last_stay([]) == []
    assert last_stay([(1, 0), (2, 0)]) == [(1, 0), (2, 0)]
    assert last_stay([(1, 0), (2, 0), (9, 0), (10, 0)]) == [(9, 0), (10, 0)]
    assert last_stay([(5, 0), (9, 0), (3, 0)]) == [(3, 0)]


def test_a_volume_on_the_card_is_hashed_file_by_file(tmp_path):
    digest = put(tmp_path, b"abc")
    top = manifest(
        tmp_path,
        [entry("a/b", digest), entry("d", kind="dir"), entry("l", kind="symlink", target="a/b")],
    )
    found = read_volume(tmp_path, top)
    assert (found.files, found.links) == ({"a/b": digest}, {"l": "a/b"})
    assert found.paths["a/b"].read_bytes() == b"abc"


def test_an_object_that_is_not_what_its_name_says_is_seen(tmp_path):
    digest = put(tmp_path, b"abc")
    top = manifest(tmp_path, [entry("a", digest)])
    blob_path(tmp_path, digest).write_bytes(b"abd")
    with pytest.raises(StepFailed, match="its name says"):
        read_volume(tmp_path, top)
    blob_path(tmp_path, digest).unlink()
    with pytest.raises(StepFailed, match="is not in the card's blob store"):
        read_volume(tmp_path, top)


def test_a_hot_directory_is_read_as_it_lies(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("deep/file")
    assert read_directory(tmp_path) == (
        {"deep/file": hashlib.sha256(b"abc").hexdigest()},
        {"link": "deep/file"},
    )


def test_a_root_filesystem_is_one_program_with_many_names(tmp_path):
    program = tmp_path / "busybox"
    program.write_bytes(b"\x7fELF")
    root = build_rootfs(str(program), tmp_path / "root")
    assert {path.name for path in (root / "bin").iterdir()} == {"busybox", *APPLETS}
    assert sha256_file(root / "bin/sh") == sha256_file(program)


def test_a_module_that_is_not_as_described_is_named(tmp_path):
    slot = load_board("local", run_dir=tmp_path, host_arch=platform.machine()).slots[1]
    module = slot.module
    capacity = {
        "arch": module.arch,
        "cpu_milli": module.cores_milli,
        "memory_bytes": module.memory_bytes,
        "nvme_bytes": module.nvme_bytes,
        "link_mbit": module.link_mbit,
        "labels": {"zone": "a"},
        "accelerators": [{"kind": "gpu", "model": "sim-t4", "count": 2, "scope": "fabric"}],
        "runtimes": ["process"],
    }
    assert differences(slot, capacity) == []
    assert differences(slot, {**capacity, "memory_bytes": 5}) == [
        "memory_bytes is 5, wanted 1073741824"
    ]
    assert "runtimes" in differences(slot, {**capacity, "runtimes": ["vm"]})[0]
    assert len(differences(slot, {})) == 7
