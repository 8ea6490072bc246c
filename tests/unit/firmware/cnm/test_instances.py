"""Rules for commands on instances: DESIGN section 4, rules 1, 4, 9a and section 5."""

from collections.abc import Callable

import pytest

from firmware.cnm.instances import INSTANCES_LIMIT, InstanceTable
from firmware.cnm.lease_guard import CardBinding, LeaseGuard
from firmware.cnm.records import Instance, Prepared, RefusedError, key_of
from firmware.cnm.runner import AT_ONCE, Runner
from hal.errors import HalError, Unavailable
from hal.ports import ExitReason, InstanceExit, InstanceSpec
from protocol.apf import Ctx, Health, InstanceState, RefusalReason

BOOT, CARD = b"B" * 16, b"C" * 16
CTX = Ctx(card_uuid=CARD, epoch=2, boot_id=BOOT)
NAME = "shop/web/0"
DIGEST = b"d" * 32
CLEAN_EXIT = InstanceExit(reason=ExitReason.EXITED, status=0)
KILLED = InstanceExit(reason=ExitReason.SIGNALED, status=9)


class Events:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.changes = 0

    def changed(self) -> None:
        self.changes += 1

    def running(self, instance: Instance, output_fd: int) -> None:
        self.log.append(f"running {instance.name} g{instance.generation}")

    def ended(self, instance: Instance) -> None:
        self.log.append(f"ended {instance.name} g{instance.generation}")

    def removed(self, instance: Instance) -> None:
        self.log.append(f"removed {instance.name} g{instance.generation}")


class Bench:
    """A table with a fake runtime, leased for 5 s."""

    def __init__(self, loop, runtime) -> None:
        self.loop, self.runtime, self.events = loop, runtime, Events()
        self.guard = LeaseGuard(CardBinding(BOOT))
        self.table = InstanceTable(
            reactor=loop,
            guard=self.guard,
            runner=Runner(loop, {"fake": runtime}),
            events=self.events,
        )
        self.seq = 0
        self.lease()

    def lease(self) -> None:
        self.seq += 1
        self.guard.on_heartbeat_sent(self.seq, self.loop.now_ns())
        self.guard.on_grant(self.seq, 5000, CARD, self.guard.binding.epoch or 2, BOOT)

    def stage(self, name: str = NAME, g: int = 1, ctx: Ctx = CTX) -> InstanceState:
        return self.table.stage(ctx, name, g, spec_digest=DIGEST)

    def prepare(self, name: str = NAME, g: int = 1) -> None:
        self.stage(name, g)
        spec = InstanceSpec(key=key_of(name, g), argv=["/bin/true"], env={})
        self.table.prepared(name, g, Prepared(runtime="fake", spec=spec))

    def run(self, name: str = NAME, g: int = 1) -> str:
        self.prepare(name, g)
        self.table.start(CTX, name, g)
        self.runtime.started(key_of(name, g))
        return key_of(name, g)

    def state(self, name: str = NAME) -> InstanceState:
        found = self.table.find(name)
        return found.state if found else InstanceState.ABSENT

    def remove(self, name: str = NAME, g: int = 1) -> list[RefusedError | None]:
        answers: list[RefusedError | None] = []
        self.table.remove(CTX, name, g, answers.append)
        return answers


@pytest.fixture
def bench(loop, runtime) -> Bench:
    return Bench(loop, runtime)


def refusal(call: Callable[[], object]) -> RefusalReason:
    with pytest.raises(RefusedError) as info:
        call()
    return info.value.reason


def test_an_instance_is_running_only_when_its_runtime_saw_it_run(bench) -> None:
    bench.prepare()
    assert bench.table.start(CTX, NAME, 1) is InstanceState.STARTING
    assert bench.state() is InstanceState.STARTING
    bench.runtime.started(key_of(NAME, 1), pid=77)
    assert bench.state() is InstanceState.RUNNING
    assert bench.table.find(NAME).handle.pid == 77
    assert bench.events.log == [f"running {NAME} g1"]


