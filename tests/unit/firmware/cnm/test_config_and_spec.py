"""What the card sends to a CNM is read strictly, with the place of each fault."""

import json
from dataclasses import replace

import pytest

from firmware.board_types import BoardAccelerator, Module
from firmware.cnm.config import CnmConfig
from firmware.cnm.spec import read_manifest, read_spec, write_manifest
from firmware.fields import FieldError
from firmware.volume_manifest import VolumeError, manifest_digests
from hal.ports import FileInfo

CONFIG = CnmConfig(
    id="cnm0",
    slot=0,
    vendor_id=0x4150,
    state_dir="/var/lib/apf/cnm/cnm0",
    run_dir="/run/apf/cnm/cnm0",
    cgroup="/apf/x/cnm0",
    mc="serial:/run/apf/tty/cnm0-mc.cnm?baud=921600",
    agent="serial:/run/apf/tty/cnm0-agent.cnm?baud=921600",
    module=Module(
        arch="amd64",
        cores_milli=4000,
        memory_bytes=1 << 30,
        nvme_bytes=1 << 34,
        link_mbit=1000,
        runtimes=("oci", "process"),
        labels={"rack": "3"},
        accelerators=(BoardAccelerator(kind="gpu", model="x1", count=2, scope="local"),),
    ),
)
SPEC = {
    "schema": "apf-spec/1",
    "workload": "shop",
    "component": "web",
    "instance": "shop/web/0",
    "runtime": "oci",
    "layers": ["ab" * 32],
    "argv": ["/bin/web"],
    "env": {"A": "1"},
    "cwd": "/",
    "user": "",
    "hostname": "",
    "limits": {"cpu_milli": 500, "memory_bytes": 1 << 26, "pids": 10},
    "read_only": False,
    "volumes": [{"name": "data", "target": "/data", "read_only": False, "manifest": "cd" * 32}],
    "tmpfs": ["/run"],
    "healthcheck": {
        "test": ["CMD-SHELL", "true"],
        "interval_ms": 1000,
        "timeout_ms": 500,
        "retries": 3,
        "start_period_ms": 0,
    },
    "stop_signal": 15,
    "stop_grace_ms": 10_000,
}


def spec_with(**changes: object) -> bytes:
    return json.dumps({**SPEC, **changes}).encode()


def test_a_config_survives_the_way_through_the_keeper() -> None:
    assert CnmConfig.from_json(CONFIG.to_json()) == CONFIG


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"id": "CNM 0"}, "id"),
        ({"state_dir": "relative"}, "state_dir"),
        ({"state_dir": "//"}, "state_dir"),
        ({"surprise": 1}, "surprise"),
        ({"timing": {"heartbeat_ms": 0}}, "timing.heartbeat_ms"),
        ({"schema": "apf-cnm/2"}, "schema"),
    ],
)
def test_a_wrong_config_is_refused_with_its_place(change: dict[str, object], where: str) -> None:
    document = {**json.loads(CONFIG.to_json()), **change}
    with pytest.raises(FieldError, match=where):
        CnmConfig.from_json(json.dumps(document).encode())


def test_a_config_of_another_runtime_directory_is_another_config() -> None:
    assert replace(CONFIG, run_dir="/elsewhere") != CONFIG


def test_a_spec_is_read_whole() -> None:
    spec = read_spec(spec_with())
    assert spec.blobs == (bytes.fromhex("ab" * 32), bytes.fromhex("cd" * 32))
    assert spec.healthcheck is not None
    assert spec.healthcheck.argv == ("/bin/sh", "-c", "true")
    assert spec.limits.memory_bytes == 1 << 26


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"layers": ["AB" * 32]}, "layers"),
        ({"argv": []}, "argv"),
        ({"tmpfs": ["run"]}, "tmpfs"),
        ({"cwd": "/a/../../b"}, "cwd"),
        ({"user": "root; rm"}, "user"),
        ({"volumes": [{"name": "../x", "target": "/d"}]}, "volumes"),
        ({"volumes": [{"name": "x", "target": "/d/../.."}]}, "volumes"),
        ({"healthcheck": {"test": ["CMD-SHELL"]}}, "healthcheck.test"),
        ({"stop_signal": 0}, "stop_signal"),
        ({"more": 1}, "more"),
    ],
)
def test_a_wrong_spec_is_refused_with_its_place(change: dict[str, object], where: str) -> None:
    with pytest.raises(FieldError, match=where.replace(".", r"\.")):
        read_spec(spec_with(**change))


