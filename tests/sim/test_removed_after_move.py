"""`apf rm` right after a move: what the move left at its source is deleted before the name goes."""

import pytest

from hal.mock import runtime
from tools.sim.documents import component, workload
from tools.sim.world import World

WEB = "shop/web/0"
MS = 1_000_000


@pytest.mark.parametrize("after_ms", [10, 20, 50, 200])
def test_a_workload_is_gone_only_when_a_moves_source_is_clean_too(
    after_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(seed=after_ms)
    world.boot()
    world.submit(workload("shop", component()))
    world.settle()
    source = world.ps()[WEB]["cnm"]
    world.call("instance.migrate", instance=WEB)
    monkeypatch.setattr(runtime, "REMOVE_NS", 1_000 * MS)  # the source deletes slowly
    world.run_until(lambda: world.ps()[WEB]["cnm"] != source)
    world.run(after_ms / 1000)
    monkeypatch.setattr(runtime, "REMOVE_NS", MS)  # the target does not
    world.remove("shop")
    world.run_until(lambda: not world.ps())
    assert [cnm.leftovers() for cnm in world.modules.values()] == [set()] * 4