def test_every_visible_change_grows_status_seq(bench) -> None:
    seen = [bench.table.status_seq]
    key = key_of(NAME, 1)
    for step in (
        bench.stage,
        bench.prepare,
        lambda: bench.table.start(CTX, NAME, 1),
        lambda: bench.runtime.started(key),
        lambda: bench.table.set_health(bench.table.find(NAME), Health.HEALTHY),
        lambda: bench.table.stop(CTX, NAME, 1, grace_ms=100),
        lambda: bench.runtime.exit(key, CLEAN_EXIT),
        bench.remove,
    ):
        step()
        seen.append(bench.table.status_seq)
    assert seen == sorted(set(seen))
    assert bench.events.changes == bench.table.status_seq


@pytest.mark.parametrize(
    ("ctx", "reason"),
    [
        (Ctx(card_uuid=b"X" * 16, epoch=2, boot_id=BOOT), RefusalReason.FOREIGN_CARD),
        (Ctx(card_uuid=CARD, epoch=2, boot_id=b"X" * 16), RefusalReason.FOREIGN_BOOT),
        (Ctx(card_uuid=CARD, epoch=1, boot_id=BOOT), RefusalReason.STALE_EPOCH),
    ],
)
def test_rule_1_a_foreign_or_old_card_is_refused_and_changes_nothing(bench, ctx, reason) -> None:
    bench.prepare()
    before = bench.table.status_seq
    table = bench.table
    for command in (
        lambda: bench.stage(NAME, 2, ctx),
        lambda: table.start(ctx, NAME, 1),
        lambda: table.stop(ctx, NAME, 1, grace_ms=0),
        lambda: table.abort(ctx, NAME, 1),
        lambda: table.remove(ctx, NAME, 1, lambda _result: None),
    ):
        assert refusal(command) is reason
    assert bench.state() is InstanceState.PREPARED
    assert table.status_seq == before


def test_rule_1_a_lower_generation_is_stale_for_every_command(bench) -> None:
    bench.run(g=5)
    table = bench.table
    for command in (
        lambda: bench.stage(NAME, 4),
        lambda: table.start(CTX, NAME, 4),
        lambda: table.stop(CTX, NAME, 4, grace_ms=0),
        lambda: table.abort(CTX, NAME, 4),
        lambda: table.remove(CTX, NAME, 4, lambda _result: None),
    ):
        assert refusal(command) is RefusalReason.STALE_GENERATION
    assert bench.state() is InstanceState.RUNNING


def test_rule_1_an_equal_generation_is_idempotent(bench) -> None:
    bench.run()
    assert bench.stage() is InstanceState.RUNNING
    assert bench.table.start(CTX, NAME, 1) is InstanceState.RUNNING
    assert bench.runtime.count("start") == 1


def test_a_start_repeated_after_the_exit_says_exited_and_starts_nothing(bench) -> None:
    key = bench.run()
    bench.runtime.exit(key, CLEAN_EXIT)
    assert bench.table.start(CTX, NAME, 1) is InstanceState.EXITED
    assert bench.runtime.count("start") == 1


def test_a_second_spec_for_the_same_generation_is_refused(bench) -> None:
    bench.stage()
    assert (
        refusal(lambda: bench.table.stage(CTX, NAME, 1, spec_digest=b"e" * 32))
        is RefusalReason.BAD_SPEC
    )


def test_nothing_starts_without_a_fresh_lease(bench) -> None:
    bench.prepare()
    bench.loop.advance(5000)
    assert refusal(lambda: bench.table.start(CTX, NAME, 1)) is RefusalReason.NO_LEASE
    assert bench.state() is InstanceState.PREPARED


def test_a_start_during_staging_is_told_to_come_again(bench) -> None:
    bench.stage()
    assert refusal(lambda: bench.table.start(CTX, NAME, 1)) is RefusalReason.BUSY


def test_a_start_of_what_was_never_staged_is_refused(bench) -> None:
    assert refusal(lambda: bench.table.start(CTX, NAME, 1)) is RefusalReason.UNKNOWN_INSTANCE


