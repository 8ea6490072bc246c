"""Init and agent together on the virtual kernel, spoken to by a real endpoint over mock lines."""

import hashlib
import json
from dataclasses import replace

import pytest

from firmware.endpoint import RequestRefused, RequestTimedOut
from firmware.loop import MS
from firmware.signs_of_life import PING_MIN_MS
from hal.mock.instance import Behaviour
from hal.mock.kernel import VirtualKernel
from hal.mock.program import SIGKILL
from hal.mock.tree import File
from protocol.apf import (
    LOG_READ_MAX_BYTES,
    AbortRequest,
    CapabilitiesRequest,
    CommitRequest,
    Ctx,
    DeployRequest,
    ExitReason,
    FlushState,
    Health,
    InitState,
    InstanceState,
    PrepareRequest,
    RefusalReason,
    RemoveRequest,
    Role,
    StartRequest,
    StopRequest,
    VolumeFlushRequest,
    VolumeStateRequest,
)
from tests.unit.firmware.cnm.card_side import CardSide
from tests.unit.firmware.cnm.mock_cnm import MockCnm, layer, mock_card

NAME = "shop/web/0"
FOR_EVER = 1 << 62


@pytest.fixture
def kernel() -> VirtualKernel:
    return VirtualKernel(7)


@pytest.fixture
def card(kernel) -> CardSide:
    """A card that has adopted a booted CNM."""
    card = mock_card(MockCnm(kernel))
    card.cnm.slot.switch_on()
    card.adopt()
    return card


def kill_agent(card: CardSide) -> None:
    card.cnm.kernel.programs.signal("cnm0/agent", SIGKILL)


def test_a_booted_cnm_says_who_it_is_on_both_links(kernel) -> None:
    card = mock_card(MockCnm(kernel))
    card.cnm.slot.switch_on()
    mc, agent = card.hello(card.mc), card.hello(card.agent)
    assert (mc.role, agent.role) == (Role.MC, Role.AGENT)
    assert mc.boot_id == agent.boot_id
    assert mc.bound_card_uuid == card.card_uuid
    capabilities = card.ask(CapabilitiesRequest(), card.mc)
    assert capabilities.cores_milli == 4000
    assert capabilities.runtimes == ("oci", "process")
    assert dict(capabilities.labels) == {"rack": "3"}


def test_the_uuid_stays_over_a_boot_and_the_boot_id_does_not(kernel) -> None:
    card = mock_card(MockCnm(kernel))
    card.cnm.slot.switch_on()
    first = card.hello(card.mc)
    card.cnm.slot.reboot()
    second = card.hello(card.mc)
    assert first.cnm_uuid == second.cnm_uuid
    assert first.boot_id != second.boot_id


def test_heartbeats_come_at_their_rate_and_tell_the_lease_and_the_agents_age(card) -> None:
    card.heartbeats.clear()
    card.run(1000)
    assert 9 <= len(card.heartbeats) <= 11
    last = card.heartbeats[-1]
    assert last.init_state is InitState.READY
    assert last.bound_epoch == card.epoch
    assert 4500 < last.lease_left_ms <= 5000
    assert last.agent_age_ms <= PING_MIN_MS
    assert card.telemetry
    assert card.telemetry[-1].reading("temp_mdegc") is None


def test_a_foreign_card_is_told_whose_the_cnm_is_and_commands_nothing(card) -> None:
    card.card_uuid = b"X" * 16
    assert card.hello(card.mc).bound_card_uuid == b"C" * 16
    assert card.hello(card.agent).bound_card_uuid == b"C" * 16
    stop = StopRequest(ctx=card.ctx, instance=NAME, generation=1, grace_ms=0)
    assert card.refusal(stop) is RefusalReason.FOREIGN_CARD


def test_an_older_epoch_is_refused_by_both_ends_and_its_grants_do_nothing(card) -> None:
    card.epoch = 5
    card.hello(card.mc)
    card.epoch = 4
    for end in (card.mc, card.agent):
        answer = card.hello(end)
        assert isinstance(answer, RequestRefused)
        assert answer.refusal.reason == RefusalReason.STALE_EPOCH
    card.run(6000)  # only grants of epoch 4 come now
    assert card.heartbeats[-1].lease_left_ms == 0


