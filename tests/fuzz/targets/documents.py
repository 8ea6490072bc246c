"""JSON and TOML that is read strictly: workloads, images, specs, manifests, boards, configs."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from firmware.board import BoardError, load_board
from firmware.board_types import BoardAccelerator, Module
from firmware.cnm.config import CnmConfig
from firmware.cnm.spec import read_manifest, read_spec, write_manifest
from firmware.fields import FieldError
from firmware.image_manifest import Image, ImageError
from firmware.keeper_config import plan_keeper
from firmware.volume_manifest import VolumeError, manifest_digests
from firmware.workload import Workload, WorkloadError
from hal.errors import HalError, Refused
from hal.local import wire
from hal.local.config import parse_config, read_config
from hal.ports import FileInfo
from hal.registry import TABLE, find, parse_spec
from tests.fuzz.reader import Reader, all_keys, edited, json_text
from tests.fuzz.target import Check, Target

DIGEST = "ab" * 32
WORKLOAD: dict[str, Any] = {
    "schema": "apf-workload/1",
    "name": "shop",
    "components": [
        {
            "name": "web",
            "image": "registry.local:5000/nginx@sha256:00",
            "runtime": "oci",
            "entrypoint": ["/bin/sh"],
            "argv": [],
            "env": {"A": "1"},
            "cwd": "/srv",
            "user": "10:20",
            "hostname": "web",
            "resources": {
                "cpu_milli": 500,
                "cpu_limit_milli": 1000,
                "memory_bytes": 1,
                "arch": "arm64",
                "accelerators": [{"kind": "gpu", "model": "t4", "count": 2, "milli": 500}],
            },
            "replicas": 3,
            "placement": {"labels": {"zone": "a"}, "spread": True, "together": ["db"]},
            "volumes": [{"name": "data", "target": "/data", "read_only": True}],
            "tmpfs": ["/run"],
            "depends_on": [{"component": "db", "condition": "healthy"}],
            "restart": {"policy": "on-failure", "max_attempts": 3},
            "healthcheck": {"test": ["true"], "interval_ms": 1},
            "stop_signal": 2,
            "stop_grace_ms": 0,
            "read_only": True,
            "profile": "off",
        },
        {"name": "db", "image": "host", "healthcheck": {"test": ["true"]}},
    ],
}
SMALL = {"schema": "apf-workload/1", "name": "s", "components": [{"name": "a", "image": "b"}]}
IMAGE = {
    "schema": "apf-image/1",
    "ref": "nginx:1",
    "arch": "x86_64",
    "config": {"env": {"A": "1"}, "entrypoint": ["/bin/a"], "cmd": [], "cwd": "/", "user": "1"},
    "layers": [{"digest": DIGEST, "size_bytes": 9}, {"digest": "0" * 64, "size_bytes": 1}],
}
SPEC = {
    "schema": "apf-spec/1",
    "workload": "shop",
    "component": "web",
    "instance": "shop/web/0",
    "runtime": "oci",
    "layers": [DIGEST],
    "argv": ["/bin/web"],
    "env": {"A": "1"},
    "cwd": "/",
    "user": "web:web",
    "hostname": "h",
    "limits": {"cpu_milli": 500, "memory_bytes": 1 << 26, "pids": 10},
    "read_only": False,
    "volumes": [{"name": "shop/data", "target": "/data", "read_only": False, "manifest": DIGEST}],
    "tmpfs": ["/run"],
    "healthcheck": {"test": ["CMD-SHELL", "true"], "interval_ms": 1000, "retries": 3},
    "stop_signal": 15,
    "stop_grace_ms": 10_000,
}
FILES = [
    (FileInfo(path=".", kind="dir", mode=0o755, size_bytes=0), b""),
    (FileInfo(path="d", kind="dir", mode=0o700, size_bytes=0, uid=7, gid=8), b""),
    (FileInfo(path="d/f", kind="file", mode=0o644, size_bytes=3), b"d" * 32),
    (FileInfo(path="l", kind="symlink", mode=0o777, size_bytes=0, target="d/f"), b""),
]
MANIFEST = json.loads(write_manifest(FILES))
CONFIG = CnmConfig(
    id="cnm0",
    slot=0,
    vendor_id=0x4150,
    state_dir="/s",
    run_dir="/r",
    cgroup="/apf/x",
    mc="serial:/t?baud=921600",
    agent="serial:/u?baud=921600",
    module=Module(
        arch="amd64",
        cores_milli=4000,
        memory_bytes=1 << 30,
        nvme_bytes=0,
        link_mbit=1000,
        runtimes=("oci",),
        labels={"rack": "3"},
        accelerators=(BoardAccelerator(kind="gpu", model="x1", count=2, scope="local"),),
    ),
)
KEEPER = {
    "run_id": "lab1",
    "namespaces": "off",
    "argv": ["/bin/init", "--id", "{id}"],
    "env": {"A": "1"},
    "cwd": "/",
    "slots": [
        {"slot": 0, "id": "cnm0", "window_bytes": 65536, "links": [{"name": "mc", "baud": 9600}]},
        {"slot": 1, "id": "cnm1", "argv": ["/bin/other"], "env": {"B": "2"}},
    ],
}
SLOT = {
    "slot": 0,
    "id": "a",
    "mc": "serial:${run}/tty/${id}-mc?baud=115200",
    "agent": "serial:${run}/tty/a-agent?baud=115200",
    "window": "shm:${id}",
}
BOARD = {
    "board": {"name": "bench", "kind": "local", "vendor_id": 1, "description": "d"},
    "timing": {"heartbeat_ms": 100, "lease_ms": 6000},
    "thresholds": {"cpu_high_percent": 85, "cpu_low_percent": 60},
    "slot_default": {
        "window_bytes": 65536,
        "power": "none",
        "module": {
            "arch": "host",
            "cores_milli": 1000,
            "memory_bytes": 1,
            "link_mbit": 1,
            "runtimes": ["process"],
            "labels": {"zone": "a"},
            "accelerators": [{"kind": "gpu", "model": "m", "count": 1, "scope": "local"}],
        },
    },
    "slot": [SLOT, {**SLOT, "slot": 1, "id": "b", "agent": "serial:/dev/ttyS8?baud=9600"}],
}
INHERITS = {"board": {"name": "bench", "inherit": "base"}, "slot": [{**SLOT, "power": "none"}]}


def loads(data: bytes) -> object:
    """As the parsers below get it: already JSON. Raises ValueError or RecursionError."""
    return json.loads(data)


def _json_target(
    name: str, text: str, bases: Sequence[Any], read: Callable[[bytes], bool], **more: Any
) -> Target:
    words = all_keys(*bases)

    def make(_scratch: Path) -> Check:
        return lambda data: read(json_text(data, bases, words))

    def seeds() -> Iterable[bytes]:
        for index, base in enumerate(bases):
            yield json.dumps(base).encode()
            yield bytes([index, 255, 255, 255, 255])
            for place in range(24):
                yield bytes([index, 0, place, place * 7 % 11, place * 3 % 5, 4, 5, place])
                yield bytes([index, 0, 2, place, 255, 5, 1, place, 0, place, 2, 3, 2])

    tokens = tuple(json.dumps(word).encode() for word in words)
    return Target(
        name=name, text=text, make=make, seeds=seeds, words=(*tokens, b"\\ud800", b"1e9"), **more
    )


def _workload(data: bytes) -> bool:
    try:
        workload = Workload.from_json(loads(data))
    except (ValueError, RecursionError, WorkloadError) as exc:
        str(exc).encode()  # it can be said
        return False
    again = Workload.from_json(workload.to_json())
    assert again == workload
    assert again.to_bytes() == workload.to_bytes()
    json.dumps(workload.to_json(), ensure_ascii=False).encode()
    assert sum(component.replicas for component in workload.components) <= 4096
    return True


def _image(data: bytes) -> bool:
    try:
        image = Image.from_json(loads(data))
    except (ValueError, RecursionError, ImageError) as exc:
        str(exc).encode()
        return False
    assert Image.from_json(image.to_json()) == image
    return True


def _spec(data: bytes) -> bool:
    try:
        spec = read_spec(data)
    except FieldError as exc:
        str(exc).encode()
        return False
    assert spec.argv
    for path in (spec.cwd, *spec.tmpfs, *(volume.target for volume in spec.volumes)):
        assert path.startswith("/")
        assert ".." not in path.split("/")
    for volume in spec.volumes:
        assert not {"", ".", ".."} & set(volume.name.split("/"))
    assert all(len(digest) == 32 for digest in spec.blobs)
    return True


def _manifest(data: bytes) -> bool:
    try:
        digests = manifest_digests(data, "v")
    except VolumeError:
        digests = None
    try:
        entries = list(read_manifest(data))
    except FieldError:
        return False
    for info, digest in entries:
        assert info.path == "." or not {"", ".", ".."} & set(info.path.split("/"))
        assert (len(digest) == 32) is (info.kind == "file")
    assert sorted(read_manifest(write_manifest(entries)), key=_path) == sorted(entries, key=_path)
    if digests is not None:
        assert {digest for _, digest in entries if digest} <= set(digests)
    return True


def _path(entry: tuple[FileInfo, bytes]) -> tuple[str, str]:
    return entry[0].path, repr(entry)


def _cnm_config(data: bytes) -> bool:
    try:
        config = CnmConfig.from_json(data)
    except FieldError:
        return False
    assert CnmConfig.from_json(config.to_json()) == config
    return True


def keeper_config(scratch: Path) -> Check:
    bases, words = (KEEPER,), all_keys(KEEPER)
    file = scratch / "keeper.json"

    def check(data: bytes) -> bool:
        raw = json_text(data, bases, words)
        file.write_bytes(raw)
        try:
            config = read_config(file, scratch)
        except Refused:
            return False
        assert config == parse_config(json.loads(raw), scratch)
        for slot in config.slots:
            assert "/" not in slot.id
            assert config.cgroup_of(slot).startswith("/apf/")
        return True

    return check


def _packet(data: bytes) -> bool:
    """One packet of the keeper's socket."""
    try:
        message = wire._decode(data)
    except Refused:
        return False
    found = wire.result_of(message)
    assert isinstance(found, dict | HalError)
    return True


