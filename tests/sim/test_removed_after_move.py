"""`apf rm` right after a move: what the move left at its source is deleted before the name goes."""

from typing import Any

import pytest

from firmware.endpoint import RequestLost
from hal.mock import runtime
from protocol.apf import RemoveRequest
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


def test_a_removal_that_its_module_can_not_be_asked_for_rests_while_the_instance_runs_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(seed=1)
    world.boot()
    world.submit(workload("shop", component()))
    world.settle()
    source = world.ps()[WEB]["cnm"]
    cnm = world.card.inventory.get(source)
    assert cnm is not None
    asked: list[object] = []
    ask = cnm.agent.request

    def full(body: Any, done: Any, **more: Any) -> None:
        if isinstance(body, RemoveRequest):
            asked.append(body)
            world.card.loop.post(lambda: done(RequestLost("256 requests are waiting already")))
        else:
            ask(body, done, **more)

    monkeypatch.setattr(cnm.agent, "request", full)
    world.call("instance.migrate", instance=WEB)
    world.run_until(lambda: world.ps()[WEB]["cnm"] != source)
    world.run(5)
    assert 0 < len(asked) < 15
    monkeypatch.undo()
    world.run_until(lambda: world.modules[source].leftovers() == set())
