"""Resources that no module counts by itself: what its drives move, and the slots of its window."""

import pytest

from tools.sim.documents import component, workload
from tools.sim.world import RpcFailure, World


@pytest.fixture
def world() -> World:
    world = World(seed=12)
    world.boot()
    return world


@pytest.mark.parametrize(
    ("asked", "each"),
    [("nvme_mbit", 10_000), ("window_slots", 40)],  # of 16,000 as the board says, and of 64
)
def test_two_that_are_too_much_for_one_module_go_to_two(
    world: World, asked: str, each: int
) -> None:
    small = {"cpu_milli": 100, "memory_bytes": 1 << 20}
    world.submit(workload("io", component(replicas=2, resources={**small, asked: each})))
    world.submit(workload("other", component(replicas=2, resources=small)))
    world.settle()
    running = world.running()
    assert running["io/web/0"][0] != running["io/web/1"][0]
    assert running["other/web/0"][0] == running["other/web/1"][0]


@pytest.mark.parametrize(
    ("asked", "each", "said"),
    [
        ("nvme_mbit", 20_000, "nvme_bandwidth: wants 20000 Mbit/s, has 16000 Mbit/s"),
        ("window_slots", 65, "windows: wants 65 slots, has 64 slots"),
    ],
)
def test_what_no_module_has_is_refused_in_numbers(
    world: World, asked: str, each: int, said: str
) -> None:
    with pytest.raises(RpcFailure, match=said):
        world.submit(workload("io", component(resources={asked: each})))