def spec_string(_scratch: Path) -> Check:
    def check(data: bytes) -> bool:
        text = data.decode(errors="surrogateescape" if len(data) & 1 else "replace")
        try:
            spec = parse_spec(text)
        except Refused:
            return False
        options = "&".join(f"{key}={value}" for key, value in spec.options.items())
        assert text in (
            f"{spec.scheme}:{spec.target}?{options}",
            f"{spec.scheme}:{spec.target}",
            spec.scheme,
        )
        for port in TABLE:
            try:
                found, _ = find(port, text)
                assert found == spec
                assert 0 <= spec.integer("baud", 1) < 10**9
                spec.choice("side", ("a", "b"))
            except Refused:
                continue
        return True

    return check


def toml(document: Any) -> str:
    """A JSON document as TOML, its tables inline but for the top ones."""
    if not isinstance(document, dict):
        return f"top = {_inline(document)}\n"
    lines: list[str] = []
    for key, value in document.items():
        if isinstance(value, dict):
            lines += [
                f"[{_string(key)}]",
                *(f"{_string(k)} = {_inline(v)}" for k, v in value.items()),
            ]
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for item in value:
                pairs = (f"{_string(k)} = {_inline(v)}" for k, v in item.items())
                lines += [f"[[{_string(key)}]]", *pairs]
        else:
            lines.insert(0, f"{_string(key)} = {_inline(value)}")
    return "\n".join(lines) + "\n"


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_string(k)} = {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, str):
        return _string(value)
    if value is None:
        return "2020-01-01T00:00:00Z"
    return json.dumps(value).replace("Infinity", "inf").replace("NaN", "nan")


