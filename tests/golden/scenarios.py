"""What is done to a device while it is recorded, and again when the recording is played.

A scenario takes a registry, a world and a spec, drives the device with the card's own code, and
returns what it saw. tests/hil/cases/recordings.py runs each against QEMU's device and the kernel's
driver; tests/golden/test_recordings.py plays the files everywhere. Nothing in them may depend on
how long things take: a wait is for a completion or an interrupt, never for a register to change.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from firmware.cxl import CxlDevice
from firmware.sensors.eeprom import Eeprom
from firmware.sensors.steps import At, run_steps
from hal.pci_ports import InterruptKind
from hal.ports import Event
from hal.registry import Registry
from tests.contract.edu import FACTORIAL, LIVENESS, Edu
from tests.contract.results import Result, soon
from tests.contract.rigs import World

RECORDINGS: Final = Path(__file__).parent / "recordings"


def edu(registry: Registry, world: World, spec: str) -> dict[str, Any]:
    """Identification, inversion, a factorial whose end an MSI tells."""
    function = registry.open_function(spec)
    ids = function.read_config(0, 4)
    device = Edu(function.map(0))
    identification = device.mmio.read32(0)
    device.mmio.write32(LIVENESS, 0x1234_5678)
    inverse = device.mmio.read32(LIVENESS)
    [interrupt] = function.interrupts(InterruptKind.MSI, 1)
    counts: list[int] = []
    world.reactor.watch(
        interrupt.handle, Event.READ, lambda _events: counts.append(interrupt.clear())
    )
    device.irq_when_computed(True)
    device.mmio.write32(FACTORIAL, 10)
    world.run_until(lambda: bool(counts))
    factorial = device.mmio.read32(FACTORIAL)
    acknowledged = device.acknowledge()
    device.irq_when_computed(False)
    world.reactor.unwatch(interrupt.handle)
    interrupt.close()
    device.mmio.close()
    function.close()
    return {
        "ids": ids,
        "identification": identification,
        "inverse": inverse,
        "interrupts": counts,
        "factorial": factorial,
        "acknowledged": acknowledged,
    }


def eeprom(registry: Registry, world: World, spec: str) -> dict[str, Any]:
    """A read, a write that is read back, and what was there before again; one that is absent."""
    segment = registry.open_smbus(spec)

    def run(steps: Any) -> Any:
        result: Result[Any] = Result()
        run_steps(segment, world.reactor.now_ns(), steps, soon(world), result)
        return result.wait(world)

    driver = Eeprom(At(address=0x53), size_bytes=256, capabilities=segment.capabilities)
    before = run(driver.read(0x40, 16))
    run(driver.write(0x40, b"recorded"))
    after = run(driver.read(0x40, 16))
    run(driver.write(0x40, before[:8]))
    restored = run(driver.read(0x40, 16))
    adapter_driver = segment.capabilities.driver
    segment.close()
    return {
        "driver": adapter_driver,
        "after": after[:8],
        "restored": restored == before,
        "rest": after[8:] == before[8:],
    }


def cxl(registry: Registry, world: World, spec: str) -> dict[str, Any]:
    """Who it is, its partitions and commands, a label written and restored, no health."""
    memdev = registry.open_cxl(spec)
    device = CxlDevice(memdev, world.reactor)

    def ask(call: Callable[..., None], *args: Any) -> Any:
        result: Result[Any] = Result()
        call(*args, soon(world), result)
        world.run_until(lambda: result.came)
        return result.values[0]

    identity = ask(device.identify)
    partitions = ask(device.partitions)
    effects = ask(device.effects)
    before = ask(device.read_labels, 4096, 32)
    ask(device.write_labels, 4096, b"recorded")
    after = ask(device.read_labels, 4096, 32)
    ask(device.write_labels, 4096, before[:8])
    restored = ask(device.read_labels, 4096, 32)
    health = ask(device.health)
    device.close()
    return {
        "total_bytes": identity.total_bytes,
        "label_bytes": identity.label_bytes,
        "firmware": identity.firmware_text,
        "persistent_units": partitions.active_persistent_units,
        "opcodes": [entry.opcode for entry in effects.commands],
        "label": after[:8],
        "restored": restored == before,
        "health": type(health).__name__,
    }


SCENARIOS: Final[dict[str, Callable[[Registry, World, str], dict[str, Any]]]] = {
    "edu": edu,
    "eeprom": eeprom,
    "cxl": cxl,
}
