"""A board file that was edited while the card was down, and modules that go on meanwhile.

No edit of a file is a proof that a module is dead (DESIGN section 4, rule 9): its lease, or its own
word under its new name, is.
"""

from dataclasses import replace

import pytest

from hal.mock.instance import Behaviour
from tools.sim.documents import component, workload
from tools.sim.world import World

WEB = "shop/web/0"
WAIT_S = 5.6  # W of DESIGN section 4 with the usual times


def running_world(seed: int, replicas: int = 1) -> World:
    world = World(seed)
    world.kernel.behaviours.add("web", Behaviour(ignores_term=True))
    world.boot()
    spread = component(placement={"spread": True}, replicas=replicas, stop_grace_ms=1000)
    world.submit(workload("shop", spread))
    world.settle()
    return world


def test_a_slot_that_the_board_lost_is_waited_for_as_long_as_its_lease_may_last() -> None:
    world = running_world(seed=3)
    before = world.running()[WEB]
    world.kill_daemon()
    slots = tuple(slot for slot in world.board.slots if slot.id != before[0])
    world.board = replace(world.board, slots=slots)
    world.run(0.3)
    world.start_daemon()
    took_s = world.run_until(lambda: world.where(WEB) not in (None, before[0]), WAIT_S + 1)
    assert took_s >= WAIT_S
    assert world.running()[WEB][1] > before[1]


@pytest.mark.parametrize("replicas", [1, 4])
def test_where_two_slots_exchanged_their_names_all_goes_on_under_the_new_ones(
    replicas: int,
) -> None:
    world = running_world(seed=4, replicas=replicas)
    before = world.running()
    first, second = world.modules["cnm0"], world.modules["cnm1"]
    world.kill_daemon()
    world.modules = {**world.modules, "cnm0": second, "cnm1": first}
    world.run(0.3)
    world.start_daemon()
    world.run(WAIT_S + 12)
    assert world.running() == before, "no process was touched"
    names = {row["instance"]: row["cnm"] for row in world.call("workload.ps")}
    exchanged = {"cnm0": "cnm1", "cnm1": "cnm0"}
    was = {name: place[0] for name, place in before.items()}
    assert names == {name: exchanged.get(cnm, cnm) for name, cnm in was.items()}
    world.call("workload.remove", name="shop")
    world.run_until(lambda: not world.running(), 20)