def test_another_protocol_version_or_layout_is_answered_but_does_not_bind(kernel) -> None:
    card = mock_card(MockCnm(kernel))
    card.cnm.slot.switch_on()
    assert card.hello(card.mc, version=9).bound_card_uuid == bytes(16)
    assert card.hello(card.mc, layout=b"12345678").bound_card_uuid == bytes(16)
    assert card.hello(card.agent, layout=b"12345678").bound_card_uuid == bytes(16)
    assert card.hello(card.agent).bound_card_uuid == card.card_uuid


def test_one_instance_from_nothing_to_running_and_away_again(card) -> None:
    data = layer({"bin/web": b"program"})
    image = card.put(data)
    spec = card.spec(runtime="oci", layers=[image.hex()], env={"A": "1"}, tmpfs=["/run"])
    first = card.ask(DeployRequest(ctx=card.ctx, instance=NAME, generation=1, spec_digest=spec))
    assert first.missing == (spec,)
    assert first.state == InstanceState.ABSENT
    assert card.deploy(spec).state == InstanceState.STAGING
    card.wait_state(InstanceState.PREPARED)
    assert card.start().state == InstanceState.STARTING
    status = card.wait_state(InstanceState.RUNNING)
    assert status.pid > 0
    assert status.cgroup
    running = next(iter(card.cnm.slot.instances.values()))
    assert running.spec.rootfs.startswith("/state/instances/")
    assert [(m.source, m.target) for m in running.spec.mounts] == [("tmpfs", "/run")]
    stop = StopRequest(ctx=card.ctx, instance=NAME, generation=1, grace_ms=1000)
    assert card.ask(stop).state == InstanceState.STOPPING
    assert card.wait_state(InstanceState.STOPPED).exit_reason == ExitReason.SIGNALED
    card.ask(RemoveRequest(ctx=card.ctx, instance=NAME, generation=1))
    assert card.statuses() == {}
    card.run(200)
    assert card.cnm.slot.disk.tree.find("state/instances/" + running.spec.key) is None


def test_a_prepared_move_commits_or_is_aborted(card) -> None:
    spec = card.spec()
    card.push(spec)
    for g, end in ((1, AbortRequest), (2, CommitRequest)):
        card.ask(PrepareRequest(ctx=card.ctx, instance=NAME, generation=g, spec_digest=spec))
        card.wait_state(InstanceState.PREPARED)
        reply = card.ask(end(ctx=card.ctx, instance=NAME, generation=g))
    assert reply.state == InstanceState.STARTING
    assert card.wait_state(InstanceState.RUNNING).generation == 2


def test_a_wrong_spec_is_refused_and_changes_nothing(card) -> None:
    cases = {
        RefusalReason.BAD_SPEC: [
            card.spec(argv=[]),
            card.spec(runtime="oci", layers=[]),
            card.spec(instance="other/web/0"),
            card.put(b"not json"),
        ],
        RefusalReason.NO_RUNTIME: [card.spec(runtime="vm")],
    }
    for reason, specs in cases.items():
        for spec in specs:
            card.push(spec)
            request = DeployRequest(ctx=card.ctx, instance=NAME, generation=1, spec_digest=spec)
            assert card.refusal(request) is reason
    assert card.statuses() == {}


def test_a_layer_that_is_no_tar_fails_the_instance_with_the_reason(card) -> None:
    spec = card.spec(runtime="oci", layers=[card.put(b"garbage" * 100).hex()])
    card.deploy(spec)
    assert "image" in card.wait_state(InstanceState.FAILED).text


def test_a_program_that_does_not_start_is_failed_never_running(card) -> None:
    card.cnm.kernel.behaviours.add("web", Behaviour(start_error="exec web: no such file"))
    card.deploy(card.spec())
    card.wait_state(InstanceState.PREPARED)
    card.start()
    assert "no such file" in card.wait_state(InstanceState.FAILED).text


