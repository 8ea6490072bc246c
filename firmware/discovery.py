"""Finding the modules: `scan_cnms` asks each slot that has power who is there, until it answers.

    MC link     Set EID -> HELLO (boot id) -> CAPABILITIES          the module is known
    agent link  Set EID -> HELLO (same boot id) -> window -> STATUS  it can be used
    journal     "granted" for this boot                              grants start (rules 2, 11)

Nothing here waits: each answer starts the next question, and a timer starts over what stopped
half-way. A module that answers wrongly (another protocol version, another layout, a foreign card's,
absurd numbers) is quarantined with the reason, and looked at again only after its next boot.
"""

from collections.abc import Callable
from typing import Final

from firmware.decisions import Decisions
from firmware.endpoint import Endpoint, RequestError, RequestLost, RequestRefused
from firmware.events import EventCode, EventLog
from firmware.inventory import Cnm, Inventory
from firmware.lease import LeaseState
from firmware.loop import MS, Loop
from firmware.sessions import CnmSessions
from firmware.status import StatusReader
from protocol.apf import (
    LAYOUT_HASH,
    VERSION_CURRENT,
    VERSION_MIN,
    CapabilitiesReply,
    CapabilitiesRequest,
    HelloReply,
    HelloRequest,
    RefusalReason,
    common_version,
)
from protocol.mctp.control_message import Command

CARD_EID: Final = 8  # DSP0236: 0 to 7 are reserved
CNM_EID: Final = 9  # one MCTP network per link, so every module may have the same
RETRY_NS: Final = 250 * MS
HELLO_TIMEOUT_MS: Final = 300
NEVER_BOUND: Final = bytes(16)

MAX_CORES_MILLI: Final = 1_024_000  # above these a module is lying or broken (fault C9)
MAX_MEMORY_BYTES: Final = 64 << 40
MAX_NVME_BYTES: Final = 1 << 50
MAX_LINK_MBIT: Final = 4_000_000
MAX_ACCELERATORS: Final = 64


