"""`apf cxl`: memory devices on the bench, without a daemon.

apf cxl ls                     what hangs on what: devices, ports, decoders, regions
apf cxl show cxl:mem0          one device, asked: who it is, its commands, its health
    --record FILE              every call on its port goes to FILE
apf cxl show replay:FILE       the same from such a file, anywhere
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from tools.errors import BadUsage, CheckFailed, DeadlinePassed
from tools.output import human_bytes
from tools.session import TIMEOUT_S, ApfGroup, Session

SECOND_NS: Final = 1_000_000_000


@click.group("cxl", cls=ApfGroup)
def cxl_group() -> None:
    """CXL memory devices of this machine."""


@cxl_group.command("ls")
@click.pass_obj
def cxl_ls(session: Session) -> None:
    """Devices, ports, decoders and regions; 1 where this machine has no CXL."""
    from dataclasses import asdict

    from hal.errors import HalError
    from hal.linux.cxl_sysfs import LinuxCxlBus

    try:
        found = LinuxCxlBus().scan()
    except HalError as exc:
        raise CheckFailed("no_cxl", str(exc)) from exc

    def show() -> None:
        session.out.table(
            ["name", "address", "volatile", "persistent", "labels", "driver"],
            [
                [
                    info.name,
                    info.address,
                    human_bytes(info.volatile_bytes),
                    human_bytes(info.persistent_bytes),
                    human_bytes(info.label_bytes),
                    info.driver or "none",
                ]
                for info in found.memdevs
            ],
        )
        for port in found.ports:
            session.out.say(f"{port.name}: {port.uport}, below {port.parent or 'nothing'}")
        for region in found.regions:
            mapped = ", ".join(region.dax) or "nothing maps it"
            session.out.say(f"{region.name}: {human_bytes(region.size_bytes)}, {mapped}")

    session.out.data("cxl", asdict(found), show)


@cxl_group.command("show")
@click.argument("spec")
@click.option(
    "--record",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write every call on the device's port there, as JSON lines.",
)
@click.option(
    "--timeout", "timeout_s", type=TIMEOUT_S, default=20, show_default=True, help="Seconds for all."
)
@click.pass_obj
def cxl_show(session: Session, spec: str, record: Path | None, timeout_s: int) -> None:
    """Ask one device (cxl:mem0, cxl:0000:37:00.0, replay:FILE); 1 when it is not well."""
    from firmware.loop import Loop
    from hal.errors import HalError, Refused
    from hal.linux.clock import LinuxClock
    from hal.record import Recorder
    from hal.registry import Registry, World, unwrapped
    from hal.replay import ReplayMismatch

    clock = LinuxClock()
    loop = Loop(clock)
    recorder = None
    try:
        world = World(reactor=loop)
        recorder = None if record is None else Recorder(record, loop.now_ns)
        wrap = unwrapped if recorder is None else recorder.wrap
        data = _ask(Registry(world, wrap=wrap).open_cxl(spec), loop, timeout_s)
        for recording in world.replays.values():
            recording.check_finished()
    except Refused as exc:
        raise BadUsage("refused", str(exc)) from exc
    except ReplayMismatch as exc:
        raise CheckFailed("replay", str(exc)) from exc
    except HalError as exc:
        raise CheckFailed("unavailable", str(exc)) from exc
    finally:
        if recorder is not None:
            recorder.close()
        loop.close()
        clock.close()
    if recorder is not None and recorder.ended != "closed":
        session.out.say(f"the recording is not whole: {recorder.ended}")
    session.out.data("cxl_device", data, lambda: session.out.fields(_words(data)))
    critical = [item for item in data["findings"] if item["severity"] == "critical"]
    if critical:
        raise CheckFailed("not_well", "; ".join(item["text"] for item in critical), data)


def _ask(memdev: Any, loop: Any, timeout_s: int) -> dict[str, Any]:
    """One after another; raises the HalError of who it is, shows those of the rest."""
    from firmware.cxl import CxlDevice
    from firmware.cxl_health import judge
    from hal.errors import HalError

    device = CxlDevice(memdev, loop)
    end_ns = loop.now_ns() + timeout_s * SECOND_NS

    def ask(call: Callable[..., None]) -> Any:
        got: list[Any] = []

        def done(value: Any) -> None:
            got.append(value)
            loop.stop()

        cancel = loop.call_at(end_ns + SECOND_NS, loop.stop)
        call(end_ns, done)
        loop.run()
        cancel()
        if not got:
            raise DeadlinePassed("no_answer", f"{device.name} did not answer in {timeout_s} s")
        return got[0]

    try:
        identity = ask(device.identify)
        if isinstance(identity, HalError):
            raise identity
        partitions, effects = ask(device.partitions), ask(device.effects)
        health = ask(device.health)
    finally:
        device.close()
    data: dict[str, Any] = {
        "name": memdev.info.name,
        "address": memdev.info.address,
        "firmware": identity.firmware_text,
        "total_bytes": identity.total_bytes,
        "label_bytes": identity.label_bytes,
    }
    data |= _or_error("partitions", partitions)
    data |= _or_error("health", health)
    data |= {"opcodes": None, "opcodes_error": str(effects)}
    if not isinstance(effects, HalError):
        data |= {"opcodes": [entry.opcode for entry in effects.commands], "opcodes_error": None}
    found = [] if isinstance(health, HalError) else judge(health)
    data["findings"] = [
        {"code": item.code, "severity": item.severity.value, "text": item.text} for item in found
    ]
    return data


def _or_error(key: str, value: Any) -> dict[str, Any]:
    from hal.errors import HalError
    from protocol.decode_node import values_of

    if isinstance(value, HalError):
        return {key: None, f"{key}_error": str(value)}
    return {key: values_of(value), f"{key}_error": None}


def _words(data: dict[str, Any]) -> dict[str, object]:
    from protocol.cxl.codes import opcode_name

    health = data["health"] or {}
    return {
        "device": f"{data['name']} at {data['address']}",
        "firmware": data["firmware"],
        "capacity": human_bytes(data["total_bytes"]),
        "labels": human_bytes(data["label_bytes"]),
        "commands": ", ".join(
            opcode_name(opcode) or f"{opcode:04X}h" for opcode in data["opcodes"] or ()
        ),
        "temperature": f"{health['temp_degc']} degC" if health else data["health_error"],
        "findings": "; ".join(item["text"] for item in data["findings"]) or "none",
    }
