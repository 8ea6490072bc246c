"""`apf rm --wait` is over when the name is free, and not before."""

from collections.abc import Iterator
from typing import Any

import pytest

from tools import waiting
from tools.client import Client
from tools.errors import DaemonRefused, DeadlinePassed
from tools.sim.documents import component, workload
from tools.sim.world import RpcFailure, World


class Asks(Client):
    """`apf` beside the card, on its virtual time."""

    def __init__(self, world: World) -> None:
        self.world = world

    def call(self, method: str, params: Any = None, **_more: Any) -> Any:
        try:
            return self.world.call(method, **(params or {}))
        except RpcFailure as exc:
            raise DaemonRefused(exc.code, str(exc)) from exc


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(seed=5)

    def polls(timeout_ms: int, *, step_ms: int) -> Iterator[int]:
        """Much more often than `apf` does it."""
        assert step_ms
        for waited in range(50 * timeout_ms):
            yield waited // 50
            world.run(0.000_02)

    monkeypatch.setattr(waiting, "polls", polls)
    world.boot()
    world.submit(workload("x"))
    world.settle()
    return world


def test_who_has_waited_may_submit_under_the_same_name_at_once(world: World) -> None:
    world.remove("x")
    waiting.wait_until_gone(Asks(world), "x", timeout_ms=5000)
    world.submit(workload("x"))
    world.wait_running("x/web/0")


def test_who_waits_is_not_kept_by_the_next_of_that_name(world: World) -> None:
    world.remove("x")
    world.run_until(lambda: "x" not in world.card.decisions.workloads)
    world.submit(workload("x", component(replicas=2)))
    assert waiting.wait_until_gone(Asks(world), "x", timeout_ms=5000) == 0


def test_what_is_not_gone_in_time_is_said(world: World) -> None:
    world.modules[str(world.where("x/web/0"))].cut()
    world.remove("x")
    with pytest.raises(DeadlinePassed, match=r"x is not gone after 0\.1 s"):
        waiting.wait_until_gone(Asks(world), "x", timeout_ms=100)


def test_what_is_there_is_listed_until_its_name_is_free(world: World) -> None:
    whole = {"cpu_milli": 8000, "memory_bytes": 1 << 20}
    world.submit(workload("y", component(replicas=5, resources=whole)))
    world.settle()
    rows = {row["workload"]: row for row in world.call("workload.list")}
    assert rows["x"] == {"workload": "x", "removing": False, "instances": 1}
    assert rows["y"] == {"workload": "y", "removing": False, "instances": 5}
    world.remove("y")
    placed = len(world.card.decisions.of_workload("y"))
    row = {"workload": "y", "removing": True, "instances": placed}
    assert world.call("workload.list", workload="y") == [row]
    world.settle()
    with pytest.raises(RpcFailure) as refused:
        world.call("workload.list", workload="y")
    assert refused.value.code == "unknown_workload"
