"""Heartbeats, grants, suspicion, fences and power: DESIGN section 4 carried out for each module.

`firmware.lease` says what is allowed; this file does it, in the order that the rules ask for:
written down first, then the power, then the proof, and only then the components' next generation.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from firmware.decisions import Decisions
from firmware.discovery import Discovery
from firmware.events import EventCode, EventLog
from firmware.inventory import Cnm, Inventory
from firmware.lease import LeaseState
from firmware.loop import MS, Call, Loop
from hal.errors import HalError
from hal.ports import FenceKind, PowerAction, PowerRequest, SlotPower, SlotState
from protocol.apf import Grant, Heartbeat

WORD: Final = 0xFFFF_FFFF  # a heartbeat's number is a u32
SUSPECT_TICK_NS: Final = 20 * MS
POWER_DEADLINE_NS: Final = 3_000 * MS
POWER_ON_DEADLINE_NS: Final = 10_000 * MS
POWER_ON_FIRST_NS: Final = 200 * MS  # pause before a module is switched on again
POWER_ON_MOST_NS: Final = 30_000 * MS
POWER_LOOK_NS: Final = 1_000 * MS  # at what could not be switched off, while that matters
POWER_ONS_KEPT: Final = 6  # the pause doubles with each of them in the last POWER_ON_SPAN_NS
POWER_ON_SPAN_NS: Final = 120_000 * MS


class Fencing:
    """The lease keeper of the whole card. Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        inventory: Inventory,
        decisions: Decisions,
        events: EventLog,
        power: SlotPower,
        discovery: Discovery,
        *,
        lease_ms: int,
        on_fenced: Callable[[Cnm], None],
    ) -> None:
        """`on_fenced(cnm)` when its generations may start elsewhere."""
        self._loop = loop
        self._inventory = inventory
        self._decisions = decisions
        self._events = events
        self._power = power
        self._discovery = discovery
        self._lease_ms = lease_ms
        self._on_fenced = on_fenced
        self._start_ns = loop.now_ns()
        self._timers: dict[str, Call] = {}
        self._fencing: set[str] = set()  # a FENCING or FENCED record is on its way to the disk
        self._switching: set[str] = set()  # a power request is under way
        self._off_failed: set[str] = set()  # its power could not be cut: only the wait is left
        self._looking: set[str] = set()  # those of them whose power is to be read soon
        self._epoch_over: set[str] = set()  # no command of the epoch in which its fence began lives
        self._power_ons: dict[str, deque[int]] = {}
        self.grants = 0
        self.repeated = 0  # heartbeats that were heard before
        power.on_change(self._on_slot)

    def start(self) -> None:
        """Read power as it is (a starting daemon never changes it, D12), take up the journal."""
        self._start_ns = self._loop.now_ns()
        for cnm in self._inventory:
            record = self._decisions.cnm_record(cnm.id)
            cnm.draining = bool(record.get("draining", False))
            cnm.power_wanted = bool(record.get("power_wanted", True))
            boot_id = bytes.fromhex(record.get("boot_id", ""))
            cnm.uuid_before = bytes.fromhex(record.get("uuid", ""))
            match record.get("state"):
                case LeaseState.LEASED.value:
                    cnm.lease.restore(boot_id, self._start_ns)
                    cnm.granted_durable = boot_id
                case LeaseState.FENCING.value:
                    cnm.lease.restore_fencing(boot_id, self._start_ns)
                    self._epoch_over.add(cnm.id)  # this start has ended it
                case LeaseState.FENCED.value:
                    cnm.lease.restore_fenced(boot_id)
            self._switch(cnm, PowerAction.READ)
            self._arm(cnm)
        self._loop.post(self._begin_listening)

    def _begin_listening(self) -> None:
        """Nobody is called silent before the links have been read for the first time."""
        self._start_ns = self._loop.now_ns()

    def on_heartbeat(self, cnm: Cnm, heartbeat: Heartbeat) -> None:
        """A HEARTBEAT came on the module's MC link: grant it, or not."""
        now_ns = self._loop.now_ns()
        if heartbeat.boot_id != cnm.boot_id:
            if cnm.lease.state is not LeaseState.FENCING:
                cnm.capabilities = None  # another boot: a HELLO will tell
                self._discovery.look(cnm)
            return
        if cnm.heartbeat is not None and not _follows(heartbeat, cnm.heartbeat):
            self.repeated += 1  # the link repeats what it had: no sign of life
            return
        cnm.heartbeat = heartbeat
        cnm.heartbeat_ns = now_ns
        if cnm.lease.on_heartbeat(heartbeat.boot_id, now_ns):
            grant = Grant(
                card_uuid=self._decisions.card_uuid,
                epoch=self._decisions.epoch,
                boot_id=heartbeat.boot_id,
                seq=heartbeat.seq,
                lease_ms=self._lease_ms,
            )
            self.grants += cnm.mc.notify(grant, urgent=True)
        elif cnm.lease.state is LeaseState.SUSPECT:
            self._discovery.look(cnm)  # it may return, after its instances were read anew

    def set_power(self, cnm: Cnm, on: bool, done: Callable[[bool], None]) -> None:
        """A person's wish, kept over restarts. Off is a fence: its components go elsewhere."""

        def kept(good: bool) -> None:
            if good and not on:
                if cnm.lease.suspect_now() or cnm.lease.state is LeaseState.SUSPECT:
                    self._begin_fence(cnm, "it was switched off on request")
                elif cnm.lease.state in (LeaseState.NEW, LeaseState.FENCED):
                    self._switch(cnm, PowerAction.OFF)
            elif good:
                cnm.quarantine = ""
                self._power_ons.pop(cnm.id, None)
                self._keep_power(cnm)
            done(good)

        self._decisions.keep(cnm, kept, power_wanted=on)

    def on_function_gone(self, cnm: Cnm) -> None:
        """What is behind its slot's port has vanished: a detection, never a fence (rule 10). Its
        heartbeats bring it back, if it lives."""
        if cnm.lease.suspect_now():
            self._say_suspect(cnm, "its PCI function is gone")
            self._tick(cnm)

    # --- the lease ---

    def _arm(self, cnm: Cnm) -> None:
        cancel = self._timers.pop(cnm.id, None)
        if cancel is not None:
            cancel()
        state = cnm.lease.state
        if state in (LeaseState.NEW, LeaseState.FENCED):
            return
        now_ns = self._loop.now_ns()
        due_ns = cnm.lease.next_ns(now_ns)
        if state is not LeaseState.LEASED:
            due_ns = min(due_ns, now_ns + SUSPECT_TICK_NS)
        if due_ns <= now_ns:  # due, and waiting for the disk or the power: they tick too
            due_ns = now_ns + SUSPECT_TICK_NS
        self._timers[cnm.id] = self._loop.call_at(due_ns, lambda: self._tick(cnm))

    def on_admitted(self, cnm: Cnm) -> None:
        """Grants have begun: watch its heartbeats. One that is wanted off goes with a fence."""
        if not cnm.power_wanted and cnm.lease.suspect_now():
            self._begin_fence(cnm, "it is to be off")
        self._arm(cnm)

    def _tick(self, cnm: Cnm) -> None:
        now_ns = self._loop.turn_ns  # a daemon that was held up must not call its modules silent
        lease = cnm.lease
        if lease.suspect_if_silent(now_ns):
            heard_ms = (now_ns - (cnm.heartbeat_ns or now_ns)) // MS
            self._say_suspect(cnm, f"no heartbeat for {heard_ms} ms")
        silent_ns = cnm.links_silent_ns(now_ns, self._start_ns)
        if lease.fence_is_due(now_ns, silent_ns):
            self._begin_fence(cnm, f"both links silent for {silent_ns // MS} ms")
        elif lease.state is LeaseState.FENCING and self._unwritten(cnm):
            self._write_fence(cnm, "again: refused before, or only the wait is left")
        elif lease.state is LeaseState.FENCING and cnm.id not in self._fencing:
            proof = lease.fenced_if_proven(now_ns, trust_wait=self._waits_only(cnm))
            if proof is not None:
                self._finish_fence(cnm, proof.value)
            elif (
                cnm.id not in self._switching and lease.power_fence and not lease.holds_low(now_ns)
            ):
                self._switch(cnm, PowerAction.OFF)  # again when it is off: its answer is a reading
        self._arm(cnm)

    def _say_suspect(self, cnm: Cnm, why: str) -> None:
        self._events.emit(EventCode.CNM_SUSPECT, f"{cnm.id}: {why}", cnm=cnm.id)
        self._inventory.on_change(cnm)

    def _begin_fence(self, cnm: Cnm, why: str) -> None:
        """From here on it can't return; nothing is done to it before that is on disk. That its
        power could not be cut the last time says nothing of now."""
        self._off_failed.discard(cnm.id)
        cnm.lease.begin_fence()
        self._epoch_over.discard(cnm.id)
        self._discovery.forget(cnm)
        self._write_fence(cnm, why)
        self._inventory.on_change(cnm)

    def _write_fence(self, cnm: Cnm, why: str) -> None:
        if cnm.id in self._fencing:
            return
        self._fencing.add(cnm.id)
        boot_id = cnm.boot_id
        end_epoch = self._waits_only(cnm)

        def durable(good: bool) -> None:
            self._fencing.discard(cnm.id)
            if not good or cnm.boot_id != boot_id:
                return  # the tick asks again, unless another boot has proved this one dead
            if end_epoch:
                self._epoch_over.add(cnm.id)
            self._events.emit(EventCode.CNM_FENCING, f"{cnm.id}: {why}", cnm=cnm.id)
            self._tick(cnm)

        self._decisions.begin_fence(cnm, durable, end_epoch=end_epoch)

    def _waits_only(self, cnm: Cnm) -> bool:
        """No power can be cut: the lease's end is the fence, and its boot may be heard again."""
        return not cnm.lease.power_fence or cnm.id in self._off_failed

    def _unwritten(self, cnm: Cnm) -> bool:
        """The journal does not say yet what this fence needs."""
        over = not self._waits_only(cnm) or cnm.id in self._epoch_over
        return bool(cnm.granted_durable) or not over

    def _finish_fence(self, cnm: Cnm, proof: str) -> None:
        self._fencing.add(cnm.id)

        def durable(good: bool) -> None:
            self._fencing.discard(cnm.id)
            self._events.emit(
                EventCode.CNM_FENCED,
                f"{cnm.id}: {proof}" + ("" if good else " (not written down)"),
                cnm=cnm.id,
                data={"power": cnm.power.text if cnm.power else ""},
            )
            self._on_fenced(cnm)
            self._inventory.on_change(cnm)
            self._keep_power(cnm)

        self._decisions.fenced(cnm, durable)

    # --- power ---

    def _on_slot(self, state: SlotState) -> None:
        cnm = self._inventory.by_slot(state.slot)
        if cnm is not None:
            self._take_power(cnm, state)

    def _take_power(self, cnm: Cnm, state: SlotState, *, asked_ns: int | None = None) -> None:
        """A change that was told, or what was read after `asked_ns`."""
        before, cnm.power = cnm.power, state
        cnm.lease.power_fence = state.fence is FenceKind.POWER
        cnm.lease.on_power(state.power_good, self._loop.now_ns(), asked_ns=asked_ns)
        if before is None or before.power_good != state.power_good:
            word = "on" if state.power_good else "off"
            text = f"{cnm.id}: power is {word}" + (f" ({state.text})" if state.text else "")
            self._events.emit(EventCode.CNM_POWER, text, cnm=cnm.id)
            self._inventory.on_change(cnm)
        if state.power_good and not state.failing:
            self._discovery.look(cnm)
        if (state.failing or not state.power_good) and cnm.lease.suspect_now():
            self._say_suspect(cnm, f"its power goes ({state.text})")
        if not state.power_good and cnm.lease.state is LeaseState.NEW:
            self._discovery.forget(cnm)
        if cnm.lease.state in (LeaseState.SUSPECT, LeaseState.FENCING):
            self._tick(cnm)
        self._keep_power(cnm)

    def _keep_power(self, cnm: Cnm) -> None:
        """Switch a module on that should be on and holds nothing that a fence must settle; and one
        off that was fenced and should be off."""
        state = cnm.power
        if state is not None and state.power_good and not cnm.power_wanted:
            if cnm.lease.state is LeaseState.FENCED and cnm.id not in self._off_failed:
                self._switch(cnm, PowerAction.OFF)
            return
        if (
            state is None
            or state.power_good
            or not state.present
            or not cnm.power_wanted
            or cnm.id in self._switching
            or cnm.lease.state not in (LeaseState.NEW, LeaseState.FENCED)
        ):
            return
        now_ns = self._loop.now_ns()
        history = self._power_ons.setdefault(cnm.id, deque(maxlen=POWER_ONS_KEPT))
        while history and now_ns - history[0] > POWER_ON_SPAN_NS:
            history.popleft()
        pause_ns = 0
        if history:  # a module that dies again and again is switched on more and more slowly
            pause_ns = min(POWER_ON_MOST_NS, POWER_ON_FIRST_NS << 2 * (len(history) - 1))
        history.append(now_ns + pause_ns)
        self._switching.add(cnm.id)

        def switch_on() -> None:
            self._switching.discard(cnm.id)
            if cnm.power_wanted and cnm.lease.state in (LeaseState.NEW, LeaseState.FENCED):
                cnm.quarantine = ""  # what it was quarantined for belonged to its last boot
                self._switch(cnm, PowerAction.ON)

        self._loop.call_later(pause_ns, switch_on)

    def _switch(self, cnm: Cnm, action: PowerAction) -> None:
        if cnm.id in self._switching:
            return
        self._switching.add(cnm.id)
        asked_ns = self._loop.now_ns()
        span_ns = POWER_ON_DEADLINE_NS if action is PowerAction.ON else POWER_DEADLINE_NS

        def done(result: SlotState | HalError) -> None:
            self._switching.discard(cnm.id)
            if isinstance(result, HalError):
                self._events.emit(
                    EventCode.CNM_POWER,
                    f"{cnm.id}: power {action.value} failed: {result}",
                    cnm=cnm.id,
                )
                if action is PowerAction.OFF:
                    self._off_failed.add(cnm.id)
                    self._look_again(cnm)
                if action is PowerAction.ON:
                    self._keep_power(cnm)
                if action is PowerAction.READ:
                    self._loop.call_later(
                        POWER_ON_FIRST_NS, lambda: self._switch(cnm, PowerAction.READ)
                    )
                return
            if action is PowerAction.OFF:
                self._off_failed.discard(cnm.id)
            self._take_power(cnm, result, asked_ns=asked_ns)
            if action is PowerAction.READ and result.power_good:
                self._look_again(cnm)

        request = PowerRequest(slot=cnm.config.slot, action=action)
        self._power.submit(request, asked_ns + span_ns, done)

    def _look_again(self, cnm: Cnm) -> None:
        """What could not be switched off in time may go off later, and nobody tells who asked for
        it. A fence that is still under way asks by itself; who is heard again has power."""

        def look() -> None:
            self._looking.discard(cnm.id)
            if cnm.lease.state in (LeaseState.NEW, LeaseState.FENCED):
                # or another request is under way, and tells
                self._switch(cnm, PowerAction.READ if cnm.power_wanted else PowerAction.OFF)

        wanted = cnm.id in self._off_failed and cnm.lease.power_fence
        if wanted and cnm.id not in self._looking:
            self._looking.add(cnm.id)
            self._loop.call_later(POWER_LOOK_NS, look)


def _follows(heartbeat: Heartbeat, last: Heartbeat) -> bool:
    """Sent after `last`, or by another boot (SPEC section 7: the numbers of a boot grow)."""
    return heartbeat.boot_id != last.boot_id or 0 < (heartbeat.seq - last.seq) & WORD <= WORD >> 1