def test_a_lease_that_is_not_renewed_kills_all_within_s_and_says_so(card) -> None:
    card.run_instance()
    card.granting = False
    expiry_ms = card.heartbeats[-1].lease_left_ms
    card.run(expiry_ms - 200)
    assert card.statuses()[NAME].state == InstanceState.RUNNING
    card.run(200 + 500)
    assert not any(found.alive for found in card.cnm.slot.instances.values())
    status = card.statuses()[NAME]
    assert (status.state, status.text) == (InstanceState.STOPPED, "lease expired")
    assert card.heartbeats[-1].init_state is InitState.LEASE_EXPIRED
    card.granting = True
    card.run(300)
    assert card.heartbeats[-1].init_state is InitState.READY
    start = StartRequest(ctx=card.ctx, instance=NAME, generation=1)
    assert card.ask(start).state == InstanceState.STOPPED
    assert card.statuses()[NAME].state == InstanceState.STOPPED
    assert card.run_instance(g=2).generation == 2


def test_what_cannot_be_killed_in_time_takes_the_whole_cnm_with_it(card) -> None:
    card.cnm.kernel.behaviours.add("web", Behaviour(kill_ns=FOR_EVER))
    card.run_instance()
    card.granting = False
    card.until(lambda: card.cnm.halted)
    assert "outlived the lease" in card.cnm.halted[0]
    assert not card.cnm.slot.power_good


def test_an_agent_that_is_killed_comes_back_and_finds_all_as_it_was(card) -> None:
    before = card.run_instance()
    kill_agent(card)
    card.until(lambda: card.cnm.agents == 2)
    assert card.hello(card.agent).boot_id == card.boot_id
    after = card.statuses()[NAME]
    assert after == before
    assert card.heartbeats[-1].init_state is InitState.READY
    card.run_instance("shop/web/1")


def test_a_staging_that_the_agents_death_cut_short_goes_on(card) -> None:
    image = card.put(layer({"bin/web": b"x" * 100_000}))
    spec = card.spec(runtime="oci", layers=[image.hex()])
    card.push(spec)
    card.push(image)
    card.cnm.slot.disk.sync_ns = 1_000 * MS  # a slow disk
    card.deploy(spec)
    assert card.cnm.init.table.find(NAME).state is InstanceState.STAGING
    kill_agent(card)
    assert card.wait_state(InstanceState.PREPARED).state == InstanceState.PREPARED
    assert card.cnm.agents == 2


def test_an_agent_that_hangs_is_killed_and_started_again(card) -> None:
    card.run(1000)  # it has given signs of life before
    card.cnm.kernel.pause("cnm0/agent")
    card.until(lambda: card.heartbeats[-1].agent_age_ms > 5000)
    card.until(lambda: card.cnm.agents == 2, limit_s=30)
    card.until(lambda: card.heartbeats[-1].agent_age_ms <= PING_MIN_MS)


def test_output_is_read_by_offset_and_survives_the_agent(card) -> None:
    card.cnm.kernel.behaviours.add("web", Behaviour(output=b"hello from web\n"))
    card.run_instance()
    card.run(100)

    def read(offset: int):
        return card.call(
            lambda done: card.transfers.read_log(NAME, offset, LOG_READ_MAX_BYTES, done)
        )

    assert read(0).data == b"hello from web\n"
    kill_agent(card)
    card.until(lambda: card.cnm.agents == 2)
    card.hello(card.agent)
    card.run(1000)
    tail = read(6)
    assert (tail.data, tail.end) == (b"from web\n", 15)