class Discovery:
    """Brings every powered slot to LEASED, and again after each boot. Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        inventory: Inventory,
        decisions: Decisions,
        events: EventLog,
        status: StatusReader,
        sessions: CnmSessions,
        *,
        software: str,
        on_boot: Callable[[Cnm], None],
        on_ready: Callable[[Cnm], None],
    ) -> None:
        """`on_boot(cnm)` after another boot id was heard, `on_ready(cnm)` when grants start."""
        self._loop = loop
        self._inventory = inventory
        self._decisions = decisions
        self._events = events
        self._status = status
        self._sessions = sessions
        self._software = software
        self._on_boot = on_boot
        self._on_ready = on_ready
        self._asking: set[tuple[str, str]] = set()  # (cnm, link) with a question under way
        self._asked_ns: dict[tuple[str, str], int] = {}
        self._window_errors: dict[str, str] = {}  # of a slot: why its window could not be opened

    def scan_cnms(self) -> None:
        """Start over whatever is not known and not being asked. Called by a timer and on events;
        cheap when there is nothing to do."""
        for cnm in self._inventory:
            self.look(cnm)

    def look(self, cnm: Cnm) -> None:
        """Ask one module the next thing that is not known of it and not being asked."""
        if cnm.quarantine or (cnm.power is not None and not cnm.power.power_good):
            return
        if cnm.lease.state is LeaseState.FENCED and not cnm.power_wanted:
            return  # it is to be off, and nothing of it is wanted
        if cnm.capabilities is None or cnm.lease.state is LeaseState.FENCED:
            self._ask(cnm, "mc", self._set_mc_eid)
        elif cnm.lease.state is LeaseState.FENCING:
            return  # known already, and on its way out
        elif not cnm.agent_ready:
            self._ask(cnm, "agent", self._set_agent_eid)
        elif cnm.lease.admissible:
            self._ask(cnm, "admit", self._read_status)
        elif cnm.lease.state is LeaseState.SUSPECT:
            self._ask(cnm, "probe", self._probe_agent)

    def forget(self, cnm: Cnm) -> None:
        """The module lost its power or is being fenced: end what is being asked."""
        for link in ("mc", "agent", "admit", "probe"):
            self._asking.discard((cnm.id, link))
            self._asked_ns.pop((cnm.id, link), None)
        cnm.mc.abandon("the module is gone")
        self._forget_agent(cnm, "the module is gone")

    def _forget_agent(self, cnm: Cnm, text: str) -> None:
        """What the old boot still answers must not be taken for the new one's."""
        cnm.agent.abandon(text)
        self._sessions.close_window(cnm)
        cnm.forget_boot()

    # --- the MC link ---

    def _ask(self, cnm: Cnm, link: str, question: Callable[[Cnm], None]) -> None:
        key = (cnm.id, link)
        now_ns = self._loop.now_ns()
        if key in self._asking or now_ns - self._asked_ns.get(key, -RETRY_NS) < RETRY_NS:
            return
        self._asking.add(key)
        self._asked_ns[key] = now_ns
        question(cnm)

    def _stop_asking(self, cnm: Cnm, link: str) -> None:
        self._asking.discard((cnm.id, link))

    def _set_eid(self, endpoint: Endpoint, then: Callable[[bool], None]) -> None:
        """Set EID to the null EID: the module at the other end, whatever it is called."""
        endpoint.link.local_eid = CARD_EID
        endpoint.link.peer_eid = 0

        def answered(reply: bytes | RequestError) -> None:
            good = isinstance(reply, bytes) and reply[:1] == b"\0"
            if good:
                endpoint.link.peer_eid = CNM_EID
            then(good)

        endpoint.control(
            Command.SET_EID, bytes((0, CNM_EID)), answered, timeout_ms=HELLO_TIMEOUT_MS, attempts=1
        )

    def _hello(self, endpoint: Endpoint, done: Callable[[HelloReply | RequestError], None]) -> None:
        request = HelloRequest(
            card_uuid=self._decisions.card_uuid,
            epoch=self._decisions.epoch,
            version_min=VERSION_MIN,
            version_current=VERSION_CURRENT,
            layout_hash=LAYOUT_HASH,
            software=self._software,
        )

        def answered(reply: HelloReply | RequestError) -> None:
            stale = isinstance(reply, RequestRefused) and (
                reply.refusal.reason == RefusalReason.STALE_EPOCH
            )
            if stale and request.epoch < self._decisions.epoch:  # a fence has ended it meanwhile
                reply = RequestLost(f"{endpoint.name}: epoch {request.epoch} is over")
            done(reply)

        endpoint.request(request, answered, timeout_ms=HELLO_TIMEOUT_MS, attempts=2)

    def _set_mc_eid(self, cnm: Cnm) -> None:
        def set_up(good: bool) -> None:
            if good:
                self._hello(cnm.mc, lambda reply: self._on_mc_hello(cnm, reply))
            else:
                self._stop_asking(cnm, "mc")

        self._set_eid(cnm.mc, set_up)

    def _on_mc_hello(self, cnm: Cnm, reply: HelloReply | RequestError) -> None:
        if isinstance(reply, RequestError):
            self._stop_asking(cnm, "mc")
            self._on_hello_error(cnm, reply)
            return
        wrong = self._judge_hello(reply)
        if wrong:
            self._stop_asking(cnm, "mc")
            self._quarantine(cnm, wrong)
            return
        if reply.boot_id != cnm.boot_id:
            self._forget_agent(cnm, "the module has booted anew")
            cnm.uuid = reply.cnm_uuid
            cnm.software = reply.software
            proof = cnm.lease.on_boot(reply.boot_id, self._loop.now_ns())
            self._events.emit(
                EventCode.CNM_BOOTED,
                f"{cnm.id}: boot {reply.boot_id.hex()[:8]}, {reply.software}",
                cnm=cnm.id,
                data={"boot_id": reply.boot_id.hex(), "proof": proof.value if proof else None},
            )
            self._on_boot(cnm)
        else:
            cnm.uuid = reply.cnm_uuid
            cnm.software = reply.software
            cnm.lease.on_boot(reply.boot_id, self._loop.now_ns())
        cnm.mc.request(CapabilitiesRequest(), lambda answer: self._on_capabilities(cnm, answer))

    def _judge_hello(self, reply: HelloReply) -> str:
        if common_version(reply.version_min, reply.version_current) is None:
            return (
                f"it speaks protocol versions {reply.version_min} to {reply.version_current}, "
                f"this card {VERSION_MIN} to {VERSION_CURRENT}: update one of the two"
            )
        same_version = reply.version_current == VERSION_CURRENT
        if same_version and reply.layout_hash != LAYOUT_HASH:
            return (
                f"its layouts ({reply.layout_hash.hex()}) are not ours ({LAYOUT_HASH.hex()}) "
                f"in the same protocol version {VERSION_CURRENT}: one of the two was built wrongly"
            )
        if reply.bound_card_uuid not in (NEVER_BOUND, self._decisions.card_uuid):
            return f"it is bound to card {reply.bound_card_uuid.hex()} until its next boot"
        return ""

    def _on_hello_error(self, cnm: Cnm, error: RequestError) -> None:
        if isinstance(error, RequestRefused) and error.refusal.reason in (
            RefusalReason.FOREIGN_CARD,
            RefusalReason.VERSION,
            RefusalReason.LAYOUT,
            RefusalReason.STALE_EPOCH,
        ):
            self._quarantine(cnm, str(error))

    def _on_capabilities(self, cnm: Cnm, reply: CapabilitiesReply | RequestError) -> None:
        self._stop_asking(cnm, "mc")
        if isinstance(reply, RequestError):
            return
        wrong = absurd(reply)
        if wrong:
            self._quarantine(cnm, wrong)
            return
        first = cnm.capabilities is None
        cnm.capabilities = reply
        if first:
            self._events.emit(
                EventCode.CNM_FOUND,
                f"{cnm.id}: {reply.arch}, {reply.cores_milli / 1000:g} cores, "
                f"{reply.memory_bytes >> 20} MiB",
                cnm=cnm.id,
            )
        self.look(cnm)

    # --- the agent link ---

    def _set_agent_eid(self, cnm: Cnm) -> None:
        def set_up(good: bool) -> None:
            if good:
                self._hello(cnm.agent, lambda reply: self._on_agent_hello(cnm, reply))
            else:
                self._stop_asking(cnm, "agent")

        self._set_eid(cnm.agent, set_up)

    def _on_agent_hello(self, cnm: Cnm, reply: HelloReply | RequestError) -> None:
        if isinstance(reply, RequestError):
            self._stop_asking(cnm, "agent")
            self._on_hello_error(cnm, reply)
            return
        if reply.boot_id != cnm.boot_id:  # one of the two links is behind: ask again
            self._stop_asking(cnm, "agent")
            return
        wrong = self._judge_hello(reply)
        if wrong:
            self._stop_asking(cnm, "agent")
            self._quarantine(cnm, wrong)
            return

        def attached(error: str) -> None:
            self._stop_asking(cnm, "agent")
            if cnm.boot_id != reply.boot_id or cnm.capabilities is None:
                return
            if error:
                if self._window_errors.get(cnm.id) != error:  # tried again soon: said once
                    self._window_errors[cnm.id] = error
                    self._events.emit(EventCode.WINDOW_DOWN, f"{cnm.id}: {error}", cnm=cnm.id)
                return
            self._window_errors.pop(cnm.id, None)
            cnm.agent_ready = True
            self.look(cnm)

        self._sessions.open_window(cnm, attached)

    # --- admission ---

    def _read_status(self, cnm: Cnm) -> None:
        boot_id = cnm.boot_id

        def read(good: bool) -> None:
            self._stop_asking(cnm, "admit")
            if good and cnm.boot_id == boot_id:
                self._admit(cnm)

        self._status.read(cnm, read)

    def _probe_agent(self, cnm: Cnm) -> None:
        """Rule 10 calls a link silent that was asked: a SUSPECT's agent is, until it returns."""
        self._status.read(cnm, lambda _good: self._stop_asking(cnm, "probe"))

    def _admit(self, cnm: Cnm) -> None:
        """Rules 2 and 11: grants begin when its instances were read and "granted" is on disk."""
        boot_id = cnm.boot_id
        before = cnm.lease.state

        def durable() -> None:
            if not cnm.lease.admit(boot_id, self._loop.now_ns()):
                return
            code = EventCode.CNM_LEASED
            if before is LeaseState.SUSPECT:
                code = EventCode.CNM_RETURNED
            self._events.emit(code, f"{cnm.id}: grants begin", cnm=cnm.id)
            self._on_ready(cnm)

        self._decisions.grant(cnm, durable)

    def _quarantine(self, cnm: Cnm, reason: str) -> None:
        cnm.quarantine = reason
        self._events.emit(EventCode.CNM_QUARANTINED, f"{cnm.id}: {reason}", cnm=cnm.id)
        self._inventory.on_change(cnm)


def absurd(capabilities: CapabilitiesReply) -> str:
    """Why a claim can't be true, or "" (fault C9: a module that lies about its capacity)."""
    bounds = (
        ("cores_milli", capabilities.cores_milli, MAX_CORES_MILLI),
        ("memory_bytes", capabilities.memory_bytes, MAX_MEMORY_BYTES),
        ("nvme_bytes", capabilities.nvme_bytes, MAX_NVME_BYTES),
        ("link_mbit", capabilities.link_mbit, MAX_LINK_MBIT),
        ("accelerators", sum(a.count for a in capabilities.accelerators), MAX_ACCELERATORS),
    )
    for name, value, most in bounds:
        if value > most:
            return f"it claims {name} = {value}, no module has more than {most}"
    if capabilities.cores_milli == 0 or capabilities.memory_bytes == 0:
        return "it claims to have no processor or no memory"
    return ""
