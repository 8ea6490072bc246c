"""Power and presence of slots on real hardware: the kernel's hot-plug slots, or nothing at all.

    pci_slot:NAME?fence=power    /sys/bus/pci/slots/NAME: power and adapter (presence)
    none                         no switch: always on, and only the end of its lease is a fence

Ref: the kernel's Documentation/ABI/testing/sysfs-bus-pci (slots), drivers/pci/hotplug: `power` is
the Power Controller Control bit (PCIe Base 5.0, 7.5.3.10), read back from the register. Whether a
slot without power is a module without power is the board's to say: `fence=lease` where the module
has another supply (a virtual machine, a host behind a bridge), and then OFF only unplugs it.

Writing `power` takes seconds (the link must train): requests run on workers, one at a time for each
slot. Presence is polled, because not every hot-plug driver tells.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hal.errors import DeadlinePassed, HalError, Refused, Unavailable
from hal.linux.oserror import hal_error
from hal.linux.workers import Check, Workers
from hal.ports import Done, FenceKind, PowerAction, PowerRequest, Reactor, SlotState

SLOTS_DIR: Final = Path("/sys/bus/pci/slots")
POLL_NS: Final = 500_000_000
PENDING_LIMIT: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSwitch:
    """How one slot is switched; `name` "" for not at all."""

    name: str = ""
    fence: FenceKind = FenceKind.LEASE


def slot_switch(spec: str) -> SlotSwitch:
    """From a board's words. Raises Refused."""
    if spec == "none":
        return SlotSwitch()
    scheme, _, rest = spec.partition(":")
    name, _, option = rest.partition("?")
    if scheme != "pci_slot" or not name or option not in ("", "fence=lease", "fence=power"):
        raise Refused(f"power {spec!r}: want none or pci_slot:NAME?fence=power|lease")
    fence = FenceKind.POWER if option == "fence=power" else FenceKind.LEASE
    return SlotSwitch(name=name, fence=fence)


class LinuxSlotPower:
    """`hal.ports.SlotPower` over the kernel's slots. Loop thread only."""

    def __init__(
        self,
        switches: Mapping[int, SlotSwitch],
        reactor: Reactor,
        workers: Workers,
        *,
        slots_dir: Path = SLOTS_DIR,
    ) -> None:
        self._switches, self._reactor, self._workers = switches, reactor, workers
        self._dir = slots_dir
        self._seen: dict[int, tuple[bool, bool]] = {}  # slot -> present, power good
        self._busy: set[int] = set()
        self._waiting: dict[int, deque[tuple[PowerRequest, int, Done[SlotState]]]] = {
            slot: deque() for slot in switches
        }
        self._calls: list[Callable[[SlotState], None]] = []
        if any(switch.name for switch in switches.values()):
            reactor.call_at(reactor.now_ns() + POLL_NS, self._poll)

    def submit(self, request: PowerRequest, deadline_ns: int, done: Done[SlotState]) -> None:
        """Refused: no such slot, or too many wait. Unavailable: the slot has no switch, is empty
        or does not obey."""
        switch = self._switches.get(request.slot)
        error: HalError | None = None
        if switch is None:
            known = ", ".join(map(str, self._switches))
            error = Refused(f"slot {request.slot} is not on this board; known: {known}")
        elif len(self._waiting[request.slot]) >= PENDING_LIMIT:
            error = Refused(f"slot {request.slot}: {PENDING_LIMIT} requests wait already")
        if error is not None:
            failure = error
            self._reactor.post(lambda: done(failure))
            return
        self._waiting[request.slot].append((request, deadline_ns, done))
        self._next(request.slot)

    def on_change(self, call: Callable[[SlotState], None]) -> None:
        self._calls.append(call)

    def tell_failing(self, slot: int, text: str) -> None:
        """Somebody saw that the slot's function goes or is gone: a detection, never a proof."""
        if slot in self._switches:
            present, good = self._seen.get(slot, (True, True))
            self._tell(self._state(slot, present, good, text, failing=True))

    def _next(self, slot: int) -> None:
        if slot in self._busy or not self._waiting[slot]:
            return
        self._busy.add(slot)
        request, deadline_ns, done = self._waiting[slot].popleft()

        def ended(result: SlotState | HalError) -> None:
            self._busy.discard(slot)
            if isinstance(result, SlotState):
                self._seen[slot] = result.present, result.power_good
            done(result)
            self._next(slot)

        switch = self._switches[slot]
        if not switch.name:
            result = self._unswitched(slot, request.action)
            self._reactor.post(lambda: ended(result))
            return

        def job(check: Check) -> SlotState:
            return self._apply(slot, switch, request.action, check)

        self._workers.submit(f"slot {slot}: power {request.action.value}", job, deadline_ns, ended)

    def _unswitched(self, slot: int, action: PowerAction) -> SlotState | HalError:
        if action is PowerAction.OFF:
            return Unavailable(f"slot {slot}: no power switch on this board; its lease must end")
        return self._state(slot, True, True, "no power switch: always on")

    def _apply(self, slot: int, switch: SlotSwitch, action: PowerAction, check: Check) -> SlotState:
        """On a worker's thread."""
        present, good = self._read(switch.name)
        if action is PowerAction.ON and not present:
            raise Unavailable(f"slot {slot} ({switch.name}) is empty")
        wanted = action is PowerAction.ON
        if action is not PowerAction.READ and good is not wanted:
            path = self._dir / switch.name / "power"
            check()
            try:
                path.write_text("1" if wanted else "0")
            except OSError as exc:
                raise hal_error(exc, f"slot {slot}: {path}") from exc
            present, good = self._read(switch.name)
            if good is not wanted:
                raise DeadlinePassed(
                    f"slot {slot}: {path} reads {int(good)} after {int(wanted)} was written"
                )
        return self._state(slot, present, good, f"{switch.name}: power reads {int(good)}")

    def _read(self, name: str) -> tuple[bool, bool]:
        """Present, and powered. Raises Unavailable."""
        directory = self._dir / name
        try:
            good = (directory / "power").read_text().strip() == "1"
            present = (directory / "adapter").read_text().strip() == "1"
        except FileNotFoundError as exc:
            raise Unavailable(
                f"no hot-plug slot {name} at {directory}: its driver (pciehp, acpiphp) is not "
                "loaded, or the board file names another; see ls /sys/bus/pci/slots"
            ) from exc
        except OSError as exc:
            raise hal_error(exc, str(directory)) from exc
        return present, good

    def _state(
        self, slot: int, present: bool, good: bool, text: str, *, failing: bool = False
    ) -> SlotState:
        return SlotState(
            slot=slot,
            present=present,
            power_good=good and present,
            fence=self._switches[slot].fence,
            failing=failing,
            text=text,
        )

    def _poll(self) -> None:
        self._reactor.call_at(self._reactor.now_ns() + POLL_NS, self._poll)
        for slot, switch in self._switches.items():
            if not switch.name or slot in self._busy or slot not in self._seen:
                continue
            try:
                found = self._read(switch.name)
            except HalError:
                continue  # the next request says it
            if found != self._seen[slot]:
                self._seen[slot] = found
                self._tell(self._state(slot, *found, f"{switch.name}: it changed by itself"))

    def _tell(self, state: SlotState) -> None:
        for call in self._calls:
            call(state)
