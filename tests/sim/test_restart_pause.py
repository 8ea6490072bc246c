"""A service that runs for a while and ends, again and again, is started again soon each time."""

from itertools import pairwise

from hal.mock.instance import Behaviour
from tools.sim.documents import component, workload
from tools.sim.world import World

WEB = "shop/web/0"
SECOND = 1_000_000_000


def test_what_ends_once_in_a_while_is_never_treated_as_a_crash_loop() -> None:
    world = World(seed=41)
    world.boot()
    world.kernel.behaviours.add("web", Behaviour(runs_ns=15 * SECOND, exit_status=1))
    world.submit(workload("shop", component()))
    world.run(300)
    starts = [start.at_ns for start in world.judge.starts_of(WEB)]
    gaps = [later - earlier for earlier, later in pairwise(starts)]
    assert len(gaps) >= 18
    assert max(gaps) < 16 * SECOND
