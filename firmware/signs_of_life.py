"""How often an agent tells its init that it lives, and how long its silence may last (DESIGN D13).

The heartbeat carries the age of the agent's last sign of life, so that a sign more often than
every other heartbeat tells nobody anything; three missed ones tell the card that it is lost.
"""

from typing import Final

PING_MIN_MS: Final = 250
LOST_MIN_MS: Final = 1_000
HUNG_MIN_MS: Final = 10_000  # an agent hashes and parses; a stall this long is no work


def ping_ms(heartbeat_ms: int) -> int:
    """The agent pings its init this often."""
    return max(PING_MIN_MS, 2 * heartbeat_ms)


def lost_ms(heartbeat_ms: int) -> int:
    """An agent of this age in a heartbeat is lost: three pings and the heartbeat's own way."""
    return max(LOST_MIN_MS, 3 * ping_ms(heartbeat_ms) + heartbeat_ms)


def hung_ms(heartbeat_ms: int) -> int:
    """An init ends an agent that was silent for so long, after the card has been told."""
    return max(HUNG_MIN_MS, 2 * lost_ms(heartbeat_ms))
