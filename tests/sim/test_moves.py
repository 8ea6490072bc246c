"""Moves, drains and shedding: the data follows, nothing runs twice, and every end has an answer."""

from typing import Any

import pytest

from firmware.board import load_board
from hal.mock.instance import Behaviour
from hal.ports import FenceKind
from tools.sim.documents import component, image, layer, volume, workload
from tools.sim.module import fence_by
from tools.sim.world import SECOND, RpcFailure, World

DB = "shop/db/0"
APP = layer({"bin/app": bytes(300_000)})
MOVE_MS = 120  # about as long as a move of `moving_world` takes


def moving_world(seed: int, *, fence: FenceKind = FenceKind.POWER, policy: str = "always") -> World:
    """A database with a volume runs on one module; it has written something."""
    world = World(seed)
    fence_by(list(world.modules.values()), fence)
    world.boot()
    world.import_image(image("app:latest", APP), [APP])
    db = component("db", image="app", volumes=[volume()], restart={"policy": policy})
    world.submit(workload("shop", db))
    world.settle()
    write(world, b"written at home")
    return world


def write(world: World, data: bytes) -> None:
    world.modules[world.where(DB)].write_volume("data", "table", data)


def read(world: World) -> bytes | None:
    return world.modules[world.where(DB)].volume_file("data", "table")


def test_a_move_takes_the_data_along_and_leaves_nothing_behind() -> None:
    world = moving_world(seed=1)
    source = world.where(DB)
    target = world.migrate(DB)
    assert target != source
    world.run(0.01)
    write(world, b"written during the move")
    world.settle()
    assert world.where(DB) == target
    assert read(world) == b"written during the move"
    assert "volume.stale" not in world.codes()
    assert world.modules[source].leftovers() == set()
    assert len(world.judge.starts_of(DB)) == 2


def test_a_move_to_where_it_is_or_to_nowhere_is_refused_and_changes_nothing() -> None:
    world = moving_world(seed=2)
    before = world.running()
    for to in (world.where(DB), "cnm9"):
        with pytest.raises(RpcFailure):
            world.migrate(DB, to)
    with pytest.raises(RpcFailure) as refused:
        world.migrate("shop/nobody/0")
    assert refused.value.code == "unknown_instance"
    world.settle()
    assert world.running() == before


@pytest.mark.parametrize("after_ms", range(0, MOVE_MS, 10))
def test_a_target_that_dies_in_the_middle_costs_nothing(after_ms: int) -> None:
    world = moving_world(seed=after_ms)
    source = world.where(DB)
    target = world.migrate(DB)
    world.run(after_ms / 1000)
    world.modules[target].slot.lose_power()
    world.settle()
    assert world.ps()[DB]["phase"] == "RUNNING"
    assert read(world) == b"written at home"
    flipped = "instance.migrated" in world.codes()
    assert ("volume.stale" in world.codes()) <= flipped  # it might have run there already
    if not flipped:
        assert world.where(DB) == source


@pytest.mark.parametrize("after_ms", range(0, MOVE_MS, 10))
def test_a_source_that_dies_in_the_middle_is_taken_over_by_the_target(after_ms: int) -> None:
    world = moving_world(seed=after_ms)
    world.call("volume.flush", name="data")
    source = world.where(DB)
    target = world.migrate(DB)
    world.run(after_ms / 1000)
    stopped_here = world.codes().count("volume.flushed") > 1
    world.modules[source].slot.lose_power()
    world.settle()
    assert world.where(DB) == target
    assert read(world) == b"written at home"
    assert ("volume.stale" in world.codes()) != stopped_here


@pytest.mark.parametrize("after_ms", range(0, MOVE_MS, 5))
def test_a_daemon_killed_at_any_step_of_a_move_finishes_or_undoes_it(after_ms: int) -> None:
    world = moving_world(seed=after_ms, fence=FenceKind.LEASE)
    world.migrate(DB)
    world.run(after_ms / 1000)
    world.restart_daemon(0.3)
    world.settle()
    assert world.ps()[DB]["phase"] == "RUNNING"
    assert read(world) == b"written at home"
    assert len(world.judge.starts_of(DB)) <= 2
    assert "volume.stale" not in world.codes()


