"""From power-on to RUNNING and to nothing left: a whole card on virtual time."""

from dataclasses import replace
from itertools import pairwise

import pytest

from hal.mock.instance import Behaviour
from tools.sim.documents import component, image, layer, volume, workload
from tools.sim.world import RpcFailure, World

WEB = "shop/web/0"


@pytest.fixture
def world() -> World:
    world = World(seed=11)
    world.boot()
    return world


def test_every_module_is_found_booted_and_leased_by_itself() -> None:
    world = World(seed=1)
    assert world.boot() < 1.0
    rows = world.call("cnm.list")
    assert [row["state"] for row in rows] == ["LEASED"] * 4
    assert world.call("status")["epoch"] == 1
    assert world.unsettled() == ""


def test_a_submitted_component_runs_on_one_module_only(world: World) -> None:
    world.submit(workload())
    world.settle()
    row = world.ps()[WEB]
    assert (row["phase"], row["restarts"]) == ("RUNNING", 0)
    assert [start.cnm for start in world.judge.starts_of(WEB)] == [row["cnm"]]


def test_a_component_with_an_image_runs_from_its_layers(world: World) -> None:
    layers = [layer({"bin/app": b"#!" + bytes(200_000)}), layer({"etc/app": b"conf"})]
    with pytest.raises(RpcFailure, match="is not on this card") as refused:
        world.submit(workload("shop", component(image="app")))
    assert refused.value.code == "image_missing"
    world.import_image(image("app:latest", *layers), layers)
    world.submit(workload("shop", component(image="app", argv=None)))
    world.settle()
    cnm = world.modules[world.running()[WEB][0]]
    one = next(iter(cnm.slot.instances.values()))
    assert one.spec.argv == ("app",) or list(one.spec.argv) == ["app"]
    root = one.spec.rootfs.removeprefix("/")
    assert cnm.slot.disk.tree.find(f"{root}/etc/app") is not None


def test_what_ended_leaves_its_room_to_what_waits_for_it(world: World) -> None:
    world.kernel.behaviours.add("web", Behaviour(runs_ns=3_000_000_000))
    whole = {"cpu_milli": 8000, "memory_bytes": 1 << 20}
    job = component(restart={"policy": "no"}, replicas=4, resources=whole)
    world.submit(workload("jobs", job))
    world.wait_running(*(f"jobs/web/{index}" for index in range(4)))
    world.submit(workload("more", component("db", replicas=4, resources=whole)))
    world.wait_running(*(f"more/db/{index}" for index in range(4)))


@pytest.mark.parametrize(
    ("policy", "status", "starts", "phase"),
    [
        ("no", 0, 1, "STOPPED"),
        ("no", 3, 1, "FAILED"),
        ("on-failure", 0, 1, "STOPPED"),
        ("on-failure", 3, 4, "FAILED"),
        ("always", 0, 4, "STOPPED"),
        ("always", 3, 4, "FAILED"),
    ],
)
def test_what_ends_by_itself_follows_its_restart_policy(
    world: World, policy: str, status: int, starts: int, phase: str
) -> None:
    world.kernel.behaviours.add("web", Behaviour(runs_ns=200_000_000, exit_status=status))
    restart = {"policy": policy, "max_attempts": 3}
    world.submit(workload("shop", component(restart=restart)))
    world.wait_phase(WEB, phase)
    world.settle()
    assert len(world.judge.starts_of(WEB)) == starts
    assert world.ps()[WEB]["exit_status"] == status
    world.remove("shop")
    world.settle()
    assert world.ps() == {}


def test_always_means_again_and_again_more_and_more_slowly(world: World) -> None:
    world.kernel.behaviours.add("web", Behaviour(runs_ns=100_000_000))
    world.submit(workload())
    world.run(30)
    starts = [start.at_ns for start in world.judge.starts_of(WEB)]
    gaps = [later - earlier for earlier, later in pairwise(starts)]
    assert 6 <= len(starts) <= 10
    assert gaps == sorted(gaps)
    assert world.ps()[WEB]["restarts"] == len(starts) - 1


def test_a_component_waits_until_what_it_depends_on_is_there(world: World) -> None:
    check = {"test": ["probe"], "interval_ms": 1000, "timeout_ms": 500, "retries": 2}
    world.kernel.behaviours.add("init", Behaviour(runs_ns=500_000_000))
    world.kernel.behaviours.add("db", Behaviour(exec_results={"probe": (0, b"")}))
    world.submit(
        workload(
            "shop",
            component(depends_on=[{"component": "db", "condition": "healthy"}]),
            component("db", healthcheck=check, depends_on=[
                {"component": "init", "condition": "completed"}
            ]),
            component("init", restart={"policy": "no"}),
        )
    )  # fmt: skip
    world.run_until(lambda: "waits for db" in world.ps().get(WEB, {}).get("reason", ""))
    world.settle()
    order = [start.instance for start in world.judge.starts]
    assert order == ["shop/init/0", "shop/db/0", WEB]
    first, second, third = (start.at_ns for start in world.judge.starts)
    assert second - first >= 500_000_000
    assert third - second >= 500_000_000  # health.FIRST_CHECK_MS


