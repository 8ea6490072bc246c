"""Disks, windows and bulk data that fail: refused whole, said in words, and nothing is lost."""

import hashlib
from collections.abc import Callable
from functools import partial

import pytest

from firmware.inventory import Cnm
from firmware.transfer import TransferError
from firmware.volume_flush import VolumeFlush
from hal.errors import Unavailable
from hal.mock.instance import Behaviour
from hal.mock.line_faults import LinePlan
from tools.sim.documents import component, image, layer, volume, workload
from tools.sim.world import RpcFailure, World

WEB = "shop/web/0"
DB = "shop/db/0"
APP = layer({"bin/app": bytes(range(256)) * 2_000})


@pytest.fixture
def world() -> World:
    world = World(seed=21)
    world.boot()
    return world


def with_app(world: World, *, replicas: int = 2) -> None:
    world.import_image(image("app:latest", APP), [APP])
    world.submit(workload("shop", component(image="app", replicas=replicas)))


def with_db(world: World) -> None:
    world.submit(workload("shop", component("db", volumes=[volume()])))
    world.settle()
    world.modules[world.where(DB)].write_volume("data", "table", b"rows")


# --- volumes ---


def test_a_volume_is_flushed_when_its_component_is_removed_and_is_there_for_the_next(
    world: World,
) -> None:
    with_db(world)
    world.remove("shop")
    world.settle()
    (row,) = world.call("volume.list")
    assert (row["name"], row["files"], row["bytes"], row["cnms"]) == ("data", 1, 4, [])
    world.submit(workload("shop", component("db", volumes=[volume()])))
    world.settle()
    assert world.modules[world.where(DB)].volume_file("data", "table") == b"rows"


def test_a_volume_is_flushed_on_request_while_its_component_runs(world: World) -> None:
    with_db(world)
    before = world.running()
    row = world.call("volume.flush", name="data")
    assert (row["files"], row["bytes"]) == (1, 4)
    world.run(3)
    (row,) = world.call("volume.list")
    assert 3000 <= row["age_ms"] < 3200
    assert world.running() == before


def test_after_a_failover_the_last_flushed_state_is_used_and_its_age_is_said(
    world: World,
) -> None:
    with_db(world)
    world.call("volume.flush", name="data")
    cnm = world.modules[world.where(DB)]
    cnm.write_volume("data", "table", b"newer rows")
    world.run(7)
    cnm.slot.pull()
    world.settle()
    assert world.where(DB) not in (None, cnm.id)
    assert world.modules[world.where(DB)].volume_file("data", "table") == b"rows"
    (stale,) = [event for event in world.events if event.code == "volume.stale"]
    assert 7000 <= stale.data["age_ms"] <= 7600
    assert "ms old" in stale.text


def test_a_volume_that_was_never_flushed_is_empty_after_a_failover_and_that_is_said(
    world: World,
) -> None:
    with_db(world)
    world.modules[world.where(DB)].slot.pull()
    world.settle()
    (stale,) = [event for event in world.events if event.code == "volume.stale"]
    assert stale.data["age_ms"] is None
    assert "as it was created" in stale.text


def test_a_component_removed_after_its_module_died_says_what_its_volume_lost(
    world: World,
) -> None:
    with_db(world)
    world.call("volume.flush", name="data")
    cnm = world.modules[world.where(DB)]
    cnm.write_volume("data", "table", b"newer rows")
    world.kill_daemon()
    cnm.slot.pull()
    world.start_daemon()
    world.run_until(lambda: world.card.ready)
    world.remove("shop")
    world.settle()
    (stale,) = [event for event in world.events if event.code == "volume.stale"]
    assert "ms old" in stale.text
    (row,) = world.call("volume.list")
    assert row["bytes"] == 4


def test_a_restart_where_it_was_keeps_what_it_wrote(world: World) -> None:
    with_db(world)
    cnm = world.modules[world.where(DB)]
    one = next(iter(cnm.slot.instances.values()))
    one.kill()
    world.settle()
    assert len(world.judge.starts_of(DB)) == 2
    assert world.modules[world.where(DB)].volume_file("data", "table") == b"rows"
    assert "volume.stale" not in world.codes()


