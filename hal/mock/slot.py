"""A slot and the CNM in it: latches, power, the programs and instances that live by its power.

What survives a power cycle: the latches, the count of boots, the disk (minus what was not yet
synced). What does not: programs, instances, and the CNM's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hal.mock.disk import Disk
from hal.ports import FenceKind, SlotState

if TYPE_CHECKING:
    from hal.mock.instance import MockInstance
    from hal.mock.kernel import VirtualKernel

MS: Final = 1_000_000
ON_NS: Final = 20 * MS  # from the latch to power-good and the boot of the MC
OFF_NS: Final = 5 * MS  # from the latch to the proof; the local board takes 2 to 12 ms
LISTENER_LIMIT: Final = 16


class Slot:
    """One slot. Faults are its attributes and methods; the port is `MockPower`."""

    def __init__(
        self,
        kernel: VirtualKernel,
        *,
        slot: int,
        cnm_id: str,
        program: str = "cnm-init",
        present: bool = True,
        fence: FenceKind = FenceKind.POWER,
        disk: Disk | None = None,
    ) -> None:
        """`program` is what power-on runs, on node `<cnm_id>/init`."""
        self.kernel = kernel
        self.slot = slot
        self.id = cnm_id
        self.program = program
        self.present = present
        self.fence = fence
        self.latch_on = False
        self.power_good = False
        self.boots = 0
        self.disk = disk if disk is not None else Disk(kernel, f"{cnm_id} disk")
        self.instances: dict[str, MockInstance] = {}  # by key; dead ones stay until removed
        self.on_ns, self.off_ns = ON_NS, OFF_NS  # faults: a slow supply
        self.stuck_on = False  # fault: the latch has no effect, what runs goes on
        self.stuck_off = False  # fault: power-good never comes
        self.slowness = 1  # fault C4: what its runtime does takes so many times as long
        self.init_death_is_power_loss = True  # as on the local board: the init is the CNM's PID 1
        self.on_power: Callable[[bool], None] = lambda _good: None  # what hangs on its power
        self._listeners: list[Callable[[SlotState], None]] = []

    @property
    def init_node(self) -> str:
        return f"{self.id}/init"

    def state(self, text: str = "") -> SlotState:
        """As the latches and power-good read now."""
        init = self.kernel.programs.running.get(self.init_node)
        return SlotState(
            slot=self.slot,
            present=self.present,
            power_good=self.power_good,
            fence=self.fence,
            init_pid=init.launch.pid if init is not None else None,
            cgroup=f"/apf/mock/{self.id}" if self.power_good else None,
            text=text,
        )

    # --- for the power port ---

    def switch_on(self) -> str | None:
        """Apply power and boot; why it did not come up, or None. On already is fine."""
        if not self.present:
            return f"slot {self.slot} is empty"
        self.latch_on = True
        if self.stuck_off:
            return f"slot {self.slot}: power-good stays low"
        if not self.power_good:
            self.power_good = True
            self.boots += 1
            self.kernel.note(self.id, "power_on", str(self.boots))
            self.on_power(True)
            self.kernel.programs.launch(
                self.program, node=self.init_node, slot=self, on_exit=self._init_ended
            )
        return None

    def switch_off(self) -> str | None:
        """Take power away; why it still runs, or None when nothing does. Off already is fine."""
        self.latch_on = False
        if self.stuck_on and self.power_good:
            return f"slot {self.slot}: power-good stays high"
        self._go_dark("power_off")
        return None

    def listen(self, call: Callable[[SlotState], None]) -> None:
        """Be told of changes that nobody asked for. Raises ValueError at LISTENER_LIMIT."""
        if len(self._listeners) >= LISTENER_LIMIT:
            raise ValueError(f"slot {self.slot}: {LISTENER_LIMIT} listeners already")
        self._listeners.append(call)

    def unlisten(self, call: Callable[[SlotState], None]) -> None:
        """Unknown ones are ignored."""
        if call in self._listeners:
            self._listeners.remove(call)

    # --- faults ---

    def lose_power(self) -> None:
        """The module dies by itself: brown-out, thermal trip (faults C1, E1, E2)."""
        if self.power_good:
            self._go_dark("power_lost")
            self._tell("power lost")

    def pull(self) -> None:
        """Surprise removal (fault P2)."""
        self.present = False
        self._go_dark("pulled")
        self._tell("pulled")

    def insert(self) -> None:
        """A module is there (again); it stays off until it is switched on."""
        self.present = True
        self.kernel.note(self.id, "inserted")
        self._tell("inserted")

    def reboot(self) -> None:
        """The CNM resets by itself, power stays good (fault C5): a new boot of its init."""
        if self.power_good:
            self._go_dark("reset")
            self.switch_on()

    def _go_dark(self, why: str) -> None:
        if not self.power_good:
            return
        self.power_good = False
        self.kernel.note(self.id, why)
        self.on_power(False)
        self.kernel.on_change("dark", self)
        for handle in self.kernel.programs.of_slot(self):
            self.kernel.kill(handle.launch.node.name)
        for key in sorted(self.instances):
            self.instances[key].power_lost()
        self.instances.clear()
        self.disk.power_cut()

    def _init_ended(self, status: int) -> None:
        if self.power_good and self.init_death_is_power_loss:
            self._go_dark("init_died")
            self._tell(f"cnm-init ended with {status}")

    def _tell(self, text: str) -> None:
        state = self.state(text)
        for call in list(self._listeners):
            call(state)
