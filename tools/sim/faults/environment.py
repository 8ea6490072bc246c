"""E1 to E6: heat, rails, sensors, fans, memory and descriptors."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from firmware.board_types import Board
from hal.mock.instance import MockInstance
from hal.mock.smbus_fans import Emc2305, Max31790
from hal.ports import ExitReason, InstanceExit
from tools.sim.faults.evidence import (
    agent_endpoint,
    cnm_of,
    drawn_module,
    events_since,
    said,
    watched,
)
from tools.sim.faults.northbound import Client
from tools.sim.faults.types import MS, Fault, Injection, Site, injection, span_ns
from tools.sim.module import SimModule
from tools.sim.smbus import make_good
from tools.sim.world import DAEMON

HOT_MDEGC: Final = 115_000
TRIP_REPORTS: Final = 3  # telemetry reports between the heat and the trip
SENSORS: Final[tuple[dict[str, int | None], ...]] = (
    {"temp_mdegc": (1 << 31) - 1},
    {"temp_mdegc": -(1 << 31)},
    {"cpu_milli": 0xFFFF_FFFF, "memory_bytes": (1 << 64) - 1},
    {"power_mw": 0xFFFF_FFFF, "nvme_bytes": (1 << 64) - 1},
    {"cpu_milli": None, "memory_bytes": None, "nvme_bytes": None},
    {"temp_mdegc": 42_000, "cpu_milli": 1_234},  # stuck
)


def lie(module: SimModule, readings: Mapping[str, int | None]) -> Callable[[], None]:
    """Its telemetry shows these readings (None: could not be read), over its boots too, until the
    result is called."""
    on = True

    def bend(init: Any) -> None:
        honest = init.mc.sensors
        init.mc.sensors = lambda: {**honest(), **readings} if on else honest()

    def end() -> None:
        nonlocal on
        on = False
        if module.at_boot is bend:
            module.at_boot = None

    if module.init is not None:
        bend(module.init)
    if module.at_boot is None:
        module.at_boot = bend
    return end


def shows(site: Site, module: SimModule, readings: Mapping[str, int | None]) -> Callable[[], bool]:
    """Has the card taken these readings for true?"""

    def look() -> bool:
        cnm = cnm_of(site.world, module)
        report = cnm.telemetry if cnm is not None else None
        return report is not None and all(
            report.reading(name) == value for name, value in readings.items()
        )

    return look


def _trip(site: Site) -> Injection | None:
    """It says that it is hot, and soon afterwards its own protection cuts its power."""
    module = drawn_module(site)
    if module is None:
        return None
    world = site.world
    hot = said(world, "cnm.temperature", cnm=module.id)
    later = events_since(world)
    end = lie(module, {"temp_mdegc": HOT_MDEGC})
    period_ns = world.board.timing.telemetry_ms * MS

    def trip() -> None:
        end()
        module.slot.lose_power()

    cancel = world.kernel.after(TRIP_REPORTS * period_ns, trip)

    def cool_down() -> None:
        cancel()
        end()

    return injection(
        site,
        "E1",
        f"{module.id}: hot, and trips",
        lambda: hot() and bool(later("cnm.power", "cnm.booted", cnm=module.id)),
        cnm=module.id,
        heal=cool_down,
        lasts_ns=10 * TRIP_REPORTS * period_ns,  # a hasty seed's tenth is enough
    )


def _brown_out(site: Site) -> Injection | None:
    """Power-good goes low, and comes back only when the card switches the slot on again."""
    module = site.module()
    if not module.slot.power_good:
        return None
    evidence = said(site.world, "cnm.power", "cnm.booted", cnm=module.id)
    slow_ns, module.slot.on_ns = module.slot.on_ns, span_ns(site, 0.02, 2.0)
    module.slot.lose_power()

    def heal() -> None:
        module.slot.on_ns = slow_ns

    return injection(
        site,
        "E2",
        f"{module.id}: a rail browns out",
        evidence,
        cnm=module.id,
        heal=heal,
        lasts_ns=span_ns(site, 1.0, 5.0),
    )


def _sensor(site: Site) -> Injection | None:
    module = drawn_module(site)
    if module is None:
        return None
    readings, lasts_ns = site.rng.choice(SENSORS), span_ns(site, 2.5, 30.0)
    return injection(
        site,
        "E3",
        f"{module.id}: its sensors show {readings}",
        watched(site.world, shows(site, module, readings), for_ns=lasts_ns),
        cnm=module.id,
        heal=lie(module, readings),
        lasts_ns=lasts_ns,
    )


def _fan(site: Site) -> Injection | None:
    """It stands still, or its bearing is worn and it turns too slowly."""
    smbus = site.world.smbus
    fans = [] if smbus is None else [d for d in smbus.devices if d.role == "fan"]
    if smbus is None or not fans or site.world.card_or_none is None:
        return None
    device = site.rng.choice(fans)
    model, channel = smbus.models[device.id], device.numbers["channel"]
    assert isinstance(model, Emc2305 | Max31790)
    if channel in model.stalled or device.id in smbus.worn:
        return None
    later = events_since(site.world)
    slow = site.rng.random() < 0.5
    if slow:
        smbus.worn.add(device.id)
        model.full_rpm[channel] = device.numbers["rpm_low"] * 3 // 4
    else:
        model.stalled.add(channel)

    def heal() -> None:
        smbus.worn.discard(device.id)
        model.stalled.discard(channel)
        make_good(device, model)

    return injection(
        site,
        "E4",
        f"{device.id} {'turns too slowly' if slow else 'stands still'}",
        lambda: any(event.text.startswith(f"{device.id}: ") for event in later("sensor.limit")),
        heal=heal,
        lasts_ns=span_ns(site, 5.0, 60.0),
    )


def has_fans(board: Board) -> bool:
    return any(device.role == "fan" for device in board.hardware.devices)


def _restarted(site: Site) -> list[tuple[SimModule, str, MockInstance]]:
    """What runs and is started again when it dies."""
    world = site.world
    found = []
    for _, module in sorted(world.modules.items()):
        for _, one in sorted(module.slot.instances.items()):
            name = one.spec.env["APF_INSTANCE"]
            component = world.components.get(name)
            if one.alive and component is not None and component.restart.policy == "always":
                found.append((module, name, one))
    return found


def _out_of_memory(site: Site) -> Injection | None:
    candidates = _restarted(site)
    if not candidates:
        return None
    module, name, one = site.rng.choice(candidates)
    later = events_since(site.world)
    one.end(InstanceExit(reason=ExitReason.OOM_KILLED, status=9, text="memory ran out"))
    return injection(
        site,
        "E5",
        f"{module.id}: {name} is killed, memory runs out",
        lambda: any(
            event.instance == name
            for event in later("instance.exited", "instance.restarting", "instance.running")
        ),
        cnm=module.id,
    )


def _no_descriptors(site: Site) -> Injection | None:
    """Of the daemon: nobody can connect. Of a module: its agent dies and can't be started."""
    if site.rng.random() < 0.5:
        return _deaf_daemon(site)
    module = drawn_module(site)
    if module is None or module.cannot_spawn or agent_endpoint(module) is None:
        return None
    agents, lines = module.agents, len(module.log)
    module.cannot_spawn = "too many open files"
    site.world.kernel.kill(module.agent_node)

    def heal() -> None:
        module.cannot_spawn = None

    return injection(
        site,
        "E6",
        f"{module.id}: no descriptor for a new agent",
        lambda: (
            module.agents == agents and any("open files" in line for line in module.log[lines:])
        ),
        cnm=module.id,
        heal=heal,
        lasts_ns=span_ns(site, 0.3, 10.0),
    )


def _deaf_daemon(site: Site) -> Injection | None:
    world = site.world
    control = world.control
    if control is None or world.card_or_none is None or not world.card.ready:
        return None
    counters, before = control.counters, control.counters["no_descriptor"]
    world.socket.no_descriptors = True
    client = Client(world)

    def heal() -> None:
        world.socket.no_descriptors = False
        client.close()

    return injection(
        site,
        "E6",
        f"no descriptor for a connection to the {DAEMON}",
        lambda: counters["no_descriptor"] > before,
        heal=heal,
        lasts_ns=span_ns(site, 0.3, 20.0),
    )


ENVIRONMENT_FAULTS: Final = (
    Fault(id="E1", text="a module is too hot and trips", inject=_trip),
    Fault(id="E2", text="a rail browns out", inject=_brown_out),
    Fault(id="E3", text="a sensor is stuck, out of range, or gives no reading", inject=_sensor),
    Fault(
        id="E4",
        text="a fan fails",
        inject=_fan,
        fits=has_fans,
        fits_not="this board has no fans; rev_a has",
    ),
    Fault(id="E5", text="memory runs out", inject=_out_of_memory),
    Fault(id="E6", text="descriptors run out", inject=_no_descriptors),
)