def test_what_the_end_of_a_lease_killed_keeps_its_data_when_its_module_is_back(
    world: World,
) -> None:
    with_db(world)
    world.kill_daemon()
    world.run(6)
    assert world.running() == {}
    world.start_daemon()
    world.settle()
    assert world.modules[world.where(DB)].volume_file("data", "table") == b"rows"
    assert "volume.stale" not in world.codes()


def test_two_that_share_a_volume_are_on_one_module_and_both_bring_home_what_they_wrote(
    world: World,
) -> None:
    shared = {"volumes": [volume()], "placement": {"spread": True}}
    world.submit(workload("shop", component("a", **shared), component("b", **shared)))
    world.settle()
    (cnm,) = {found[0] for found in world.running().values()}
    world.modules[cnm].write_volume("data", "from-a", b"1")
    world.modules[cnm].write_volume("data", "from-b", b"2")
    world.remove("shop")
    world.settle()
    (row,) = world.call("volume.list")
    assert row["files"] == 2
    assert "volume.flush_failed" not in world.codes()
    assert "volume.stale" not in world.codes()


def two_that_share(world: World) -> dict[str, tuple[Cnm, int]]:
    shared = {"volumes": [volume()], "placement": {"spread": True}}
    world.submit(workload("shop", component("a", **shared), component("b", **shared)))
    world.settle()
    running = world.running()
    found = {}
    for name in ("shop/a/0", "shop/b/0"):
        cnm = world.card.inventory.get(running[name][0])
        assert cnm is not None
        found[name] = (cnm, running[name][1])
    return found