def test_rule_9a_a_stopped_generation_never_comes_back(bench) -> None:
    key = bench.run()
    assert bench.table.stop(CTX, NAME, 1, grace_ms=1000) is InstanceState.STOPPING
    bench.runtime.exit(key, CLEAN_EXIT)
    assert bench.state() is InstanceState.STOPPED
    assert refusal(bench.stage) is RefusalReason.STALE_GENERATION
    assert bench.remove() == [None]
    assert refusal(bench.stage) is RefusalReason.STALE_GENERATION
    assert bench.stage(g=2) is InstanceState.STAGING


def test_rule_9a_a_stop_that_overtakes_its_deploy_buries_the_generation(bench) -> None:
    assert bench.table.stop(CTX, NAME, 3, grace_ms=0) is InstanceState.ABSENT
    assert refusal(lambda: bench.stage(g=3)) is RefusalReason.STALE_GENERATION


def test_a_stop_for_a_higher_generation_ends_the_lower_one_that_is_here(bench) -> None:
    key = bench.run(g=1)
    assert bench.table.stop(CTX, NAME, 2, grace_ms=0) is InstanceState.STOPPING
    assert ("kill_all", key) in bench.runtime.calls


def test_a_stop_signals_first_and_kills_after_the_grace(bench) -> None:
    key = bench.run()
    bench.table.stop(CTX, NAME, 1, grace_ms=300)
    assert ("signal", key, 15) in bench.runtime.calls
    bench.loop.advance(299)
    assert bench.runtime.count("kill_all") == 0
    bench.loop.advance(1)
    assert bench.runtime.count("kill_all") == 1


def test_a_repeated_stop_signals_once_and_only_shortens_the_grace(bench) -> None:
    bench.run()
    bench.table.stop(CTX, NAME, 1, grace_ms=300)
    bench.table.stop(CTX, NAME, 1, grace_ms=9000)
    assert bench.runtime.count("signal") == 1
    bench.table.stop(CTX, NAME, 1, grace_ms=100)
    bench.loop.advance(100)
    assert bench.runtime.count("kill_all") == 1


def test_a_kill_is_repeated_until_the_end_is_seen(bench) -> None:
    key = bench.run()
    bench.table.stop(CTX, NAME, 1, grace_ms=0)
    bench.loop.advance(2000)
    pressed = bench.runtime.count("kill_all")
    assert pressed >= 5
    assert bench.state() is InstanceState.STOPPING
    bench.runtime.exit(key, KILLED)
    bench.loop.advance(5000)
    assert bench.runtime.count("kill_all") == pressed
    assert bench.state() is InstanceState.STOPPED


def test_a_stop_while_starting_kills_it_as_soon_as_it_runs(bench) -> None:
    bench.prepare()
    bench.table.start(CTX, NAME, 1)
    changes = bench.events.changes
    assert bench.table.stop(CTX, NAME, 1, grace_ms=60_000) is InstanceState.STOPPING
    assert bench.table.find(NAME).reported is InstanceState.STOPPING, "else the card asks again"
    assert bench.events.changes == changes + 1
    bench.runtime.started(key_of(NAME, 1))
    assert bench.state() is InstanceState.STOPPING
    assert bench.runtime.count("kill_all") == 1


def test_rule_4_the_end_of_the_lease_kills_all_and_buries_their_generations(bench) -> None:
    key = bench.run("a/x/0")
    bench.prepare("a/y/0")
    bench.loop.advance(5000)
    bench.table.end_all("lease expired")
    assert ("kill_all", key) in bench.runtime.calls
    bench.runtime.exit(key, KILLED)
    for name in ("a/x/0", "a/y/0"):
        found = bench.table.find(name)
        assert (found.state, found.text) == (InstanceState.STOPPED, "lease expired")
    bench.lease()
    for name in ("a/x/0", "a/y/0"):
        assert refusal(lambda name=name: bench.stage(name, 1)) is RefusalReason.STALE_GENERATION
    assert bench.stage("a/y/0", 2) is InstanceState.STAGING


