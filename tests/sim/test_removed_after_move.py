"""`apf rm` right after a move: what the move left at its source is deleted before the name goes."""

import pytest

from tests.sim.documents import component, volume, workload
from tests.sim.world import World

WEB = "shop/web/0"


@pytest.mark.parametrize("with_volume", [False, True])
@pytest.mark.parametrize("after_ms", [0, 1, 2, 3, 5, 8, 20])
def test_a_workload_is_gone_only_when_a_moves_source_is_clean_too(
    after_ms: int, *, with_volume: bool
) -> None:
    world = World(seed=after_ms)
    world.boot()
    world.submit(workload("shop", component(volumes=[volume()] if with_volume else [])))
    world.settle()
    source = world.ps()[WEB]["cnm"]
    world.call("instance.migrate", instance=WEB)
    world.run_until(lambda: world.ps()[WEB]["cnm"] != source)
    world.run(after_ms / 1000)
    world.remove("shop")
    world.run_until(lambda: not world.ps())
    assert {name: cnm.leftovers() for name, cnm in world.modules.items()} == {
        name: set() for name in world.modules
    }
