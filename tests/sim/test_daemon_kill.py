"""The daemon killed at any moment: what runs goes on, and nothing is lost, nothing is twice.

DESIGN section 4, rules 2, 6, 11 and 12. The disk keeps what was acknowledged, and a prefix, drawn,
of what was on its way.
"""

import pytest

from firmware.lease import LeaseState
from hal.ports import FenceKind
from tools.sim.documents import component, image, layer, volume, workload
from tools.sim.module import fence_by
from tools.sim.world import World

APP = layer({"bin/app": bytes(400_000)})
INSTANTS = 50
APART_S = 0.004  # so that they cover `make_busy`, which takes some 150 ms


def busy_world(seed: int) -> World:
    """Twelve instances run; then deploys, moves, restarts and deletes go on at once."""
    world = World(seed)
    world.boot()
    world.import_image(image("app:latest", APP), [APP])
    world.submit(workload("base", component(replicas=6), component("app", image="app")))
    world.submit(workload("data", component("db", volumes=[volume()])))
    world.submit(workload("old", component(replicas=3)))
    world.settle()
    return world


def make_busy(world: World) -> None:
    world.know(workload("new", component("app", image="app", replicas=4)))
    world.begin(
        "workload.submit", workload=workload("new", component("app", image="app", replicas=4))
    )
    world.begin("workload.remove", name="old")
    for name in ("base/web/0", "base/web/1", "data/db/0"):
        world.begin("instance.migrate", instance=name)


@pytest.mark.parametrize("instant", range(INSTANTS))
def test_killed_at_any_instant_of_a_busy_run_the_daemon_finds_all_as_it_was(instant: int) -> None:
    world = busy_world(seed=100 + instant)
    make_busy(world)
    world.run(APART_S * (instant + world.kernel.rng("instant").random()))
    at_kill = world.running()
    world.restart_daemon(0.3)
    world.wait_leased(limit_s=2)
    moved = {name for name, row in world.ps().items() if row["target"] or row["phase"] == "MOVING"}
    for name, found in at_kill.items():
        row = world.ps().get(name)
        if row and row["phase"] == "RUNNING" and name not in moved:
            assert world.running().get(name) == found, f"{name} was touched"
    world.settle()
    rows = world.ps()
    expected = {f"base/web/{n}" for n in range(6)} | {"base/app/0", "data/db/0"}
    assert expected <= set(rows)
    assert not any(name.startswith("old/") for name in rows) or instant == 0
    assert all(row["phase"] == "RUNNING" for row in rows.values()), rows
    untouched = {f"base/web/{n}" for n in range(2, 6)} | {"base/app/0"}
    for name in untouched:
        assert world.running()[name] == at_kill[name]
    for name in rows:
        generations = [start.generation for start in world.judge.starts_of(name)]
        assert generations == sorted(set(generations))


@pytest.mark.parametrize("seed", range(6))
def test_killed_again_and_again_it_still_comes_to_rest(seed: int) -> None:
    world = busy_world(seed)
    make_busy(world)
    rng = world.kernel.rng("kills")
    for _ in range(8):
        world.run(rng.random() * 0.4)
        world.restart_daemon(rng.random())
    world.settle()
    assert world.call("status")["epoch"] == 9
    assert all(row["phase"] == "RUNNING" for row in world.ps().values())


@pytest.mark.parametrize("kind", list(FenceKind))
def test_a_daemon_that_is_back_within_the_lease_touches_nothing(kind: FenceKind) -> None:
    world = World(seed=8)
    fence_by(list(world.modules.values()), kind)
    world.boot()
    world.submit(workload("shop", component(replicas=5)))
    world.settle()
    before = world.running()
    world.restart_daemon(3.6)  # watchdog 2 s, restart 0.5 s, ready 1 s (rule 6)
    world.settle()
    assert world.running() == before
    assert "cnm.fencing" not in world.codes()


def test_managing_again_takes_less_than_a_second() -> None:
    world = World(seed=9)
    world.boot()
    world.submit(workload("shop", component(replicas=12)))
    world.settle()
    world.restart_daemon(0.3)
    assert world.wait_leased() < 0.25


@pytest.mark.parametrize("away_s", [5.2, 5.6, 6.0, 12.0])
def test_away_for_longer_than_the_lease_all_is_stopped_by_the_modules_and_started_once(
    away_s: float,
) -> None:
    world = World(seed=int(away_s * 10))
    world.boot()
    world.submit(
        workload(
            "shop",
            component(replicas=3),
            component("once", restart={"policy": "no"}),
            component("db", volumes=[volume()]),
        )
    )
    world.settle()
    names = set(world.running())
    world.kill_daemon()
    world.run(away_s)
    if away_s > 5.5:
        assert world.running() == {}
    world.start_daemon()
    world.settle()
    assert set(world.running()) == names
    for name in names:
        assert len(world.judge.starts_of(name)) == 2


def test_a_module_that_died_while_the_daemon_was_away_is_fenced_and_replaced() -> None:
    world = World(seed=12)
    world.boot()
    world.submit(workload("shop", component(replicas=4)))
    world.settle()
    cnm = next(iter(world.running().values()))[0]
    world.kill_daemon()
    world.modules[cnm].slot.pull()
    world.run(0.3)
    world.start_daemon()
    world.settle()
    assert len(world.running()) == 4
    assert cnm not in {found[0] for found in world.running().values()}


def test_a_module_that_rebooted_while_the_daemon_was_away_starts_its_work_again() -> None:
    world = World(seed=13)
    world.boot()
    world.submit(workload("shop", component(replicas=4)))
    world.settle()
    before = world.running()
    cnm = next(iter(before.values()))[0]
    world.kill_daemon()
    world.modules[cnm].slot.reboot()
    world.run(0.3)
    world.start_daemon()
    took_s = world.settle()
    assert took_s < 2
    assert len(world.running()) == 4


@pytest.mark.parametrize("after_us", [0, 50, 100, 159, 161, 200, 320, 500, 1000])
def test_a_submit_that_was_answered_survives_and_one_that_was_not_is_whole_or_absent(
    after_us: int,
) -> None:
    world = World(seed=after_us)
    world.boot()
    world.know(workload("shop", component(replicas=3)))
    answers = world.begin("workload.submit", workload=workload("shop", component(replicas=3)))
    world.run(after_us / 1e6)
    answered = bool(answers)
    world.restart_daemon(0.3)
    world.settle()
    assert len(world.running()) in ((3,) if answered else (0, 3))


def test_what_was_drained_and_switched_off_stays_so_after_a_restart() -> None:
    world = World(seed=14)
    world.boot()
    world.call("cnm.drain", id="cnm1")
    world.call("cnm.power", slot=2, action="off")
    world.settle()
    world.restart_daemon()
    world.settle()
    world.run(3)
    states = {row["id"]: row["state"] for row in world.call("cnm.list")}
    assert states["cnm1"] == "DRAINING"
    assert not world.modules["cnm2"].slot.power_good
    assert world.lease("cnm3") is LeaseState.LEASED
