"""on-failure:N gives up after N attempts of its own; what others did to it costs none."""

import pytest

from hal.mock.instance import Behaviour
from hal.ports import FenceKind
from tools.sim.documents import component, workload
from tools.sim.module import fence_by
from tools.sim.world import World

WEB = "shop/web/0"
SECOND = 1_000_000_000
FAILS = Behaviour(runs_ns=20 * SECOND, exit_status=1)


def lose_the_lease(world: World) -> None:
    """Its module stops it, because the lease has ended; the module is heard again at once."""
    module = world.modules[str(world.where(WEB))]
    module.cut(links=("mc",))
    world.run_until(lambda: world.where(WEB) is None, 6)
    module.cut(False)
    world.run_until(lambda: world.where(WEB) is not None, 10)


@pytest.mark.parametrize("ends", [1, 3])
def test_what_ended_with_its_lease_has_all_its_attempts_left(ends: int) -> None:
    world = World(seed=4)
    fence_by(list(world.modules.values()), FenceKind.LEASE)
    world.boot()
    world.submit(workload("shop", component(restart={"policy": "on-failure", "max_attempts": 2})))
    world.settle()
    for count in range(ends):
        world.kernel.behaviours.add("web", FAILS if count == ends - 1 else Behaviour())
        lose_the_lease(world)
    before = len(world.judge.starts_of(WEB))
    world.run(120)
    row = world.ps()[WEB]
    assert (row["phase"], row["reason"]) == ("FAILED", "exited with status 1")
    assert len(world.judge.starts_of(WEB)) - before == 2
    assert row["restarts"] == ends + 2, "people see each time that it was started again"
    assert row["attempts"] == 2


def test_the_next_daemon_goes_on_counting_attempts() -> None:
    world = World(seed=4)
    world.boot()
    world.kernel.behaviours.add("web", FAILS)
    world.submit(workload("shop", component(restart={"policy": "on-failure", "max_attempts": 2})))
    world.run_until(lambda: world.ps().get(WEB, {}).get("attempts") == 1, 60)
    world.restart_daemon()
    world.run(60)
    assert world.ps()[WEB]["phase"] == "FAILED"
    assert len(world.judge.starts_of(WEB)) == 3
