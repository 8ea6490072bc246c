"""The `SlotPower` port over the kernel's slots. Requests on one slot take effect in order."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hal.errors import DeadlinePassed, HalError, Refused, Unavailable
from hal.ports import Done, PowerAction, PowerRequest, SlotState

if TYPE_CHECKING:
    from hal.mock.node import Node
    from hal.mock.slot import Slot

READ_NS: Final = 100_000  # a few registers of a power sequencer
PENDING_LIMIT: Final = 16  # requests that wait on one slot


class MockPower:
    """Power and presence as one node sees them. A command that was given takes effect even if
    the node that gave it dies, or gave up waiting: a supply does not know its caller."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._kernel = node.kernel
        self._post = node.poster()
        self._free_ns: dict[int, int] = {}  # slot -> when its last request is through
        self._pending: dict[int, int] = {}
        self._calls: list[Callable[[SlotState], None]] = []
        for slot in self._kernel.slots.values():
            slot.listen(self._changed)
        node.on_death.append(self._gone)

    def submit(self, request: PowerRequest, deadline_ns: int, done: Done[SlotState]) -> None:
        """Refused: no such slot, or too many requests wait. Unavailable: the slot is empty or
        its supply does not do it. DeadlinePassed: it may still take effect."""
        slot = self._kernel.slots.get(request.slot)
        if slot is None:
            self._complete(done, Refused(f"slot {request.slot}: not on this card"))
            return
        if self._pending.get(request.slot, 0) >= PENDING_LIMIT:
            self._complete(done, Refused(f"slot {request.slot}: {PENDING_LIMIT} requests wait"))
            return
        self._pending[request.slot] = self._pending.get(request.slot, 0) + 1
        self._kernel.note(self._node.name, f"power_{request.action.value}", slot.id)
        duration_ns = {
            PowerAction.READ: READ_NS,
            PowerAction.ON: READ_NS if slot.power_good else slot.on_ns,
            PowerAction.OFF: slot.off_ns if slot.power_good else READ_NS,
        }[request.action]
        at_ns = max(self._kernel.now_ns, self._free_ns.get(request.slot, 0)) + duration_ns
        self._free_ns[request.slot] = at_ns
        limit_ns = self._node.clock.kernel_ns(deadline_ns)
        answer = _Once(self, done)
        if limit_ns is not None and limit_ns < at_ns:
            text = f"slot {request.slot}: {request.action.value} takes longer than its deadline"
            self._kernel.at(limit_ns, lambda: answer.give(DeadlinePassed(text)))
        self._kernel.at(at_ns, lambda: self._effect(slot, request.action, limit_ns, answer))

    def on_change(self, call: Callable[[SlotState], None]) -> None:
        """Call on this node's loop when power-good or presence changes by itself."""
        self._calls.append(call)

    def _effect(self, slot: Slot, action: PowerAction, limit_ns: int | None, answer: _Once) -> None:
        self._pending[slot.slot] -= 1
        why: str | None = None
        text = ""
        if action is PowerAction.ON:
            why = slot.switch_on()
        elif action is PowerAction.OFF:
            why = slot.switch_off()
            text = f"{slot.id}: power-good low, nothing runs"
        if why is None:
            answer.give(slot.state(text))
        elif action is PowerAction.ON and not slot.present:
            answer.give(Unavailable(why))
        else:  # a supply that does not obey is waited for until the deadline
            late_ns = self._kernel.now_ns if limit_ns is None else limit_ns
            self._kernel.at(late_ns, lambda: answer.give(DeadlinePassed(str(why))))

    def _changed(self, state: SlotState) -> None:
        for call in self._calls:
            self._post(lambda call=call: call(state))  # type: ignore[misc]

    def _gone(self) -> None:
        for slot in self._kernel.slots.values():
            slot.unlisten(self._changed)

    def _complete(self, done: Done[SlotState], result: SlotState | HalError) -> None:
        self._post(lambda: done(result))


class _Once:
    """A completion that is given once; the deadline and the effect may both try."""

    def __init__(self, power: MockPower, done: Done[SlotState]) -> None:
        self._power, self._done = power, done
        self._given = False

    def give(self, result: SlotState | HalError) -> None:
        if not self._given:
            self._given = True
            self._power._complete(self._done, result)  # noqa: SLF001  one module, one idea
