"""Devices recorded: each scenario of tests/golden/scenarios.py on QEMU's device, with every call on
its port written down, must give the file that the repository has, times apart. What was recorded is
shown, line by line, where it doesn't: that is how such a file is made.
"""

import json
import re
from pathlib import Path
from typing import Any, Final

from hal.linux.pci_bus import LinuxPciBus
from hal.pci_ports import PciAddress
from hal.record import Recorder
from hal.registry import Registry
from hal.registry import World as Openers
from tests.contract.worlds import RealWorld
from tests.golden.scenarios import RECORDINGS, SCENARIOS
from tests.hil.case import Context, Evidence, case
from tests.hil.cases import cxl, smbus
from tests.hil.machines import CARD

SCRATCH: Final = Path("/tmp")
NAMES: Final = re.compile(r"\b(mem|i2c-)[0-9]+")  # which the kernel gives as it comes
EDU: Final = "1234:11e8"


def record(ctx: Context, name: str, spec: str) -> dict[str, Any]:
    """Run the scenario with a recorder around it; its result. Compares the file."""
    path = SCRATCH / f"{name}.jsonl"
    world = RealWorld()
    try:
        recorder = Recorder(path, world.reactor.now_ns)
        seen = SCENARIOS[name](
            Registry(Openers(reactor=world.reactor), wrap=recorder.wrap), world, spec
        )
        recorder.close()
    finally:
        world.close()
    text = path.read_text()
    path.unlink()
    kept = RECORDINGS / f"{name}.jsonl"
    if not kept.exists() or comparable(text) != comparable(kept.read_text()):
        for line in text.splitlines():
            ctx.log(f"{name}.jsonl {line}")
        raise AssertionError(f"the recording of {name} is not {kept}: see what was recorded")
    return {"calls": text.count('"call":'), "file_bytes": len(text)} | shown(seen)


def comparable(text: str) -> list[Any]:
    """What must be the same each time: no times, no spec, no numbers of the kernel's names."""
    found = []
    for line in text.splitlines():
        body = json.loads(NAMES.sub(r"\1N", line))
        found.append(
            {key: item for key, item in body.items() if key not in ("t", "deadline_in_ns", "spec")}
        )
    return found


def shown(seen: dict[str, Any]) -> dict[str, Any]:
    """Numbers and short texts of what was seen."""
    return {key: item for key, item in seen.items() if isinstance(item, int | str)}


@case(on=CARD)
def edu_is_recorded_as_the_recording_has_it(ctx: Context) -> Evidence:
    ctx.modprobe("vfio-pci")
    address = ctx.pci(EDU)
    world = RealWorld()
    bus = LinuxPciBus(world.reactor)
    try:
        bus.bind(PciAddress.parse(address), "vfio-pci")
        numbers = record(ctx, "edu", f"vfio:{address}")
    finally:
        bus.restore()
        bus.close()
        world.close()
    return Evidence(driver="vfio-pci", device=address, numbers=numbers)


@case(on=CARD)
def an_eeprom_is_recorded_as_the_recording_has_it(ctx: Context) -> Evidence:
    number, function = smbus._i801(ctx)
    numbers = record(ctx, "eeprom", f"i2c:{number}")
    return Evidence(driver="i801_smbus", device=f"{function} 0x53", numbers=numbers)


@case(on=CARD)
def a_cxl_device_is_recorded_as_the_recording_has_it(ctx: Context) -> Evidence:
    address = cxl.prepare(ctx)
    numbers = record(ctx, "cxl", f"cxl:{address}")
    return Evidence(driver="cxl_pci", device=address, numbers=numbers)