@pytest.mark.parametrize("after_ms", [0, 5, 20, 40, 60, 80, 100])
@pytest.mark.parametrize("which", ["source", "target"])
def test_an_agent_killed_in_a_move_delays_it_only(which: str, after_ms: int) -> None:
    world = moving_world(seed=after_ms)
    source = world.where(DB)
    target = world.migrate(DB)
    world.run(after_ms / 1000)
    module = world.modules[source if which == "source" else target]
    world.kernel.kill(module.agent_node)
    world.settle()
    assert world.ps()[DB]["phase"] == "RUNNING"
    assert read(world) == b"written at home"
    assert "volume.stale" not in world.codes()


def test_a_target_that_can_not_prepare_leaves_it_where_it_was() -> None:
    world = moving_world(seed=3)
    before = world.running()
    target = next(name for name in world.modules if name != world.where(DB))
    world.modules[target].slot.disk.full = True
    world.migrate(DB, target)
    world.settle()
    assert world.running() == before
    assert "instance.migration_failed" in world.codes(instance=DB)
    world.modules[target].slot.disk.full = False
    assert world.migrate(DB, target) == target
    world.settle()
    assert world.where(DB) == target


def test_what_ends_by_itself_while_its_move_is_prepared_is_not_run_a_second_time() -> None:
    world = World(seed=4)
    world.boot()
    world.kernel.behaviours.add("job", Behaviour(runs_ns=5 * SECOND))
    world.import_image(image("app:latest", APP), [APP])
    world.submit(
        workload("shop", component("job", image="app", argv=["job"], restart={"policy": "no"}))
    )
    world.settle()
    target = next(name for name in world.modules if name != world.where("shop/job/0"))
    world.modules[target].slot.disk.sync_ns = 10 * SECOND
    world.migrate("shop/job/0", target)
    world.settle()
    assert world.ps()["shop/job/0"]["phase"] == "STOPPED"
    assert len(world.judge.starts_of("shop/job/0")) == 1


def test_drain_empties_a_module_and_what_runs_elsewhere_stays() -> None:
    world = World(seed=5)
    world.boot()
    world.submit(workload("shop", component(replicas=10), component("db", volumes=[volume()])))
    world.settle()
    cnm = world.where(DB)
    write(world, b"rows")
    before = world.running()
    world.call("cnm.drain", id=cnm)
    world.settle()
    after = world.running()
    assert cnm not in {found[0] for found in after.values()}
    assert {k: v for k, v in before.items() if v[0] != cnm} == {
        k: v for k, v in after.items() if before[k][0] != cnm
    }
    assert "cnm.drained" in world.codes(cnm=cnm)
    assert read(world) == b"rows"
    world.submit(workload("more", component(replicas=4)))
    world.settle()
    assert cnm not in {found[0] for found in world.running().values()}


def test_a_drain_with_nowhere_to_go_says_so_and_goes_on_when_there_is_room() -> None:
    world = World(seed=6)
    world.boot()
    full = {"resources": {"cpu_milli": 8000, "memory_bytes": 1 << 20}}
    world.submit(workload("a", component(replicas=3, **full)))
    world.submit(workload("b", component(**full)))
    world.settle()
    cnm = world.where("b/web/0")
    world.call("cnm.drain", id=cnm)
    world.run(3)
    assert world.where("b/web/0") == cnm
    assert "can't leave" in world.ps()["b/web/0"]["reason"]
    world.remove("a")
    world.run_until(lambda: world.where("b/web/0") not in (None, cnm), 5)
    world.settle()


def test_what_ends_on_a_draining_module_is_started_again_elsewhere() -> None:
    world = World(seed=7)
    world.boot()
    world.kernel.behaviours.add("web", Behaviour(runs_ns=2 * SECOND))
    world.submit(workload("shop", component(replicas=2)))
    world.run(1)
    cnm = world.where("shop/web/0")
    world.call("cnm.drain", id=cnm)
    world.run(10)
    starts = world.judge.starts_of("shop/web/0")
    assert starts[0].cnm == cnm
    assert starts[-1].cnm != cnm


def test_a_loaded_module_gives_one_component_away_and_then_rests() -> None:
    world = World(seed=8)
    world.boot()
    cnm, *others = world.modules
    for other in others:
        world.call("cnm.drain", id=other)
    world.submit(workload("shop", component(replicas=6)))
    world.settle()
    for other in others:
        world.call("cnm.undrain", id=other)
    module = world.modules[cnm]
    module.busy_milli = 8000
    hold_s = load_board("mock_4", run_dir="/run/apf").thresholds.hold_ms / 1000
    world.run(hold_s + 4)
    here = sum(found[0] == cnm for found in world.running().values())
    assert here == 5
    module.busy_milli = 100
    world.settle()
    world.run(15)
    assert sum(found[0] == cnm for found in world.running().values()) == 5