def _string(text: str) -> str:
    plain = text.encode(errors="replace").decode()
    return json.dumps(plain, ensure_ascii=False).replace("\x7f", "\\u007f")


def board(scratch: Path) -> Check:
    bases, words = (BOARD, INHERITS), all_keys(BOARD, INHERITS)
    file = scratch / "x.toml"

    def check(data: bytes) -> bool:
        if data and data[0] < 9:
            document = edited(bases[data[0] % 2], Reader(data[1:]), words)
            file.write_bytes(toml(document).encode())
        else:
            file.write_bytes(data)
        try:
            loaded = load_board(file, run_dir="/run/apf", host_arch="x86_64")
        except BoardError as exc:
            assert exc.line >= 0
            assert str(exc)
            return False
        assert loaded.slots
        assert len({slot.id for slot in loaded.slots}) == len(loaded.slots)
        try:
            plan = plan_keeper(
                loaded, run=Path("/run/apf"), state=Path("/state"), python="/p", env={}
            )
        except FieldError:
            return True
        parse_config(plan.keeper, scratch)
        for _, config in plan.inits.values():
            assert CnmConfig.from_json(config.to_json()) == config
        return True

    return check


def _board_seeds() -> Iterable[bytes]:
    yield toml(BOARD).encode()
    yield toml(INHERITS).encode()
    for place in range(24):
        yield bytes([0, 0, place, place * 7 % 11, place * 3 % 5, 4, 5, place])
        yield bytes([1, 0, place % 2, place % 7, 5, 1, place])
        yield bytes([0, 0, 4, place % 2, place % 5, 5, 1, place, 0, 4, 0, place, 0])
    yield b'a = 1979-05-27T07:32:00-07:00\nb = """\n\\u00e9\\U0001F600"""\nc = 0x_1\n[d."e.f"]\n'
    yield b"[board]\nname.x = {a.b = 1e3, c = [1, [2.5]]}\n[[slot.y]]\n'lit' = '''x'''\n"


