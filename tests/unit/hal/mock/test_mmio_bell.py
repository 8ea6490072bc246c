"""A doorbell that is a register and an interrupt, on two models of QEMU's edu: each end rings by a
store to the other's, and hears its own."""

import pytest

from hal.errors import InterruptStorm, Unavailable
from hal.interrupt_rate import RateLimit
from hal.linux.polled_bell import MmioBell
from hal.mock.pci import MockPciFunction
from hal.mock.pci_edu import MockEdu
from hal.pci_ports import InterruptKind
from hal.ports import Event
from tests.contract.edu import IRQ_RAISE
from tests.contract.worlds import VirtualWorld


@pytest.fixture
def world():
    made = VirtualWorld()
    yield made
    made.close()


def bells_of(world, limit=None):
    node = world.reactor.clock.node
    functions = [
        MockPciFunction(
            node,
            node.kernel.pci.add(MockEdu(node.kernel, name, address)),
            limit or RateLimit(per_s=1_000_000, burst=1_000_000),
        )
        for name, address in (("left", "0000:01:00.0"), ("right", "0000:02:00.0"))
    ]
    maps = [function.map(0) for function in functions]
    heard = [function.interrupts(InterruptKind.MSI, 1)[0] for function in functions]
    bells = (
        MmioBell(maps[1], IRQ_RAISE, 1, heard[0]),
        MmioBell(maps[0], IRQ_RAISE, 1, heard[1]),
    )
    return functions, bells


def test_a_ring_is_a_store_that_interrupts_the_far_end_and_not_the_ringer(world):
    _functions, (left, right) = bells_of(world)
    wakes = []

    def woken(_events):
        wakes.append("right")
        right.clear()

    world.reactor.watch(right.handle, Event.READ, woken)
    world.reactor.watch(left.handle, Event.READ, lambda _events: wakes.append("left"))
    left.ring()
    world.run_until(lambda: bool(wakes))
    world.run_for(0.05)
    assert wakes == ["right"]
    left.ring()
    world.run_until(lambda: len(wakes) == 2)


def test_rings_that_nobody_has_cleared_coalesce(world):
    _functions, (left, right) = bells_of(world)
    for _ in range(100):
        left.ring()
    wakes = []

    def woken(_events):
        wakes.append(1)
        right.clear()

    world.reactor.watch(right.handle, Event.READ, woken)
    world.run_until(lambda: bool(wakes))
    world.run_for(0.05)
    assert len(wakes) < 100


def test_a_far_end_that_rings_without_end_is_masked_and_told(world):
    _functions, (left, right) = bells_of(world, RateLimit(per_s=10, burst=5))
    for _ in range(100):
        left.ring()
    with pytest.raises(InterruptStorm):
        right.clear()


def test_after_close_it_is_not_used(world):
    _functions, (left, _right) = bells_of(world)
    left.close()
    left.close()
    for call in (left.ring, left.clear):
        with pytest.raises(Unavailable, match="closed"):
            call()