def test_a_volume_is_staged_flushed_and_deleted_with_its_last_user(card) -> None:
    content = card.put(b"old content")
    manifest = {
        "schema": "apf-volume/1",
        "entries": [
            {"path": "f", "kind": "file", "mode": 420, "size_bytes": 11,
             "digest": content.hex(), "target": ""},
        ],
    }  # fmt: skip
    volume = {
        "name": "data",
        "target": "/data",
        "read_only": False,
        "manifest": card.put(json.dumps(manifest).encode()).hex(),
    }
    card.run_instance(volumes=[volume])
    disk = card.cnm.slot.disk
    assert disk.tree.find("state/volumes/data/f").data == b"old content"
    disk.tree.find("state/volumes/data/f").data = b"new content"
    flush = VolumeFlushRequest(ctx=card.ctx, instance=NAME, generation=1, volume="data")
    number = card.ask(flush).flush_id
    ask = VolumeStateRequest(volume="data", flush_id=number)
    while (state := card.ask(ask)).state == FlushState.SCANNING:
        card.run(10)
    assert (state.state, state.files, state.bytes) == (FlushState.READY, 1, 11)
    fresh = hashlib.sha256(b"new content").digest()
    assert card.call(lambda done: card.transfers.pull(state.manifest_digest, done)) is None
    assert card.call(lambda done: card.transfers.pull(fresh, done)) is None
    assert card.refusal(replace(flush, generation=2)) is RefusalReason.UNKNOWN_INSTANCE
    assert card.refusal(replace(flush, volume="other")) is RefusalReason.BAD_STATE
    card.ask(StopRequest(ctx=card.ctx, instance=NAME, generation=1, grace_ms=0))
    card.wait_state(InstanceState.STOPPED)
    card.ask(RemoveRequest(ctx=card.ctx, instance=NAME, generation=1))
    card.run(200)
    assert disk.tree.find("state/volumes/data") is None


def test_a_volume_in_use_is_shared_and_not_checked_out_over(card) -> None:
    empty = {"schema": "apf-volume/1", "entries": []}
    volume = {
        "name": "data",
        "target": "/d",
        "read_only": False,
        "manifest": card.put(json.dumps(empty).encode()).hex(),
    }
    card.run_instance(volumes=[volume])
    disk = card.cnm.slot.disk
    disk.tree.put("state/volumes/data/live", File(b"live", 0o644))
    card.run_instance("shop/web/1", volumes=[volume])
    assert disk.tree.find("state/volumes/data/live") is not None


def test_the_missing_files_of_a_volume_are_named_before_it_is_staged(card) -> None:
    entries = [
        {"path": f"f{i:03}", "kind": "file", "mode": 420, "size_bytes": 4,
         "digest": card.put(f"{i:04}".encode()).hex(), "target": ""}
        for i in range(150)
    ]  # fmt: skip
    manifest = card.put(json.dumps({"schema": "apf-volume/1", "entries": entries}).encode())
    volume = {"name": "v", "target": "/v", "read_only": False, "manifest": manifest.hex()}
    spec = card.spec(volumes=[volume])
    request = DeployRequest(ctx=card.ctx, instance=NAME, generation=1, spec_digest=spec)
    counts = []
    while missing := card.ask(request).missing:
        counts.append(len(missing))
        for digest in missing:
            card.push(digest)
    assert counts == [1, 1, 64, 64, 22]
    card.wait_state(InstanceState.PREPARED)


def test_health_shows_in_the_status(card) -> None:
    check = {"test": ["CMD", "probe"], "interval_ms": 1000, "timeout_ms": 500, "retries": 2,
             "start_period_ms": 0}  # fmt: skip
    card.cnm.kernel.behaviours.add("web", Behaviour(exec_results={"probe": (0, b"")}))
    assert card.run_instance(healthcheck=check).health == Health.STARTING
    card.run(1000)
    assert card.statuses()[NAME].health == Health.HEALTHY


def test_a_change_is_told_at_once_and_usage_comes_by_itself(card) -> None:
    card.cnm.kernel.behaviours.add("web", Behaviour(runs_ns=3_000_000_000, exit_status=7))
    card.run_instance()
    card.changes.clear()
    card.run(1500)
    assert card.usage[-1].entries[0].instance == NAME
    assert card.usage[-1].entries[0].reading("memory_bytes")
    card.until(lambda: card.changes)
    status = card.statuses()[NAME]
    assert (status.state, status.exit_reason, status.exit_status) == (
        InstanceState.EXITED,
        ExitReason.EXITED,
        7,
    )


def test_status_comes_in_pages_that_fit_a_message(card) -> None:
    names = sorted(f"{'w' * 60}/{'c' * 50}/{i}" for i in range(40))
    for name in names:
        card.ask(StopRequest(ctx=card.ctx, instance=name, generation=1, grace_ms=0))
        spec = card.spec(name, env={"LONG": "x"})
        card.deploy(spec, name, 2)
    assert sorted(card.statuses()) == names


