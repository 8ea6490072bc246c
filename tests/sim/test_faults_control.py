"""The control of `test_faults`: a fault whose effect on the hardware is taken away is not seen.

Each injector does all that it does; only what would break stays whole. So none of them takes the
card's usual life for its evidence.
"""

import random
from collections.abc import Callable
from typing import Any

import pytest

from hal.mock.disk import Disk
from hal.mock.kernel import VirtualKernel
from hal.mock.line import MockLine
from hal.mock.line_faults import LineFaults, Pieces
from hal.mock.pci_device import PciModel
from hal.mock.slot import Slot
from hal.mock.smbus_bus import MockSmbusBus
from hal.mock.smbus_fans import Emc2305, Max31790
from hal.mock.smbus_model import RegisterModel
from hal.mock.window import MockWindowPair
from hal.smbus_ports import SmbusTransfer
from tools.sim.documents import component, volume, workload
from tools.sim.faults import FAULTS, Site
from tools.sim.pcie import SlotFabric
from tools.sim.run import sim_board
from tools.sim.world import BOARD, SECOND, World

WATCHED_S = 10
honest_transfer = MockSmbusBus.transfer
HARMLESS = [f"L{number}" for number in range(1, 19)] + [
    *("P1", "P2", "P3", "C1", "C2", "C3", "C5", "C6", "S5", "S6", "S7", "S8"),
    *("T2", "E2", "D4", "X1", "X2", "X5", "P4", "P5", "P6", "E4"),
    *("B1", "B2", "B3", "B4", "B6", "B7"),
]


def nothing(*_args: Any, **_named: Any) -> None:
    """What the hardware does now."""


def as_it_was(self: LineFaults, data: bytes, _rng: random.Random) -> Pieces:
    if self.once:
        self.once.popleft()(data)
    return [(0, data)]


def transferred(self: MockSmbusBus, item: SmbusTransfer) -> tuple[bytes, int]:
    self.stretch_ns.clear()
    self.nack_addresses.clear()
    self.lose_arbitration = 0
    for model in self.visible():
        if isinstance(model, RegisterModel):
            model.wrong_pec = 0
    return honest_transfer(self, item)


@pytest.fixture(autouse=True)
def _whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LineFaults, "apply", as_it_was)
    harmless: list[tuple[type, str]] = [
        (MockLine, "inject"),
        (VirtualKernel, "pause"),
        (VirtualKernel, "kill"),
        (MockWindowPair, "cut"),
        (MockWindowPair, "all_ones"),
        *((Slot, name) for name in ("pull", "lose_power", "reboot")),
        *((SlotFabric, name) for name in ("hold_down", "contain", "status", "tell")),
        (PciModel, "error"),
        *((MockSmbusBus, name) for name in ("hold_sda", "hold_scl")),
    ]
    for owner, name in harmless:
        monkeypatch.setattr(owner, name, nothing)
    monkeypatch.setattr(MockSmbusBus, "transfer", transferred)
    for fans in (Emc2305, Max31790):
        monkeypatch.setattr(fans, "rpm", lambda _self, _fan: 9_000)
    never: Callable[[Any], bool] = lambda _self: False  # noqa: E731
    for name in ("fail_sync", "read_only", "full", "fail_reads"):
        monkeypatch.setattr(Disk, name, property(never, nothing), raising=False)


@pytest.mark.parametrize("name", HARMLESS)
def test_a_fault_without_its_effect_is_not_seen(name: str) -> None:
    board = BOARD if FAULTS[name].fits(BOARD) else sim_board("rev_a")
    world = World(1, slots=3, board=board)
    world.boot()
    world.submit(workload("shop", component(replicas=4), component("db", volumes=[volume()])))
    world.settle()
    inject = FAULTS[name].inject
    assert inject is not None
    injection = inject(Site(world, world.kernel.rng("faults")))
    assert injection is not None
    healed = False
    for _ in range(WATCHED_S * 5):
        world.run(0.2)
        if not healed and world.kernel.now_ns - injection.at_ns >= injection.lasts_ns:
            healed = True
            injection.heal()
        assert not injection.seen(), f"{injection.text}: at {world.now_s:.1f} s"
    assert world.kernel.now_ns - injection.at_ns >= WATCHED_S * SECOND
