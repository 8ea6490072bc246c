"""What a healthcheck asks for, in the words of Compose."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthcheck:
    """`argv` run inside the instance each interval; status 0 is healthy."""

    argv: tuple[str, ...]
    interval_ms: int
    timeout_ms: int
    retries: int  # failures in a row that make it unhealthy
    start_period_ms: int  # failures before its end don't count