def test_a_shutdown_ends_instances_and_agent_and_says_stopping(card) -> None:
    card.run_instance()
    card.cnm.kernel.programs.signal("cnm0/init", 15)
    card.until(lambda: "cnm0/init" not in card.cnm.kernel.programs.running)
    assert not card.cnm.slot.instances
    assert card.heartbeats[-1].init_state is InitState.STOPPING


def test_after_a_reboot_nothing_runs_and_old_commands_are_foreign(card) -> None:
    card.run_instance()
    old = card.ctx
    card.cnm.slot.reboot()
    card.adopt()
    assert card.statuses() == {}
    spec = card.spec()
    request = DeployRequest(ctx=old, instance=NAME, generation=1, spec_digest=spec)
    assert card.refusal(request) is RefusalReason.FOREIGN_BOOT
    foreign = Ctx(card_uuid=b"X" * 16, epoch=1, boot_id=card.boot_id)
    assert card.refusal(replace(request, ctx=foreign)) is RefusalReason.FOREIGN_CARD


def test_garbage_on_both_lines_costs_frames_and_nothing_else(card) -> None:
    card.run_instance()
    for line in card.cnm.lines.values():
        line.inject("b", bytes(range(256)) * 8)
    card.run(1000)
    assert card.statuses()[NAME].state == InstanceState.RUNNING
    assert card.heartbeats[-1].lease_left_ms > 4000


def test_without_an_agent_the_lease_lives_on(card) -> None:
    before = card.run_instance()
    card.cnm.kernel.pause("cnm0/agent")
    card.run(8000)
    assert card.heartbeats[-1].lease_left_ms > 4000
    answer = card.ask(StartRequest(ctx=card.ctx, instance=NAME, generation=1), attempts=1)
    assert isinstance(answer, RequestTimedOut)
    card.cnm.kernel.resume("cnm0/agent")
    card.run(1000)
    assert card.statuses()[NAME].pid == before.pid


def test_a_full_disk_makes_room_by_what_nobody_needs(card) -> None:
    old = card.put(b"o" * 300_000)
    card.push(old)
    disk = card.cnm.slot.disk
    card.run_instance()
    needed = set(disk.blobs) - {old}
    card.run(900_000)  # nothing of it is young any more
    disk.capacity_bytes = disk.capacity_bytes - disk.free_bytes() + 100_000
    card.run_instance(
        "shop/web/1", runtime="oci", layers=[card.put(layer({"f": b"n" * 99_000})).hex()]
    )
    assert old not in disk.blobs
    assert needed <= set(disk.blobs)


def test_a_full_disk_with_nothing_to_give_is_refused_as_such(card) -> None:
    card.cnm.slot.disk.capacity_bytes = 50_000
    error = card.call(lambda done: card.transfers.push(card.put(b"x" * 100_000), done))
    assert error.code == "no_space"


def test_replicas_that_are_staged_together_share_their_volume(card) -> None:
    empty = {"schema": "apf-volume/1", "entries": []}
    volume = {
        "name": "data",
        "target": "/d",
        "read_only": False,
        "manifest": card.put(json.dumps(empty).encode()).hex(),
    }
    disk = card.cnm.slot.disk
    disk.sync_ns = 200 * MS
    names = [f"shop/web/{index}" for index in range(3)]
    for name in names[:2]:
        card.deploy(card.spec(name, volumes=[volume]), name)
    for name in names[:2]:
        card.wait_state(InstanceState.PREPARED, name)
    card.start(names[0])
    disk.tree.put("state/volumes/data/live", File(b"live", 0o644))
    card.deploy(card.spec(names[2], volumes=[volume]), names[2])
    for name in names[1:]:
        card.wait_state(InstanceState.PREPARED, name)
        card.start(name)
        card.wait_state(InstanceState.RUNNING, name)
    assert disk.tree.find("state/volumes/data/live") is not None


def test_a_deploy_of_what_runs_already_asks_for_nothing(card) -> None:
    spec = card.spec()
    card.deploy(spec)
    card.wait_state(InstanceState.PREPARED)
    card.start()
    card.wait_state(InstanceState.RUNNING)
    card.cnm.slot.disk.blobs.clear()
    again = card.ask(DeployRequest(ctx=card.ctx, instance=NAME, generation=1, spec_digest=spec))
    assert (again.state, again.missing) == (InstanceState.RUNNING, ())