def test_what_fits_nowhere_is_pending_with_a_reason_for_each_module(world: World) -> None:
    big = component(resources={"cpu_milli": 8000, "memory_bytes": 1 << 30}, replicas=5)
    world.submit(workload("big", big))
    world.settle()
    rows = world.ps()
    waiting = [name for name, row in rows.items() if row["phase"] == "PENDING"]
    assert len(waiting) == 1
    assert set(rows[waiting[0]]["pending"]) == set(world.modules)
    assert "cpu" in rows[waiting[0]]["pending"]["cnm0"] or "processor" in str(rows[waiting[0]])
    world.submit(workload("small", component(resources={"cpu_milli": 1, "memory_bytes": 1 << 20})))
    world.run(1)
    assert world.ps()["small/web/0"]["phase"] == "PENDING"
    world.remove("big")
    world.settle()
    assert world.where("small/web/0") is not None


def test_what_can_never_fit_is_refused_and_nothing_is_kept(world: World) -> None:
    with pytest.raises(RpcFailure) as refused:
        world.submit(workload("huge", component(resources={"cpu_milli": 9000})))
    assert refused.value.code == "never_fits"
    assert world.ps() == {}


def test_room_that_comes_up_is_used_by_what_waited_for_it(world: World) -> None:
    full = {"resources": {"cpu_milli": 8000, "memory_bytes": 1 << 20}}
    world.submit(workload("a", component(replicas=4, **full)))
    world.settle()
    world.submit(workload("b", component(**full)))
    world.settle()
    assert world.ps()["b/web/0"]["phase"] == "PENDING"
    world.remove("a")
    world.settle()
    assert list(world.running()) == ["b/web/0"]


def test_removed_means_that_nothing_is_left_anywhere(world: World) -> None:
    layers = [layer({"bin/app": bytes(50_000)})]
    world.import_image(image("app:latest", *layers), layers)
    world.submit(
        workload(
            "shop",
            component(image="app", replicas=3),
            component("db", image="app", volumes=[volume()]),
        )
    )
    world.settle()
    world.remove("shop")
    world.settle()
    assert world.running() == {}
    assert world.ps() == {}
    assert not any(key[0] in ("assignment", "workload") for key in world.disk.journal.durable)
    world.run(2)
    assert {name: cnm.leftovers() for name, cnm in world.modules.items()} == {
        name: set() for name in world.modules
    }


@pytest.mark.parametrize("after_ms", [0, 1, 2, 3, 5, 8, 12, 20, 35, 60, 100, 150])
def test_a_workload_removed_in_the_middle_of_its_deploy_leaves_nothing(after_ms: int) -> None:
    world = World(seed=after_ms)
    world.boot()
    layers = [layer({"bin/app": bytes(300_000)})]
    world.import_image(image("app:latest", *layers), layers)
    world.submit(workload("shop", component(image="app", replicas=5, volumes=[volume()])))
    world.run(after_ms / 1000)
    world.remove("shop")
    world.settle()
    world.run(2)
    assert world.running() == {}
    assert [cnm.leftovers() for cnm in world.modules.values()] == [set()] * 4


def test_the_same_name_is_refused_while_it_is_there_and_taken_when_it_is_gone(
    world: World,
) -> None:
    world.submit(workload())
    with pytest.raises(RpcFailure) as refused:
        world.submit(workload())
    assert refused.value.code == "name_taken"
    world.settle()
    world.remove("shop")
    with pytest.raises(RpcFailure, match="still being removed"):
        world.submit(workload())
    world.settle()
    world.submit(workload())
    world.settle()
    generations = [start.generation for start in world.judge.starts_of(WEB)]
    assert generations == sorted(set(generations))


def test_the_same_seed_gives_the_same_run_and_another_seed_another() -> None:
    def trace(seed: int) -> str:
        world = World(seed)
        world.boot()
        world.submit(workload("shop", component(replicas=3)))
        world.settle()
        return world.kernel.trace.sha256()

    assert trace(5) == trace(5)
    assert trace(5) != trace(6)


def test_a_slot_that_gets_another_module_of_the_same_size_is_known_by_what_it_says(
    world: World,
) -> None:
    module = world.modules["cnm3"]
    module.slot.pull()
    world.run(12)
    other = replace(module.config.module, arch="riscv64", labels={"zone": "z"})
    module.config = replace(module.config, module=other)
    module.slot.insert()
    world.wait_leased()
    world.submit(workload("there", component(placement={"labels": {"zone": "z"}})))
    world.wait_running("there/web/0")
    assert world.where("there/web/0") == "cnm3"
    world.submit(workload("here", component(replicas=3, placement={"labels": {"zone": "b"}})))
    world.wait_running("here/web/0", "here/web/1", "here/web/2")
    assert {world.where(f"here/web/{index}") for index in range(3)} == {"cnm2"}
