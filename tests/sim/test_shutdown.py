"""`apf down`: volumes come home first, as far as that is soon done; then the card goes, once."""

import pytest

from tools.sim.documents import component, volume, workload
from tools.sim.world import World

DB = "shop/db/0"


@pytest.fixture
def world() -> World:
    world = World(seed=31)
    world.boot()
    return world


def go_down(world: World) -> list[float]:
    """Ask for it; the list of the times at which the card lets itself be stopped."""
    times: list[float] = []
    world.card.on_shutdown = lambda: times.append(world.now_s)
    assert world.call("shutdown") == {"stopping": True}
    return times


def with_db(world: World) -> None:
    world.submit(workload("shop", component("db", volumes=[volume()])))
    world.settle()
    world.modules[world.where(DB)].write_volume("data", "table", b"rows")


def test_without_volumes_it_goes_at_once(world: World) -> None:
    assert len(go_down(world)) == 1


def test_what_was_written_to_a_volume_is_on_the_card_before_it_goes(world: World) -> None:
    with_db(world)
    assert world.call("volume.list")[0]["files"] == 0
    times = go_down(world)
    world.run_until(lambda: times, 2)
    (row,) = world.call("volume.list")
    assert (row["files"], row["bytes"]) == (1, 4)


def test_a_module_that_does_not_answer_holds_it_up_for_some_seconds_and_no_longer(
    world: World,
) -> None:
    with_db(world)
    world.modules[world.where(DB)].cut()
    asked_s = world.now_s
    times = go_down(world)
    world.call("shutdown")  # asked again: it is at it
    world.run(8)
    assert len(times) == 1
    assert times[0] - asked_s <= 5.0