def test_bytes_that_are_no_spec_are_refused() -> None:
    for data in (b"", b"{", b"[]", b"\xff", b"[" * 5000, b" " * (1 << 20)):
        with pytest.raises(FieldError):
            read_spec(data)


def test_a_healthcheck_of_none_is_none() -> None:
    assert read_spec(spec_with(healthcheck={"test": ["NONE"]})).healthcheck is None
    check = read_spec(spec_with(healthcheck={"test": ["CMD", "a", "b"]})).healthcheck
    assert check is not None
    assert check.argv == ("a", "b")


def test_a_manifest_is_canonical_and_reads_back() -> None:
    entries = [
        (FileInfo(path="b", kind="file", mode=0o644, size_bytes=3), b"x" * 32),
        (FileInfo(path="a", kind="dir", mode=0o755, size_bytes=0, uid=1000, gid=7), b""),
        (FileInfo(path=".", kind="dir", mode=0o2770, size_bytes=0, uid=0xFFFF_FFFE), b""),
        (FileInfo(path="c", kind="symlink", mode=0o777, size_bytes=0, target="b"), b""),
    ]
    data = write_manifest(entries)
    assert data == write_manifest(list(reversed(entries)))
    assert list(read_manifest(data)) == sorted(entries, key=lambda entry: entry[0].path)


def test_the_manifest_of_a_volume_in_bytes() -> None:  # from SPEC.md section 13, by hand
    entries = [
        (FileInfo(path="f", kind="file", mode=420, size_bytes=3, uid=1000, gid=7), b"\xab" * 32),
        (FileInfo(path=".", kind="dir", mode=0o750, size_bytes=0, uid=1000), b""),
    ]
    assert write_manifest(entries) == (
        b'{"entries":[{"digest":"","gid":0,"kind":"dir","mode":488,"path":".","size_bytes":0,'
        b'"target":"","uid":1000},{"digest":"' + b"ab" * 32 + b'","gid":7,"kind":"file",'
        b'"mode":420,"path":"f","size_bytes":3,"target":"","uid":1000}],"schema":"apf-volume/1"}'
    )


def test_a_manifest_from_before_owners_reads_as_roots() -> None:
    row = {"path": "a", "kind": "symlink", "mode": 511, "size_bytes": 0, "target": "b"}
    data = json.dumps({"schema": "apf-volume/1", "entries": [row]}).encode()
    ((info, digest),) = read_manifest(data)
    assert (info.path, info.uid, info.gid, digest) == ("a", 0, 0, b"")


@pytest.mark.parametrize("key", ["uid", "gid"])
@pytest.mark.parametrize("value", [-1, 0xFFFF_FFFF, 1 << 32, 1.0, True, "0", None, [], {}])
def test_an_owner_that_is_none_is_refused_with_words_at_both_ends(key: str, value: object) -> None:
    rows = [{"path": ".", "kind": "dir", "mode": 493, "size_bytes": 0, "digest": "", key: value}]
    data = json.dumps({"schema": "apf-volume/1", "entries": rows}).encode()
    with pytest.raises(FieldError, match=rf"entries\[0\]\.{key}: wanted an integer 0\.\."):
        list(read_manifest(data))
    with pytest.raises(VolumeError, match=rf"entries\[0\]\.{key} .*wanted an integer 0\.\."):
        manifest_digests(data, "data")


def test_the_volume_itself_is_a_directory() -> None:
    rows = [{"path": ".", "kind": "symlink", "mode": 511, "size_bytes": 0, "target": "/etc"}]
    data = json.dumps({"schema": "apf-volume/1", "entries": rows}).encode()
    with pytest.raises(FieldError, match=r"entries\[0\]\.kind"):
        list(read_manifest(data))


def test_a_manifest_that_leaves_its_tree_is_refused() -> None:
    for path in ("../x", "/x", "a//b", "a/./b", "", "./a", "..", "./"):
        rows = [{"path": path, "kind": "dir", "mode": 493, "size_bytes": 0}]
        data = json.dumps({"schema": "apf-volume/1", "entries": rows}).encode()
        with pytest.raises(FieldError, match="path"):
            list(read_manifest(data))