def test_rule_4_what_was_starting_when_the_lease_ended_dies_when_it_appears(bench) -> None:
    bench.prepare()
    bench.table.start(CTX, NAME, 1)
    bench.loop.advance(5000)
    bench.table.end_all("lease expired")
    before = bench.runtime.count("kill_all")
    bench.runtime.started(key_of(NAME, 1))
    assert bench.runtime.count("kill_all") == before + 1
    assert bench.state() is not InstanceState.RUNNING
    bench.runtime.exit(key_of(NAME, 1), KILLED)
    assert bench.state() is InstanceState.STOPPED


def test_a_start_that_completes_after_the_expiry_is_killed_before_the_guards_timer(bench) -> None:
    bench.prepare()
    bench.table.start(CTX, NAME, 1)
    bench.loop.advance(5000)
    bench.runtime.started(key_of(NAME, 1))
    assert bench.runtime.count("kill_all") == 1
    bench.runtime.exit(key_of(NAME, 1), KILLED)
    assert bench.table.find(NAME).text == "lease expired"


def test_a_failed_start_is_failed_with_the_runtimes_own_words(bench) -> None:
    bench.prepare()
    bench.table.start(CTX, NAME, 1)
    bench.runtime.fail(key_of(NAME, 1), HalError("exec /nope: no such file"))
    assert bench.state() is InstanceState.FAILED
    assert "no such file" in bench.table.find(NAME).text


def test_a_runtime_that_raises_leaves_a_truthful_state(bench) -> None:
    bench.prepare()
    bench.runtime.raises = Unavailable("runc is gone")
    assert bench.table.start(CTX, NAME, 1) is InstanceState.FAILED
    bench.runtime.raises = None
    key = bench.run(NAME, 2)
    bench.runtime.raises = Unavailable("runc is gone")
    assert bench.table.stop(CTX, NAME, 2, grace_ms=50) is InstanceState.STOPPING
    bench.loop.advance(100)
    assert "runc is gone" in bench.table.find(NAME).text
    bench.runtime.raises = None
    bench.loop.advance(2000)
    assert ("kill_all", key) in bench.runtime.calls


def test_an_exit_by_itself_is_exited_with_its_reason(bench) -> None:
    key = bench.run()
    bench.runtime.exit(key, InstanceExit(reason=ExitReason.OOM_KILLED, status=9, text="oom"))
    found = bench.table.find(NAME)
    assert found.state is InstanceState.EXITED
    assert found.exit.reason is ExitReason.OOM_KILLED


def test_what_runs_is_not_removed(bench) -> None:
    bench.run()
    assert refusal(bench.remove) is RefusalReason.BAD_STATE


def test_a_remove_of_what_is_absent_is_a_success_and_buries_it(bench) -> None:
    assert bench.remove(g=4) == [None]
    assert refusal(lambda: bench.stage(g=4)) is RefusalReason.STALE_GENERATION


def test_a_second_remove_waits_for_the_first(bench) -> None:
    key = bench.run()
    bench.runtime.exit(key, CLEAN_EXIT)
    bench.runtime.hold_removes = True
    answers = bench.remove()
    assert refusal(bench.remove) is RefusalReason.BUSY
    assert refusal(lambda: bench.stage(g=2)) is RefusalReason.BUSY
    bench.runtime.removes[key](None)
    assert answers == [None]
    assert bench.state() is InstanceState.ABSENT


def test_a_remove_that_fails_is_refused_and_the_instance_stays_visible(bench) -> None:
    key = bench.run()
    bench.runtime.exit(key, CLEAN_EXIT)
    bench.runtime.hold_removes = True
    answers = bench.remove()
    bench.runtime.removes[key](HalError("cgroup is busy"))
    assert answers[0].reason is RefusalReason.INTERNAL
    assert bench.state() is InstanceState.EXITED
    bench.runtime.hold_removes = False
    assert bench.remove() == [None]


def test_an_abort_drops_what_was_prepared_and_buries_it(bench) -> None:
    bench.prepare()
    assert bench.table.abort(CTX, NAME, 1) is InstanceState.ABSENT
    assert refusal(bench.stage) is RefusalReason.STALE_GENERATION
    bench.run(g=2)
    assert refusal(lambda: bench.table.abort(CTX, NAME, 2)) is RefusalReason.BAD_STATE


