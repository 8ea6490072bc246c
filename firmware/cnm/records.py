"""What init keeps for each instance, and how a command is refused. DESIGN section 4, rule 1."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from firmware.cnm.health_spec import Healthcheck
from firmware.cnm.lease_guard import Verdict
from hal.ports import InstanceExit, InstanceHandle, InstanceSpec
from protocol.apf import UUID_BYTES, Ctx, Health, InstanceState, Refusal, RefusalReason

KEY_SLUG_CHARS: Final = 32  # + "." + 8 hex + "." + 20 digits stay within InstanceSpec's 64
U64_MAX: Final = (1 << 64) - 1
LEASE_EXPIRED_TEXT: Final = "lease expired"

ALIVE: Final = frozenset({InstanceState.STARTING, InstanceState.RUNNING, InstanceState.STOPPING})
UNSTARTED: Final = frozenset({InstanceState.STAGING, InstanceState.PREPARED})
DEAD: Final = frozenset({InstanceState.STOPPED, InstanceState.EXITED, InstanceState.FAILED})


class RefusedError(Exception):
    """A command was refused and changed nothing; becomes a `Refusal` on the wire."""

    def __init__(self, reason: RefusalReason, text: str, *, retry_after_ms: int = 0) -> None:
        super().__init__(text)
        self.reason = reason
        self.text = text
        self.retry_after_ms = retry_after_ms

    def to_refusal(self) -> Refusal:
        return Refusal(reason=self.reason, retry_after_ms=self.retry_after_ms, text=self.text)


_REASONS: Final = {
    Verdict.FOREIGN_CARD: RefusalReason.FOREIGN_CARD,
    Verdict.FOREIGN_BOOT: RefusalReason.FOREIGN_BOOT,
    Verdict.STALE_EPOCH: RefusalReason.STALE_EPOCH,
}


def refusal_of(verdict: Verdict) -> RefusedError:
    """Of a command whose context was judged so (DESIGN section 4, rule 1)."""
    return RefusedError(_REASONS[verdict], f"command refused: {verdict.value}")


def key_of(name: str, generation: int) -> str:
    """The runtime's key of one generation: [a-z0-9.-], at most 64 characters, one for each pair.

    The hash keeps names apart that the slug makes equal.
    """
    slug = re.sub(r"[^a-z0-9-]+", "-", name.lower())[:KEY_SLUG_CHARS].strip("-")
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{slug}.{digest}.{generation}" if slug else f"{digest}.{generation}"


def log_key_of(name: str) -> str:
    """The log directory of an instance: one stream over all its generations on this CNM."""
    return key_of(name, 0).rsplit(".", 1)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a staged instance is started with."""

    runtime: str
    spec: InstanceSpec
    healthcheck: Healthcheck | None = None
    stop_signal: int = 15


def _nothing() -> None:
    pass


@dataclass(slots=True, kw_only=True)
class Instance:
    """One generation of one instance on this CNM. Owned and changed by `InstanceTable` alone."""

    name: str
    generation: int
    key: str
    spec_digest: bytes
    volumes: tuple[str, ...] = ()
    state: InstanceState = InstanceState.STAGING
    prepared: Prepared | None = None
    handle: InstanceHandle | None = None
    exit: InstanceExit | None = None
    health: Health = Health.NONE
    text: str = ""
    doom: str = ""  # why it is being killed; "" while nobody wants it dead
    stop_wanted: bool = False
    kill_at_ns: int | None = None  # end of the grace
    removing: bool = False
    cancel_kill: Callable[[], None] = field(default=_nothing)

    @property
    def alive(self) -> bool:
        """Something of it runs, or is about to."""
        return self.state in ALIVE

    @property
    def reported(self) -> InstanceState:
        """What the card is told: what is being started and is wanted dead is being stopped. A
        card that read STARTING would ask for the stop again, and again."""
        if self.state is InstanceState.STARTING and (self.stop_wanted or self.doom):
            return InstanceState.STOPPING
        return self.state


def ctx_to_json(ctx: Ctx) -> dict[str, object]:
    """For the stream between agent and init."""
    return {"card": ctx.card_uuid.hex(), "epoch": ctx.epoch, "boot": ctx.boot_id.hex()}


def ctx_from_json(value: Mapping[str, object]) -> Ctx:
    """Raises KeyError, TypeError or ValueError; the far end is our own agent."""
    return Ctx(
        card_uuid=uuid_of(value, "card"),
        epoch=number_of(value, "epoch"),
        boot_id=uuid_of(value, "boot"),
    )


def number_of(value: Mapping[str, object], name: str, high: int = U64_MAX) -> int:
    """A number that has a wire form. Raises KeyError, ValueError."""
    number = value[name]
    if type(number) is not int or not 0 <= number <= high:
        raise ValueError(f"{name}: {number!r:.60}, wanted 0..{high}")
    return number


def uuid_of(value: Mapping[str, object], name: str) -> bytes:
    """Raises KeyError, ValueError."""
    data = bytes.fromhex(str(value[name]))
    if len(data) != UUID_BYTES:
        raise ValueError(f"{name}: {len(data)} bytes, wanted {UUID_BYTES}")
    return data
