"""`apf cxl`: what it says of a device, of none, and of a recording of one."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hal.cxl_ports import CxlInventory, CxlMemdev, DriverMissing
from hal.linux.cxl_sysfs import LinuxCxlBus
from hal.mock.cxl import MockCxlBus, MockCxlMemdev
from hal.mock.cxl_device import MockCxlDevice
from hal.registry import Registry
from tests.contract.worlds import VirtualWorld
from tools.cli import cli


def apf(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as info:
        cli.main(["cxl", *words])
    out, err = capsys.readouterr()
    return int(info.value.code or 0), out, err


def document(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    status, out, _ = apf(capsys, *words, "--json")
    return status, json.loads(out)


class OnTheBench(MockCxlMemdev):
    """A mock device on the command's own loop: it answers at once, by a post."""

    def __init__(self, world: VirtualWorld, model: MockCxlDevice, post: Any) -> None:
        super().__init__(world.kernel.node("suite"), world.kernel.cxl, model)
        self._later = post

    def submit(self, command: Any, deadline_ns: int, done: Any) -> None:
        from hal.cxl_ports import CxlReply

        code, payload = self._device.execute(command.opcode, command.payload)
        self._later(lambda: done(CxlReply(return_code=code, payload=payload)))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> MockCxlDevice:
    """The device behind every spec but replay:."""
    world = VirtualWorld()
    made = MockCxlDevice(world.kernel, "mem0")
    opened = Registry.open_cxl

    def open_cxl(self: Registry, text: str) -> CxlMemdev:
        if text.startswith("replay:"):
            return opened(self, text)
        from hal.registry import parse_spec

        port: CxlMemdev = self._wrap(
            "cxl", parse_spec(text), OnTheBench(world, made, self._world.reactor.post)
        )
        return port

    monkeypatch.setattr(Registry, "open_cxl", open_cxl)
    return made


def test_a_device_is_shown_with_its_health(
    capsys: pytest.CaptureFixture[str], model: MockCxlDevice
) -> None:
    status, shown = document(capsys, "show", "cxl:mem0")
    data = shown["data"]
    assert (status, shown["kind"]) == (0, "cxl_device")
    assert (data["total_bytes"], data["firmware"]) == (1 << 30, "mock 1.0")
    assert data["health"]["temp_degc"] == 41
    assert 0x4200 in data["opcodes"]
    assert data["findings"] == []
    status, out, _ = apf(capsys, "show", "cxl:mem0")
    assert status == 0
    assert "get_health_info" in out


def test_a_device_that_is_not_well_ends_1_with_the_reason(
    capsys: pytest.CaptureFixture[str], model: MockCxlDevice
) -> None:
    model.health.temp_degc = 95
    status, _, err = apf(capsys, "show", "cxl:mem0")
    assert status == 1
    assert "95 degC" in err


def test_a_device_without_health_shows_null_beside_why(
    capsys: pytest.CaptureFixture[str], model: MockCxlDevice
) -> None:
    model.lacks.add(0x4200)
    status, shown = document(capsys, "show", "cxl:mem0")
    assert (status, shown["data"]["health"]) == (0, None)
    assert "unsupported" in shown["data"]["health_error"]


def test_what_was_recorded_is_shown_again_where_there_is_no_device(
    capsys: pytest.CaptureFixture[str], model: MockCxlDevice, tmp_path: Path
) -> None:
    path = tmp_path / "mem0.jsonl"
    first = document(capsys, "show", "cxl:mem0", "--record", str(path))
    model.remove()
    assert document(capsys, "show", f"replay:{path}") == first
    path.write_text(path.read_text().replace('"opcode":16640', '"opcode":16641'))
    status, _, err = apf(capsys, "show", f"replay:{path}")
    assert status == 1
    assert "mem0.jsonl:" in err
    assert "wanted" in err


def test_a_wrong_spec_is_a_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = apf(capsys, "show", "cxl:nvme0")
    assert status == 2
    assert "cxl:memN" in err


def test_a_machine_without_cxl_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def scan(self: LinuxCxlBus) -> CxlInventory:
        raise DriverMissing("/sys/bus/cxl/devices: not there")

    monkeypatch.setattr(LinuxCxlBus, "scan", scan)
    assert apf(capsys, "ls")[0] == 1


def test_devices_ports_and_regions_are_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = VirtualWorld()
    world.kernel.cxl.add_device(MockCxlDevice(world.kernel, "mem0"))
    world.kernel.cxl.add_region("region0", 1 << 20)
    found = MockCxlBus(world.kernel.cxl).scan()
    monkeypatch.setattr(LinuxCxlBus, "scan", lambda self: found)
    status, shown = document(capsys, "ls")
    assert status == 0
    assert shown["data"] == json.loads(json.dumps(dataclasses.asdict(found)))
    status, out, err = apf(capsys, "ls")
    assert status == 0
    for word in ("mem0", "endpoint2", "region0", "dax0.0"):
        assert word in out + err