def test_failed_staging_says_why_and_may_be_tried_again(bench) -> None:
    bench.stage()
    bench.table.prepared(NAME, 1, "layer is not a tar")
    assert bench.state() is InstanceState.FAILED
    assert "not a tar" in bench.table.find(NAME).text
    assert bench.stage() is InstanceState.STAGING


def test_staging_results_of_a_generation_that_is_no_longer_wanted_are_ignored(bench) -> None:
    bench.stage(g=1)
    bench.stage(g=2)
    bench.table.prepared(NAME, 1, "late")
    assert bench.state() is InstanceState.STAGING
    bench.table.stop(CTX, NAME, 2, grace_ms=0)
    spec = InstanceSpec(key=key_of(NAME, 2), argv=["x"], env={})
    bench.table.prepared(NAME, 2, Prepared(runtime="fake", spec=spec))
    assert bench.state() is InstanceState.STOPPED


def test_a_new_generation_waits_until_the_old_one_is_dead(bench) -> None:
    key = bench.run(g=1)
    assert refusal(lambda: bench.stage(g=2)) is RefusalReason.BAD_STATE
    bench.runtime.exit(key, CLEAN_EXIT)
    assert bench.stage(g=2) is InstanceState.STAGING
    assert ("remove", key) in bench.runtime.calls
    assert refusal(lambda: bench.table.start(CTX, NAME, 1)) is RefusalReason.STALE_GENERATION


def test_an_unknown_runtime_fails_the_staging(bench) -> None:
    bench.stage()
    spec = InstanceSpec(key="k", argv=["x"], env={})
    bench.table.prepared(NAME, 1, Prepared(runtime="vm", spec=spec))
    assert bench.state() is InstanceState.FAILED


def test_the_table_is_bounded(bench) -> None:
    for index in range(INSTANCES_LIMIT):
        bench.stage(f"w/c/{index}")
    assert refusal(lambda: bench.stage("w/c/one-more")) is RefusalReason.LIMIT
    assert bench.stage("w/c/0", 2) is InstanceState.STAGING  # a known name needs no new room


def test_going_down_stops_all_and_starts_nothing_more(bench) -> None:
    key = bench.run("a/x/0")
    bench.prepare("a/y/0")
    bench.table.stop_all("the CNM goes down", 200)
    assert bench.table.alive_count() == 1
    assert bench.state("a/y/0") is InstanceState.STOPPED
    bench.loop.advance(200)
    bench.runtime.exit(key, KILLED)
    assert bench.table.alive_count() == 0
    bench.prepare("a/z/0")
    assert refusal(lambda: bench.table.start(CTX, "a/z/0", 1)) is RefusalReason.BAD_STATE


def test_keys_are_short_clean_and_one_to_one() -> None:
    names = ["a/b/0", "a-b/0", "a.b/0", "A/b/0", "x" * 128, "x" * 127, "_/_"]
    keys = {key_of(name, 2**64 - 1) for name in names}
    assert len(keys) == len(names)
    assert all(
        len(key) <= 64 and key.strip("abcdefghijklmnopqrstuvwxyz0123456789.-") == "" for key in keys
    )


def test_many_starts_take_turns_and_a_stop_before_its_turn_starts_nothing(bench) -> None:
    names = [f"w/c/{index:03}" for index in range(20)]
    for name in names:
        bench.prepare(name)
        bench.table.start(CTX, name, 1)
    assert bench.runtime.count("start") == AT_ONCE
    bench.table.stop(CTX, names[-1], 1, grace_ms=0)
    for name in names[:-1]:
        bench.runtime.started(key_of(name, 1))
    assert bench.runtime.count("start") == len(names) - 1
    assert bench.state(names[-1]) is InstanceState.STOPPED
    assert {bench.state(name) for name in names[:-1]} == {InstanceState.RUNNING}


def test_a_start_that_failed_half_way_leaves_nothing_running(bench) -> None:
    bench.prepare()
    bench.table.start(CTX, NAME, 1)
    bench.runtime.fail(key_of(NAME, 1), HalError("deadline"))
    assert ("kill_all", key_of(NAME, 1)) in bench.runtime.calls