def test_what_one_of_them_brought_home_later_is_not_undone_by_the_others_older_look(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is read before the second has written, and is slow to come home."""
    both = two_that_share(world)
    cnm, _ = both["shop/a/0"]
    module, volumes = world.modules[cnm.id], world.card.volumes
    module.write_volume("data", "old", b"1" * 64)
    slow: list[Callable[[], None]] = []
    pull_one = VolumeFlush._pull_one

    def pull(
        flush: VolumeFlush, digest: bytes, done: Callable[[TransferError | None], None]
    ) -> None:
        if flush._instance == "shop/a/0" and not slow:
            slow.append(lambda: pull_one(flush, digest, done))
        else:
            pull_one(flush, digest, done)

    monkeypatch.setattr(VolumeFlush, "_pull_one", pull)
    answers: dict[str, str] = {}
    for name, (where, generation) in both.items():
        volumes.flush(where, name, generation, ["data"], partial(answers.__setitem__, name))
        world.run_until(lambda: bool(slow), 5)
        module.write_volume("data", "new", b"2")
    world.run(2)
    slow[0]()
    world.run_until(lambda: len(answers) == 2, 10)
    assert set(answers.values()) == {""}
    (row,) = world.call("volume.list")
    assert row["files"] == 2, "what was told to be safe is what counts"


def test_a_store_that_can_not_be_asked_fails_the_flush_in_words(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = two_that_share(world)
    cnm, generation = both["shop/a/0"]
    world.modules[cnm.id].write_volume("data", "file", b"1" * 64)
    volumes = world.card.volumes
    has = volumes._blobs.has
    for broken_at in (1, 2):
        asked: list[bytes] = []

        def fails(digest: bytes, at: int = broken_at, seen: list[bytes] = asked) -> int | None:
            seen.append(digest)
            if len(seen) >= at:
                raise Unavailable("EIO")
            return has(digest)

        monkeypatch.setattr(volumes._blobs, "has", fails)
        answers: list[str] = []
        volumes.flush(cnm, "shop/a/0", generation, ["data"], answers.append)
        world.run_until(lambda found=answers: bool(found), 10)  # type: ignore[misc]
        assert "EIO" in answers[0]
        monkeypatch.undo()
    assert volumes.flushing == 0


def test_those_who_share_a_volume_fail_over_together(world: World) -> None:
    shared = {"volumes": [volume()], "placement": {"spread": True}, "replicas": 3}
    world.submit(workload("shop", component("a", **shared)))
    world.settle()
    (cnm,) = {found[0] for found in world.running().values()}
    world.modules[cnm].slot.pull()
    world.settle()
    assert len(world.running()) == 3
    (other,) = {found[0] for found in world.running().values()}
    assert other != cnm


def test_one_of_those_who_share_a_volume_never_goes_elsewhere_alone(world: World) -> None:
    shared = {"volumes": [volume()]}
    world.submit(workload("shop", component("a", **shared)))
    world.settle()
    world.kernel.behaviours.add("b", Behaviour(start_error="no such file"))
    world.submit(workload("more", component("b", **shared)))
    world.run(10)
    assert world.ps()["more/b/0"]["cnm"] == world.where("shop/a/0")


def test_an_agent_that_hangs_while_a_volume_comes_home_costs_time_and_no_data(
    world: World,
) -> None:
    with_db(world)
    module = world.modules[world.where(DB)]
    world.remove("shop")
    world.run_until(lambda: any(job[0] == "flush" for job in world.card.deployer._jobs))
    world.kernel.pause(module.agent_node)
    world.settle()
    assert "volume.stale" not in world.codes()
    (row,) = world.call("volume.list")
    assert row["bytes"] == 4


def test_an_agent_that_dies_while_a_volume_comes_home_delays_it_only(world: World) -> None:
    for after_ms in (0, 1, 2, 4, 8, 16):
        with_db(world)
        world.remove("shop")
        world.run(0.003 + after_ms / 1000)
        for module in world.modules.values():
            world.kernel.kill(module.agent_node)
        world.settle()
        assert "volume.stale" not in world.codes()
        (row,) = world.call("volume.list")
        assert row["bytes"] == 4


# --- windows and chunks ---


def test_a_window_that_is_cut_during_staging_heals_and_the_staging_goes_on(world: World) -> None:
    for module in world.modules.values():
        module.window.cut()
    with_app(world)
    world.run(3)
    assert world.running() == {}
    for module in world.modules.values():
        module.window.cut(False)
    world.settle()
    assert len(world.running()) == 2


def test_what_one_module_can_not_take_goes_to_another(world: World) -> None:
    world.import_image(image("app:latest", APP), [APP])
    world.modules["cnm0"].window.cut()
    world.modules["cnm0"].slot.disk.full = True
    world.submit(workload("shop", component(image="app", replicas=2)))
    world.settle(limit_s=300)
    assert len(world.running()) == 2
    assert "cnm0" not in {found[0] for found in world.running().values()}


def test_what_no_module_can_take_goes_round_them_ever_more_slowly(world: World) -> None:
    world.import_image(image("app:latest", APP), [APP])
    for module in world.modules.values():
        module.slot.disk.full = True
    world.submit(workload("shop", component(image="app")))
    world.run(60)
    soon = world.codes().count("instance.staging")
    world.run(60)
    later = world.codes().count("instance.staging") - soon
    assert 0 < later <= 10  # three on a module, with ten seconds between them
    for module in world.modules.values():
        module.slot.disk.full = False
    world.settle(limit_s=60)
    assert len(world.running()) == 1


def test_a_peer_that_vanishes_from_the_window_for_a_while_costs_time_only(world: World) -> None:
    with_app(world, replicas=4)
    world.run(0.004)
    for module in world.modules.values():
        module.window.all_ones("ba")
    world.run(1)
    for module in world.modules.values():
        module.window.all_ones("ba", False)
    world.settle()
    assert len(world.running()) == 4


@pytest.mark.parametrize("seed", range(5))
def test_chunks_that_are_corrupted_are_sent_again_and_the_image_is_whole(seed: int) -> None:
    world = World(seed)
    world.boot()
    rng = world.kernel.rng("corruption")
    for module in world.modules.values():
        for _ in range(20):
            module.window.corrupt_next_write("ab", rng.randrange(1 << 16))
    with_app(world)
    world.settle()
    for cnm, _, _ in world.running().values():
        disk = world.modules[cnm].slot.disk
        assert disk.blobs[hashlib.sha256(APP).digest()] == APP


def test_noise_on_the_control_links_costs_time_only(world: World) -> None:
    plan = LinePlan(drop=0.02, flip=0.02, truncate=0.01, garbage=0.02, duplicate=0.02, reorder=0.01)
    for module in world.modules.values():
        for line in module.lines.values():
            line.a_to_b.faults.plan = line.b_to_a.faults.plan = plan
    with_app(world, replicas=4)
    world.wait_running(*(f"shop/web/{n}" for n in range(4)), limit_s=60)
    for module in world.modules.values():
        for line in module.lines.values():
            line.a_to_b.faults.plan = line.b_to_a.faults.plan = None
    world.settle()
    assert len(world.running()) == 4


def test_an_image_blob_that_rotted_on_the_card_is_not_run(world: World) -> None:
    world.import_image(image("app:latest", APP), [APP])
    world.disk.rot(hashlib.sha256(APP).digest(), at=1000)
    world.submit(workload("shop", component(image="app")))
    world.run(20)
    assert world.running() == {}
    assert "hash" in world.ps()[WEB]["reason"]


def test_an_import_with_a_wrong_digest_is_refused_and_can_be_done_again(world: World) -> None:
    good, bad = APP, APP[:-1] + b"x"
    with pytest.raises(RpcFailure) as refused:
        world.import_image(image("app:latest", good), [bad])
    assert refused.value.code == "bad_digest"
    with_app(world)
    world.settle()
    assert len(world.running()) == 2


# --- the journal ---


def test_with_a_full_journal_a_submit_is_refused_and_what_runs_is_kept(world: World) -> None:
    world.submit(workload())
    world.settle()
    before = world.running()
    world.disk.full = True
    with pytest.raises(RpcFailure) as refused:
        world.submit(workload("more"))
    assert refused.value.code == "journal_failed"
    world.run(5)
    assert world.running() == before
    world.disk.full = False
    world.submit(workload("more"))
    world.settle()
    assert len(world.running()) == 2


def test_with_a_full_journal_a_lost_module_is_made_good_when_there_is_room_again(
    world: World,
) -> None:
    world.submit(workload("shop", component(replicas=4)))
    world.settle()
    cnm = world.where(WEB)
    world.disk.full = True
    world.modules[cnm].slot.pull()
    world.run(10)
    assert WEB not in world.running()
    world.disk.full = False
    world.settle()
    assert len(world.running()) == 4


def test_after_a_failed_sync_new_work_is_refused_and_what_runs_is_kept(world: World) -> None:
    world.submit(workload("shop", component(replicas=3)))
    world.settle()
    before = world.running()
    world.disk.fail_sync = True
    with pytest.raises(RpcFailure) as refused:
        world.submit(workload("more"))
    assert refused.value.code == "journal_failed"
    with pytest.raises(RpcFailure, match="mend the disk") as refused:
        world.submit(workload("again"))
    assert world.call("status")["journal"]["failed"]
    steps = world.kernel.nodes["daemon"].steps
    world.run(20)
    assert world.running() == before
    assert world.kernel.nodes["daemon"].steps - steps < 20_000, "it does not run hot"
    assert world.codes().count("journal.failed") < 5
    world.restart_daemon()
    world.settle()
    assert {k: v for k, v in world.running().items() if k in before} == before


def test_a_failed_sync_in_the_middle_of_a_failover_waits_for_a_new_daemon(world: World) -> None:
    world.submit(workload("shop", component(replicas=3)))
    world.settle()
    cnm = world.where(WEB)
    world.disk.fail_sync = True
    world.modules[cnm].slot.pull()
    world.run(10)
    world.restart_daemon()
    world.settle()
    assert len(world.running()) == 3


def test_a_journal_that_can_not_be_read_lets_the_daemon_not_start_and_touches_nothing(
    world: World,
) -> None:
    world.submit(workload("shop", component(replicas=3)))
    world.settle()
    before = world.running()
    world.kill_daemon()
    world.disk.fail_reads = True
    world.start_daemon()
    world.run(1)
    assert world.start_error is not None
    assert "can't be read" in world.start_error
    assert world.running() == before
    world.disk.fail_reads = False  # its supervisor goes on starting it
    world.settle()
    assert world.running() == before
