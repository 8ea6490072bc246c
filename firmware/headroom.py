"""How far a module is below its limits of power and temperature, in steps for the allocator.

The allocator wants to know who is at its limit, not every milliwatt: what is given to it changes
by steps only, downwards as soon as there is less, upwards when there are two steps more. So a
reading that trembles changes nothing, and most telemetry costs no look at the books.
"""

from collections.abc import Iterable
from typing import Final

from firmware.board_hardware import Device

THERMAL_STEP_MC: Final = 2_000
POWER_STEPS: Final = 32  # in the whole limit


def power_limit_mw(devices: Iterable[Device]) -> int | None:
    """What a slot's power meters are to stay below, as the board says; None where it has none."""
    limits = [device.numbers.get("power_high_mw") for device in devices if device.role == "power"]
    return min((limit for limit in limits if limit is not None), default=None)


def below(limit: int | None, reading: int | None) -> int | None:
    """The headroom; None where there is no limit, or nothing was read."""
    return None if limit is None or reading is None else limit - reading


def in_steps(known: int | None, headroom: int | None, step: int) -> int | None:
    """What to go on with where `known` was given last: never more than there is, and less by two
    steps at most."""
    if headroom is None:
        return None
    if known is not None and known <= headroom < known + 2 * step:
        return known
    return headroom // step * step