TARGETS = (
    _json_target(
        "workload", "a workload's normal form, as JSON or edited", (WORKLOAD, SMALL), _workload
    ),
    _json_target("image_manifest", "an image's manifest", (IMAGE,), _image),
    _json_target("instance_spec", "the spec that the card stages for an instance", (SPEC,), _spec),
    _json_target(
        "volume_manifest", "a volume's manifest, by both its readers", (MANIFEST,), _manifest
    ),
    _json_target(
        "cnm_config", "an init's configuration", (json.loads(CONFIG.to_json()),), _cnm_config
    ),
    _json_target(
        "keeper_packet",
        "a packet of the keeper's socket",
        (
            {"id": 1, "ok": True, "result": {"slots": []}},
            {"id": 1, "ok": False, "error": {"kind": "refused", "text": "no"}},
        ),
        _packet,
    ),
    Target(
        name="keeper_config",
        text="the keeper's configuration",
        make=keeper_config,
        seeds=lambda: [
            json.dumps(KEEPER).encode(),
            *(bytes([0, 5, n, n, 5, 1, n]) for n in range(9)),
        ],
        words=tuple(json.dumps(word).encode() for word in all_keys(KEEPER)),
    ),
    Target(
        name="spec_string",
        text="spec strings of backends",
        make=spec_string,
        seeds=lambda: [
            b"serial:/dev/ttyS1?baud=115200",
            b"mock:cnm0-mc?side=b",
            b"shm:a",
            b"local",
        ],
        words=(b"?baud=", b"&", b"mock:", b"side=a"),
        max_bytes=600,
    ),
    Target(
        name="board",
        text="a board's TOML, as text or edited, and what its keeper would be told",
        make=board,
        seeds=_board_seeds,
        words=(
            *(word.encode() for word in all_keys(BOARD)),
            *(
                b"[[slot]]\n",
                b"inherit = ",
                b"\\u0000",
                b"${slot}",
                b" = ",
                b"1979-05-27",
                b"{",
                b"]",
            ),
        ),
    ),
)
