"""The card as it is to be built, on the virtual kernel: its sixteen modules come up and work."""

from tools.sim import documents
from tools.sim.run import sim_board
from tools.sim.world import World


def test_the_sixteen_modules_of_rev_a_are_found_and_one_that_dies_is_failed_over():
    world = World(seed=3, board=sim_board("rev_a"))
    world.boot(limit_s=60)
    assert len(world.modules) == 16
    world.submit(documents.workload("shop", documents.component("web", replicas=3)))
    world.wait_running("shop/web/0", limit_s=60)
    first = world.where("shop/web/0")
    world.modules[first].slot.pull()
    world.run_until(lambda: world.where("shop/web/0") not in (None, first), 120, "failover")
    world.wait_running("shop/web/0", limit_s=60)