def test_a_loaded_module_keeps_what_shares_a_volume_and_gives_another_one_away() -> None:
    world = World(seed=8)
    world.kernel.behaviours.add("heavy", Behaviour(cpu_milli=3000))
    world.kernel.behaviours.add("light", Behaviour(cpu_milli=1500))
    world.boot()
    cnm, *others = world.modules
    for other in others:
        world.call("cnm.drain", id=other)
    for name, behaviour in (("one", "heavy"), ("two", "heavy"), ("three", "light")):
        data = [volume()] if behaviour == "heavy" else []
        world.submit(workload(name, component(argv=[behaviour], volumes=data)))
        world.wait_running(f"{name}/web/0")
    world.settle()
    for other in others:
        world.call("cnm.undrain", id=other)
    world.modules[cnm].busy_milli = 7900
    world.run(40)
    there = {name: where[0] for name, where in world.running().items()}
    assert there["one/web/0"] == there["two/web/0"] == cnm != there["three/web/0"]


@pytest.mark.parametrize("after_ms", range(0, MOVE_MS, 15))
def test_a_workload_removed_in_the_middle_of_a_move_leaves_nothing(after_ms: int) -> None:
    world = moving_world(seed=after_ms)
    world.migrate(DB)
    world.run(after_ms / 1000)
    world.remove("shop")
    world.settle()
    world.run(2)
    assert world.running() == {}
    assert [module.leftovers() for module in world.modules.values()] == [set()] * 4


def test_a_module_that_comes_while_its_instance_is_being_moved_away_leaves_the_books_alone() -> (
    None
):
    world = moving_world(seed=8)
    card = world.card
    source = world.where(DB)
    cnm = card.inventory.get(source)
    assert cnm is not None
    capabilities = cnm.capabilities
    world.modules[source].slot.pull()
    world.run_until(
        lambda: DB in card.decisions.pending and card.placer.state.places(DB) != (source,)
    )
    deciding = card.placer.state.places(DB)
    assert source not in deciding
    cnm.capabilities = capabilities
    card.placer.state.remove_cnm(source)  # as if this daemon heard of it only now
    card.placer.update(cnm)
    assert card.placer.state.places(DB) == deciding
    world.run_until(lambda: DB not in card.decisions.pending)
    world.run(1)
    assert card.placer.state.places(DB) == deciding


def test_a_move_that_is_decided_while_a_flush_ends_is_not_written_over() -> None:
    """It ended, its volumes come home, and somebody asks for a move just then: the move is on its
    way to the disk when the flush has its answer. It has an end, and the event says which."""
    world = World(seed=9)
    world.kernel.behaviours.add("job", Behaviour(runs_ns=3 * SECOND, exit_status=1))
    world.boot()
    world.import_image(image("app:latest", APP), [APP])
    db = component("db", image="app", argv=["job"], volumes=[volume()])
    world.submit(workload("shop", {**db, "restart": {"policy": "always"}}))
    world.wait_running(DB)
    volumes, moves = world.card.volumes, []
    flush = volumes.flush

    def flush_and_move(cnm: Any, instance: str, generation: int, names: Any, done: Any) -> None:
        def done_as_a_move_is_decided(error: str) -> None:
            if not moves:
                moves.append(world.begin("instance.migrate", instance=DB, to=None))
            done(error)

        flush(cnm, instance, generation, names, done_as_a_move_is_decided)

    volumes.flush = flush_and_move  # type: ignore[method-assign]
    world.run(5)
    assert "result" in moves[0][0]
    codes = [str(event.code) for event in world.events if event.instance == DB]
    assert codes.count("instance.migrating") == 1
    assert codes.count("instance.migrated") + codes.count("instance.migration_failed") == 1
    world.settle()


def test_a_move_to_a_module_that_takes_nothing_says_why_that_one_does_not() -> None:
    world = moving_world(seed=3)
    other = next(cnm for cnm in sorted(world.modules) if cnm != world.where(DB))
    world.call("cnm.drain", id=other)
    with pytest.raises(RpcFailure) as refused:
        world.migrate(DB, other)
    assert "draining" in str(refused.value)
    assert "volume" not in str(refused.value)
