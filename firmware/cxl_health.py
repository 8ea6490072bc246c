"""What a memory device's health means: findings with their limits. CXL 3.1, 8.2.9.9.3.1."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from protocol.cxl.memory import (
    LIFE_NOT_REPORTED,
    TEMPERATURE_NOT_REPORTED,
    HealthInfo,
    HealthStatus,
    Level,
    MediaStatus,
)


class Severity(Enum):
    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthLimits:
    """Ours, beside the device's own. A board may set others."""

    temp_warning_degc: int = 70  # DRAM's refresh doubles above 85 degC (JESD79-5, TCASE)
    temp_critical_degc: int = 85
    life_warning_percent: int = 80
    life_critical_percent: int = 95
    dirty_shutdowns_warning: int = 1  # since the device was made: data may have been lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not well: its code is stable, its text is for people."""

    code: str
    severity: Severity
    text: str


DEFAULT_LIMITS: Final = HealthLimits()
_STATUS: Final = {
    HealthStatus.MAINTENANCE_NEEDED: ("cxl_maintenance", Severity.WARNING, "wants maintenance"),
    HealthStatus.PERFORMANCE_DEGRADED: ("cxl_slow", Severity.WARNING, "works below its speed"),
    HealthStatus.REPLACEMENT_NEEDED: ("cxl_replace", Severity.CRITICAL, "wants to be replaced"),
    HealthStatus.CAPACITY_DEGRADED: ("cxl_shrunk", Severity.WARNING, "has lost capacity"),
}
_LOST: Final = frozenset({MediaStatus.PERSISTENCY_LOST, MediaStatus.DATA_LOST})


def judge(health: HealthInfo, limits: HealthLimits = DEFAULT_LIMITS) -> list[Finding]:
    """Everything that is not well, the worst first."""
    found = [
        Finding(code=code, severity=severity, text=f"the device says that it {text}")
        for bit, (code, severity, text) in _STATUS.items()
        if health.health_status & bit
    ]
    found += _media(health)
    if health.temp_degc != TEMPERATURE_NOT_REPORTED:
        found += _level(
            "cxl_temperature",
            health.temp_degc,
            (limits.temp_warning_degc, limits.temp_critical_degc),
            health.temp_level,
            "degC",
        )
    if health.life_used_percent != LIFE_NOT_REPORTED:
        found += _level(
            "cxl_life",
            health.life_used_percent,
            (limits.life_warning_percent, limits.life_critical_percent),
            health.life_level,
            "% of its life used",
        )
    if health.dirty_shutdowns >= limits.dirty_shutdowns_warning:
        text = f"{health.dirty_shutdowns} dirty shutdowns"
        found.append(Finding(code="cxl_dirty", severity=Severity.WARNING, text=text))
    if health.volatile_errors_warning or health.persistent_errors_warning:
        text = (
            f"corrected errors above the device's own limit: {health.corrected_volatile_errors} "
            f"volatile, {health.corrected_persistent_errors} persistent"
        )
        found.append(Finding(code="cxl_corrected", severity=Severity.WARNING, text=text))
    return sorted(found, key=lambda finding: finding.severity is Severity.WARNING)


def _media(health: HealthInfo) -> list[Finding]:
    media = health.media_status
    if media == MediaStatus.NORMAL:
        return []
    if not isinstance(media, MediaStatus):
        text = f"media status {media:#04x} of a later revision"
        return [Finding(code="cxl_media", severity=Severity.WARNING, text=text)]
    severity = Severity.WARNING if media is MediaStatus.NOT_READY else Severity.CRITICAL
    words = media.name.lower().replace("_", " ")
    code = "cxl_data_lost" if media in _LOST else "cxl_media"
    return [Finding(code=code, severity=severity, text=f"media: {words}")]


def _level(
    code: str, value: int, limits: tuple[int, int], own_level: int, unit: str
) -> list[Finding]:
    """By our limits or by the device's own, whichever is worse."""
    warning, critical = limits
    if value >= critical or own_level == Level.CRITICAL:
        severity, limit = Severity.CRITICAL, critical
    elif value >= warning or own_level == Level.WARNING:
        severity, limit = Severity.WARNING, warning
    else:
        return []
    said = f"{value} {unit}, our limit is {limit}"
    if own_level in (Level.WARNING, Level.CRITICAL):
        said += f"; by the device's own it is {Level(own_level).name.lower()}"
    return [Finding(code=code, severity=severity, text=said)]
