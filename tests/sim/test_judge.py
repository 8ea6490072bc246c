"""The judge bites: each invariant is broken on purpose, in the models, and is named.

Nothing of the firmware is changed here; what a bug of it would do to the world is done by hand.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from firmware.loop import MS
from firmware.workload import Workload
from hal.errors import StoreFull
from hal.mock.disk import Disk
from hal.mock.instance import Behaviour, MockInstance
from hal.mock.journal import MockJournal
from hal.mock.kernel import VirtualKernel
from hal.ports import ExitReason, InstanceExit, InstanceSpec, JournalRecord
from protocol.apf import InstanceState
from tools.sim.documents import component, workload
from tools.sim.invariants.decided import DRAIN_KNOWN_NS
from tools.sim.invariants.names import Invariant, Violation
from tools.sim.invariants.obeyed import RECALLED_NS, SETTLED_NS
from tools.sim.invariants.preempted import HOUR_NS
from tools.sim.invariants.repeat import check_repeats
from tools.sim.invariants.rest import RECOVERY_NS, Rest
from tools.sim.invariants.room import Room
from tools.sim.invariants.spread import AFTER_NS
from tools.sim.invariants.stored import Stored
from tools.sim.invariants.told import SILENT_MOST
from tools.sim.judge import LOOKS_A_PS
from tools.sim.run import run_seed
from tools.sim.world import BOARD, DAEMON, SECOND, World

WEB = "shop/web/0"


@pytest.fixture
def world() -> World:
    found = World(seed=5)
    found.boot()
    found.submit(workload("shop", component(replicas=2)))
    found.settle()
    return found


def broken(call: Callable[[], object]) -> str:
    """The name of the invariant that it breaks."""
    with pytest.raises(Violation) as caught:
        call()
    violation = caught.value
    assert str(violation).startswith(f"{violation.invariant}: {violation.text}")
    return violation.invariant


def start(world: World, instance: str, generation: int, cnm: str) -> MockInstance:
    """Something starts an instance on a module, whoever has decided that."""
    slot = world.modules[cnm].slot
    key = f"x{len(slot.instances)}.{generation}"
    spec = InstanceSpec(key=key, argv=("web",), env={"APF_INSTANCE": instance})
    one = MockInstance(
        world.kernel,
        spec,
        Behaviour(),
        place=cnm,
        pid=world.kernel.programs.next_pid(),
        cgroup="/x",
        on_exit=lambda _end: None,
    )
    slot.instances[key] = one
    return one


def write(world: World, *records: tuple[str, str, dict[str, Any] | None]) -> None:
    """A batch of decisions gets to the card's disk."""
    world.disk.journal.commit(
        tuple(
            JournalRecord(
                kind=kind, key=key, value=None if value is None else json.dumps(value).encode()
            )
            for kind, key, value in records
        )
    )


def on_disk(world: World, kind: str, key: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(world.disk.journal.durable[kind, key])
    return found


def other_than(world: World, cnm: str) -> str:
    return next(name for name in world.modules if name != cnm)


# --- I1: nothing is lost ---


def test_a_workload_that_was_accepted_and_is_gone_from_the_disk_is_lost(world: World) -> None:
    assert broken(lambda: write(world, ("workload", "shop", None))) == Invariant.LOST


def test_a_workload_that_is_marked_as_deleted_unasked_is_lost(world: World) -> None:
    record = on_disk(world, "workload", "shop") | {"deleted": True}
    assert broken(lambda: write(world, ("workload", "shop", record))) == Invariant.LOST


def test_a_workload_that_the_disk_holds_with_fewer_replicas_is_lost(world: World) -> None:
    record = on_disk(world, "workload", "shop")
    record["workload"]["components"][0]["replicas"] = 1
    assert broken(lambda: write(world, ("workload", "shop", record))) == Invariant.LOST


def test_an_assignment_of_what_is_wanted_must_not_vanish(world: World) -> None:
    assert broken(lambda: write(world, ("assignment", WEB, None))) == Invariant.LOST


def test_what_was_asked_to_be_removed_may_go(world: World) -> None:
    world.remove("shop")
    world.settle()
    assert world.running() == {}
    world.judge.finish()


def test_what_always_restarts_must_not_count_as_ended(world: World) -> None:
    cnm = world.where(WEB)
    assert cnm is not None
    next(one for one in world.modules[cnm].slot.instances.values() if one.alive).power_lost()
    lost = next(name for name in ("shop/web/0", "shop/web/1") if name not in world.running())
    record = on_disk(world, "assignment", lost)
    record["ending"] = {"failed": False, "status": 0, "text": "done"}
    write(world, ("assignment", lost, record))
    assert broken(world.judge.rest.why_not) == Invariant.LOST


def test_what_was_killed_must_not_count_as_ended_by_itself() -> None:
    world = World(seed=6)
    world.boot()
    world.submit(workload("shop", component(restart={"policy": "no"})))
    world.settle()
    cnm = world.where(WEB)
    assert cnm is not None
    one = next(one for one in world.modules[cnm].slot.instances.values() if one.alive)
    one.end(InstanceExit(reason=ExitReason.SIGNALED, status=9))
    record = on_disk(world, "assignment", WEB)
    record["ending"] = {"failed": True, "status": 9, "text": "killed"}
    write(world, ("assignment", WEB, record))
    assert broken(world.judge.rest.why_not) == Invariant.LOST


@pytest.mark.parametrize("attempts", [0, 2, 3])
def test_what_failed_must_not_count_as_ended_while_it_has_attempts_left(attempts: int) -> None:
    world = World(seed=6)
    world.boot()
    restart = {"policy": "on-failure", "max_attempts": 3}
    world.submit(workload("shop", component(restart=restart)))
    world.settle()
    cnm = world.where(WEB)
    assert cnm is not None
    one = next(one for one in world.modules[cnm].slot.instances.values() if one.alive)
    one.end(InstanceExit(reason=ExitReason.EXITED, status=1))
    record = on_disk(world, "assignment", WEB)
    ending = {"failed": True, "status": 1, "text": "exited with status 1"}
    write(world, ("assignment", WEB, record | {"ending": ending, "attempts": attempts}))
    if attempts < 3:
        assert broken(world.judge.rest.why_not) == Invariant.LOST
    else:
        assert world.judge.rest.why_not() == ""


def test_what_never_ran_must_not_count_as_ended(world: World) -> None:
    record = on_disk(world, "assignment", WEB)
    ending = {"failed": True, "status": 0, "text": "it could not be started"}
    cnm = world.where(WEB)
    assert cnm is not None
    for one in world.modules[cnm].slot.instances.values():
        if one.alive and one.spec.env["APF_INSTANCE"] == WEB:
            one.power_lost()
    world.judge._running.ended.clear()
    write(world, ("assignment", WEB, record | {"ending": ending}))
    assert broken(world.judge.rest.why_not) == Invariant.LOST


def test_a_card_that_says_it_is_at_rest_while_its_modules_are_not_is_a_violation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Rest, "why_not", lambda _rest: "shop/web/0 does not run")
    violation = run_seed(1, board="mock_4", hours=0.02).violation
    assert violation is not None
    assert "does not run" in violation.text


def test_what_ends_by_itself_and_is_not_to_be_restarted_is_at_rest() -> None:
    world = World(seed=6)
    world.kernel.behaviours.add("web", Behaviour(runs_ns=SECOND))
    world.boot()
    world.submit(workload("shop", component(restart={"policy": "no"})))
    world.settle()
    assert world.running() == {}
    assert world.judge.rest.why_not() == ""


def test_what_waits_beside_room_waits_for_nothing(world: World) -> None:
    record = on_disk(world, "assignment", WEB) | {"place": None}
    cnm, _, _ = world.running()[WEB]
    for one in world.modules[cnm].slot.instances.values():
        if one.alive and one.spec.env["APF_INSTANCE"] == WEB:
            one.power_lost()
    write(world, ("assignment", WEB, record))
    assert "does not run" in world.judge.rest.why_not()
    assert broken(world.judge.rest.waits_beside_room) == Invariant.WAITS


def test_what_no_module_has_room_for_may_wait() -> None:
    world = World(seed=7, slots=1)
    most = world.board.slots[0].module.cores_milli
    world.boot()
    world.submit(workload("shop", component(resources={"cpu_milli": most * 6 // 10}, replicas=2)))
    world.settle()
    assert len(world.running()) == 1
    assert world.judge.rest.why_not() == ""
    world.judge.rest.waits_beside_room()


# --- I2: never two, never undecided ---


def test_a_second_copy_is_seen_at_once(world: World) -> None:
    cnm, generation, _ = world.running()[WEB]
    other = other_than(world, cnm)
    assert broken(lambda: start(world, WEB, generation, other)) == Invariant.TWO_COPIES


def test_a_generation_starts_once(world: World) -> None:
    cnm, generation, _ = world.running()[WEB]
    world.modules[cnm].slot.lose_power()
    other = other_than(world, cnm)
    assert broken(lambda: start(world, WEB, generation, other)) == Invariant.TWICE


def test_a_lower_generation_never_follows_a_higher_one(world: World) -> None:
    cnm, generation, _ = world.running()[WEB]
    world.modules[cnm].slot.lose_power()
    assert broken(lambda: start(world, WEB, generation - 1, cnm)) == Invariant.LOWER


def test_what_starts_was_decided_on_disk(world: World) -> None:
    cnm, generation, _ = world.running()[WEB]
    world.modules[cnm].slot.lose_power()
    assert broken(lambda: start(world, WEB, generation + 100, cnm)) == Invariant.UNDECIDED


# --- I3: room ---


def big(world: World, **resources: int) -> str:
    """A decision about something large is on the disk; its instance."""
    document = workload("big", component("hog", resources=resources))
    write(world, ("workload", "big", {"v": 1, "workload": document}))
    return "big/hog/0"


@pytest.mark.parametrize(
    ("name", "amount"),
    [
        ("cpu_milli", 10**6),
        ("memory_bytes", 1 << 50),
        ("nvme_bytes", 1 << 50),
        ("link_mbit", 10**7),
    ],
)
def test_what_runs_must_fit(world: World, name: str, amount: int) -> None:
    instance = big(world, **{name: amount})
    cnm = next(iter(world.modules))
    record = on_disk(world, "assignment", WEB) | {"instance": instance, "ending": {"failed": False}}
    record["place"] = {"cnm": cnm, "boot_id": "", "generation": 900}
    write(world, ("assignment", instance, record))  # ended: it books nothing
    assert broken(lambda: start(world, instance, 900, cnm)) == Invariant.OVERCOMMIT


def test_what_is_decided_must_fit_the_target_of_a_move_too(world: World) -> None:
    record = on_disk(world, "assignment", WEB)
    cnm = record["place"]["cnm"]
    other = other_than(world, cnm)
    module = next(slot.module for slot in world.board.slots if slot.id == other)
    instance = big(world, cpu_milli=module.cores_milli)
    hog = record | {"instance": instance}
    hog["place"] = {"cnm": other, "boot_id": "", "generation": 900}
    moving = record | {"target": {"cnm": other, "boot_id": "", "generation": 901}}
    write(world, ("assignment", "shop/web/1", record | {"place": None, "target": None}))
    write(world, ("assignment", instance, hog))
    assert broken(lambda: write(world, ("assignment", WEB, moving))) == Invariant.OVERBOOKED


def test_a_device_is_not_given_out_twice(world: World) -> None:
    with_gpu = [slot for slot in world.board.slots if slot.module.accelerators]
    pool = with_gpu[0].module.accelerators[0]
    wants = {"kind": pool.kind, "count": 1, "milli": 600}
    names = [f"g{number}" for number in range(2 * pool.count)]
    for name in names:
        document = workload(name, component("net", resources={"accelerators": [wants]}))
        write(world, ("workload", name, {"v": 1, "workload": document}))

    def book_all() -> None:
        for number, name in enumerate(names):
            record = on_disk(world, "assignment", WEB) | {"instance": f"{name}/net/0"}
            place = {"cnm": with_gpu[0].id, "boot_id": "", "generation": 900 + number}
            write(world, ("assignment", f"{name}/net/0", record | {"place": place}))

    assert broken(book_all) == Invariant.OVERBOOKED


# --- I4: the journal ---


def test_a_record_that_was_acknowledged_and_is_gone_is_missed(world: World) -> None:
    world.kill_daemon()
    del world.disk.journal.durable["assignment", WEB]
    world.start_daemon()
    assert broken(lambda: world.run(1)) == Invariant.PREFIX


def test_a_record_of_before_is_no_committed_prefix(world: World) -> None:
    old = world.disk.journal.durable["meta", "epoch"]
    world.restart_daemon()
    world.settle()
    world.kill_daemon()
    world.disk.journal.durable["meta", "epoch"] = old
    world.start_daemon()
    assert broken(lambda: world.run(1)) == Invariant.PREFIX


def test_an_acknowledgement_before_the_sync_is_found_out(world: World) -> None:
    world.disk.journal.commit = lambda batch: None  # type: ignore[method-assign]
    assert broken(lambda: world.call("cnm.drain", id="cnm0")) == Invariant.ACKNOWLEDGED


def test_a_submit_that_is_answered_before_it_is_on_disk_is_found_out(world: World) -> None:
    assert broken(lambda: world.judge.decided.accepted(workload("early"))) == Invariant.ACKNOWLEDGED


def test_a_removal_that_is_answered_before_it_is_on_disk_is_found_out(world: World) -> None:
    assert broken(lambda: world.judge.decided.removal_accepted("shop")) == Invariant.ACKNOWLEDGED


class Store:
    """A journal of its own, watched by a judge's book."""

    def __init__(self) -> None:
        self.kernel = VirtualKernel(3)
        self.disk = Disk(self.kernel, "disk")
        self.book = Stored(self.disk.journal, self.fail)
        self.journal = self.book.watch(MockJournal(self.kernel.node("n"), self.disk))

    def fail(self, invariant: str, text: str) -> Any:
        raise Violation(invariant, 0, text)


def batch(*keys: str) -> tuple[JournalRecord, ...]:
    return tuple(JournalRecord(kind="k", key=key, value=b"1") for key in keys)


def test_the_first_unacknowledged_batches_may_be_there_and_none_in_the_middle_may_miss() -> None:
    store = Store()
    for keys in ("a", "bc", "d"):
        store.book.open.append(batch(*keys))
    store.book.loaded(batch("a", "b", "c"))
    for keys in ("e", "f"):
        store.book.open.append(batch(*keys))
    assert broken(lambda: store.book.loaded(batch("a", "b", "c", "f"))) == Invariant.PREFIX


def test_half_a_batch_is_no_prefix() -> None:
    store = Store()
    store.book.open.append(batch("a", "b"))
    assert broken(lambda: store.book.loaded(batch("a"))) == Invariant.PREFIX


def test_what_was_refused_for_want_of_room_must_not_be_there() -> None:
    store = Store()
    refused = batch("a")
    store.book.open.append(refused)
    store.book.answered(refused, StoreFull("no room"))
    assert broken(lambda: store.book.loaded(refused)) == Invariant.PREFIX


def test_what_has_rotted_may_be_of_a_batch_that_nobody_was_told_of() -> None:
    store = Store()
    unanswered = batch("a")
    store.book.open.append(unanswered)
    store.disk.journal.commit(unanswered)
    restore = store.disk.rot_record("k", "a")
    found = store.disk.journal.durable["k", "a"]
    store.book.loaded([JournalRecord(kind="k", key="a", value=found)])
    restore()
    store.book.loaded(batch("a"))
    assert broken(lambda: store.book.loaded(batch())) == Invariant.PREFIX


def test_a_damaged_record_is_never_believed(world: World) -> None:
    world.kill_daemon()
    world.disk.rot_record("workload", "shop", at=0)
    world.judge.stored.loaded(
        [
            JournalRecord(kind=kind, key=key, value=value)
            for (kind, key), value in world.disk.journal.durable.items()
        ]
    )
    assert broken(world.judge.stored.card_is_up) == Invariant.ROT_BELIEVED


def test_an_estimate_that_is_damaged_may_be_left_out_and_not_be_believed() -> None:
    store = Store()
    store.disk.journal.commit([JournalRecord(kind="profile", key="a", value=b'{"v":1}')])
    store.disk.rot_record("profile", "a")
    damaged = store.disk.journal.durable["profile", "a"]
    store.book.acknowledged["profile", "a"] = b'{"v":1}'
    store.book.loaded([JournalRecord(kind="profile", key="a", value=damaged)])
    store.book.card_is_up(lambda _kind, _key: None)
    believes = broken(lambda: store.book.card_is_up(lambda _kind, _key: damaged))
    assert believes == Invariant.ROT_BELIEVED


# --- I5: exceptions ---


@pytest.mark.parametrize("node", ["daemon", "cnm0/init", "cnm0/cnm0"])
def test_an_exception_that_leaves_a_handler_is_a_violation(world: World, node: str) -> None:
    def bad() -> None:
        raise KeyError("nobody expects this")

    loop = world.kernel.nodes[node].loop
    assert loop is not None
    loop.post(bad)
    assert broken(lambda: world.run(1)) == Invariant.EXCEPTION


# --- I6: bounds ---


def test_a_mailbox_that_piles_up_is_seen(world: World) -> None:
    world.kernel.pause("daemon")
    loop = world.kernel.nodes["daemon"].loop
    assert loop is not None
    for _ in range(5000):
        loop.post(lambda: None)
    assert broken(lambda: world.run(2)) == Invariant.BOUND


def test_timers_that_nobody_clears_are_seen(world: World) -> None:
    loop: Any = world.kernel.nodes["cnm1/init"].loop
    for _ in range(2000):
        loop.call_later(10**15, lambda: None)
    assert broken(lambda: world.run(9)) == Invariant.BOUND


def test_messages_that_are_never_put_together_are_seen(world: World) -> None:
    link: Any = world.card.inventory.get("cnm2").mc.link  # type: ignore[union-attr]
    link._reassembler._contexts.update(
        {("leak", number, 0, 0): next(iter([_Context()])) for number in range(20)}
    )
    assert broken(lambda: world.run(0.999) or world.judge.finish()) == Invariant.BOUND


class _Context:
    last_ns = 1 << 62
    data = b""


def test_a_queue_of_a_link_over_its_bound_is_seen(world: World) -> None:
    link: Any = world.card.inventory.get("cnm3").agent.link  # type: ignore[union-attr]
    link._queue.extend([b""] * 600)
    assert broken(world.judge.finish) == Invariant.BOUND


@pytest.mark.parametrize(
    "flood",
    [
        lambda card: card.decisions.pending.update(f"i{n}" for n in range(5000)),
        lambda card: card.deployer._failures.update(
            {("v", str(n), 1, "c"): 0 for n in range(9000)}
        ),
        lambda card: card.deployer._buried.update(
            {("v", str(n), 1, "c"): None for n in range(9000)}
        ),
        lambda card: card.inventory.get("cnm0").observed.update({str(n): None for n in range(300)}),
        lambda card: card.inventory.get("cnm0").mc._replies.update(
            {(n, b""): (0, b"") for n in range(200)}
        ),
        lambda card: setattr(card.journal, "_in_flight", 2000),
    ],
    ids=["pending", "failures", "removals", "observed", "answers", "batches"],
)
def test_a_table_of_the_daemon_over_its_bound_is_seen(
    world: World, flood: Callable[[Any], None]
) -> None:
    flood(world.card)
    assert broken(world.judge.finish) == Invariant.BOUND


# --- I7: time ---


def test_a_module_that_is_dead_and_counts_as_leased_is_noticed(world: World) -> None:
    cnm = world.card.inventory.get("cnm0")
    assert cnm is not None
    cnm.lease.suspect_now = lambda: False  # type: ignore[method-assign]
    cnm.lease.suspect_if_silent = lambda _now: False  # type: ignore[method-assign]
    world.modules["cnm0"].slot.lose_power()
    assert broken(lambda: world.run(5)) == Invariant.DETECTION


def test_a_component_that_does_not_come_back_after_the_faults_is_a_violation(world: World) -> None:
    world.judge.faults_over(world.kernel.now_ns)
    world.card.reconciler.kick = lambda _instance: None  # type: ignore[method-assign]
    world.card.reconciler.kick_cnm = lambda _cnm: None  # type: ignore[method-assign]
    world.modules[world.where(WEB) or ""].slot.lose_power()
    assert broken(lambda: world.run(RECOVERY_NS / SECOND + 5)) == Invariant.RECOVERY


def test_after_the_faults_rest_is_reached_and_then_no_longer_asked_for(world: World) -> None:
    world.modules[world.where(WEB) or ""].slot.lose_power()
    world.judge.faults_over(world.kernel.now_ns)
    world.run(30)
    assert world.judge.rest.recovered_ns is not None
    world.judge.finish()


def test_a_component_that_is_moved_for_load_again_and_again_is_a_violation(world: World) -> None:
    record = on_disk(world, "assignment", WEB)
    target = {"cnm": other_than(world, record["place"]["cnm"]), "boot_id": "", "generation": 0}

    def move() -> None:
        for generation in range(900, 970):
            to = target | {"generation": generation}
            moving = record | {"target": to, "why": "cnm0 is loaded"}
            write(world, ("assignment", WEB, moving))
            write(world, ("assignment", WEB, record))

    assert broken(move) == Invariant.MOVES


# --- I8: what only grows ---


def test_the_epoch_never_falls(world: World) -> None:
    assert broken(lambda: write(world, ("meta", "epoch", {"value": 0}))) == Invariant.EPOCH


def test_each_start_of_the_daemon_has_an_epoch_of_its_own(world: World) -> None:
    world.run(2)
    epoch = world.card.decisions.epoch
    world.restart_daemon()
    world.run_until(lambda: world.card_or_none and world.card.ready, 10, "a daemon")
    assert world.card.decisions.epoch == epoch + 1
    world.card.decisions.epoch = epoch
    assert broken(lambda: world.run(2)) == Invariant.EPOCH


def test_the_generation_never_falls(world: World) -> None:
    assert (
        broken(lambda: write(world, ("meta", "generation", {"value": 0}))) == Invariant.GENERATION
    )


def test_the_generation_of_an_instance_never_falls(world: World) -> None:
    record = on_disk(world, "assignment", WEB)
    record["place"]["generation"] -= 1
    if record["place"]["generation"] in world.judge.decided.generations(WEB):
        record["place"]["generation"] = 0
    assert broken(lambda: write(world, ("assignment", WEB, record))) == Invariant.GENERATION


def test_the_sequence_of_the_journal_never_falls(world: World) -> None:
    world.disk.journal.batches = -1000
    assert broken(lambda: world.call("cnm.drain", id="cnm0")) == Invariant.SEQUENCE


# --- I9: a fault stays where it is ---


@dataclass(slots=True, kw_only=True)
class Fault:
    id: str = "L1"
    cnm: str | None = "cnm0"
    at_ns: int = 0
    text: str = "a fault"
    lasts_ns: int = 0
    seen: Callable[[], bool] = field(default=lambda: True)
    cut_short: bool = False


def test_a_module_without_a_fault_of_its_own_must_not_be_suspected(world: World) -> None:
    world.judge.injected(Fault(at_ns=world.kernel.now_ns))
    world.modules["cnm1"].cut()
    assert broken(lambda: world.run(3)) == Invariant.SPREAD


def test_the_module_with_the_fault_may_be_suspected(world: World) -> None:
    world.judge.injected(Fault(at_ns=world.kernel.now_ns))
    world.modules["cnm0"].cut()
    world.run(3)
    assert "cnm.fenced" in world.codes(cnm="cnm0")


def test_a_fault_of_the_card_excuses_all_modules_for_a_while(world: World) -> None:
    world.judge.injected(Fault(at_ns=world.kernel.now_ns, cnm=None))
    world.modules["cnm1"].cut()
    world.run(3)
    world.modules["cnm1"].cut(False)
    world.run(AFTER_NS / SECOND + 1)
    world.modules["cnm2"].cut()
    assert broken(lambda: world.run(3)) == Invariant.SPREAD


def test_an_instance_that_is_killed_where_nothing_broke_is_a_violation(world: World) -> None:
    cnm = world.where(WEB)
    world.judge.injected(Fault(at_ns=world.kernel.now_ns, cnm=other_than(world, cnm or "")))
    card = world.card
    card.reconciler.kick = lambda _instance: None  # type: ignore[method-assign]
    for one in world.modules[cnm or ""].slot.instances.values():
        one.kill()
    assert broken(lambda: world.run(5)) == Invariant.SPREAD


def test_a_stale_command_that_ends_what_runs_was_obeyed(world: World) -> None:
    world.run(SETTLED_NS / SECOND)
    world.judge.stale_command(WEB, "a stop of long ago")
    one = world.judge._running.alive(WEB)
    assert one is not None
    one.kill()
    assert broken(lambda: world.run(1)) == Invariant.OBEYED


def test_what_is_stopped_by_nobody_s_decision_is_a_violation(world: World) -> None:
    world.run(SETTLED_NS / SECOND)
    one = world.judge._running.alive(WEB)
    assert one is not None
    one.kill()
    assert broken(lambda: world.run(1)) == Invariant.SPREAD


def test_what_was_decided_to_be_moved_is_not_ended_by_a_stale_command(world: World) -> None:
    world.run(SETTLED_NS / SECOND)
    world.judge.stale_command(WEB, "a stop of long ago")
    world.migrate(WEB)
    world.settle()


def test_what_was_started_once_must_not_be_staged_again(world: World) -> None:
    cnm = world.where(WEB)
    assert cnm is not None
    init = world.modules[cnm].init
    assert init is not None
    found = init.table.find(WEB)
    assert found is not None
    world.judge.replayed(cnm)
    found.state = InstanceState.STAGING
    assert broken(lambda: world.run(1)) == Invariant.OBEYED


def test_what_ended_well_must_not_be_started_again(world: World) -> None:
    world.kernel.behaviours.add("job", Behaviour(runs_ns=SECOND))
    world.submit(workload("jobs", component("job", restart={"policy": "on-failure"})))
    world.wait_phase("jobs/job/0", "STOPPED")
    record = on_disk(world, "assignment", "jobs/job/0")
    again = record | {"ending": None, "restarts": 1}
    world.judge.decided.held["jobs/job/0"].ended = False
    assert broken(lambda: write(world, ("assignment", "jobs/job/0", again))) == Invariant.REVIVED


def test_a_module_that_is_silent_and_leased_is_noticed(world: World) -> None:
    cnm = world.card.inventory.get("cnm1")
    assert cnm is not None
    cnm.lease._suspect = lambda: None  # type: ignore[method-assign]
    world.modules["cnm1"].cut()
    assert broken(lambda: world.run(20)) == Invariant.DETECTION


def test_what_is_decided_for_a_module_that_drains_is_noticed(world: World) -> None:
    record = on_disk(world, "assignment", WEB)
    to = other_than(world, record["place"]["cnm"])
    world.call("cnm.drain", id=to)
    world.run(DRAIN_KNOWN_NS / SECOND + 1)
    moving = record | {"target": record["place"] | {"cnm": to, "generation": 99}}
    assert broken(lambda: write(world, ("assignment", WEB, moving))) == Invariant.DRAINED


def test_what_had_ended_must_not_be_placed_again(world: World) -> None:
    record = on_disk(world, "assignment", WEB)
    ending = {"failed": False, "status": 0, "text": "done"}
    write(world, ("assignment", WEB, record | {"ending": ending}))
    assert broken(lambda: write(world, ("assignment", WEB, record))) == Invariant.REVIVED


def test_a_drain_that_the_card_has_forgotten_is_noticed(world: World) -> None:
    world.call("cnm.drain", id="cnm1")
    world.run(3)
    cnm = world.card.inventory.get("cnm1")
    assert cnm is not None
    cnm.draining = False
    assert broken(lambda: world.run(8)) == Invariant.FORGOTTEN


def test_what_is_started_before_what_it_depends_on_is_too_early(world: World) -> None:
    needs = [{"component": "db", "condition": "started"}]
    world.kernel.behaviours.add("db", Behaviour(start_error="no"))
    late = workload("late", component("db"), component("web", depends_on=needs))
    world.submit(late)
    world.run(2)
    place = on_disk(world, "assignment", "late/web/0")["place"]
    early = broken(lambda: start(world, "late/web/0", place["generation"], place["cnm"]))
    assert early == Invariant.EARLY


def test_room_that_is_held_for_nothing_is_noticed(world: World) -> None:
    state = world.card.placer.state
    cnm = world.where(WEB)
    assert cnm is not None
    hold = state.hold_of(WEB)
    assert hold is not None
    state.adopt(WEB, other_than(world, cnm), hold.demand, hold.constraints)
    world.judge.faults_over(world.kernel.now_ns)
    assert broken(lambda: world.run(10)) == Invariant.BOOKS


# --- I10: the truth, and no flood ---


def test_a_kind_of_fault_that_is_never_reported_is_a_violation(world: World) -> None:
    for _ in range(SILENT_MOST):
        world.judge.injected(Fault(id="L5", at_ns=world.kernel.now_ns, seen=lambda: False))
    assert broken(world.judge.finish) == Invariant.SILENT
    assert world.judge.told.unseen() == {"L5": SILENT_MOST}


def test_a_fault_that_was_cut_short_need_not_be_reported(world: World) -> None:
    for _ in range(SILENT_MOST):
        world.judge.injected(
            Fault(id="L5", at_ns=world.kernel.now_ns, seen=lambda: False, cut_short=True)
        )
    world.judge.finish()


def test_an_event_log_without_its_rate_is_found_out(world: World) -> None:
    log = world.card.events

    def flood() -> None:
        for _ in range(400):
            log._record(next(iter(type(world.events[0].code))), "again", None, None, None)

    assert broken(flood) == Invariant.FLOOD


def test_an_event_log_that_keeps_to_its_rate_is_no_flood(world: World) -> None:
    code = world.events[0].code
    for _ in range(2000):
        world.card.events.emit(code, "again")
        world.run(0.001)
    assert world.card.events.suppressed > 0


def test_a_ps_that_says_otherwise_is_not_the_truth(world: World) -> None:
    rows = world.card.views.instances(None)
    rows[0]["cnm"] = other_than(world, rows[0]["cnm"])
    world.card.views.instances = lambda _name: rows  # type: ignore[method-assign]
    world.judge.faults_over(world.kernel.now_ns)
    assert broken(lambda: world.run(10)) == Invariant.UNTRUE


def test_a_ps_that_shows_as_running_what_never_ran_is_not_the_truth(world: World) -> None:
    rows = world.card.views.instances(None)
    rows[0]["generation"] += 1
    world.card.views.instances = lambda _name: rows  # type: ignore[method-assign]
    assert broken(lambda: world.run(LOOKS_A_PS + 1)) == Invariant.UNTRUE


def test_a_cnm_ls_that_says_otherwise_is_not_the_truth(world: World) -> None:
    cnms = [row | {"state": "OFF"} for row in world.card.views.cnms()]
    world.card.views.cnms = lambda: cnms  # type: ignore[method-assign]
    world.judge.faults_over(world.kernel.now_ns)
    assert broken(lambda: world.run(10)) == Invariant.UNTRUE


# --- I11: repeatable; and the judge itself ---


def short_run(seed: int) -> str:
    world = World(seed=seed)
    world.boot()
    world.submit(workload("shop", component(replicas=2)))
    world.run(2)
    return world.kernel.trace.sha256()


def test_the_same_seed_gives_the_same_run() -> None:
    assert len(check_repeats(lambda: short_run(9))) == 64


def test_a_run_that_differs_from_its_first_is_a_violation() -> None:
    seeds = iter((9, 10))
    assert broken(lambda: check_repeats(lambda: short_run(next(seeds)))) == Invariant.REPEAT


def test_a_violation_that_somebody_swallowed_is_raised_at_the_end(world: World) -> None:
    first = broken(lambda: write(world, ("meta", "epoch", {"value": 0})))
    assert broken(world.judge.finish) == first


def test_a_violation_says_when_and_with_which_seed(world: World) -> None:
    world.run(1)
    with pytest.raises(Violation, match="seed 5") as caught:
        write(world, ("meta", "epoch", {"value": 0}))
    assert caught.value.at_ns == world.kernel.now_ns
    assert caught.value.at_ns >= 1000 * MS
    assert caught.value.text.startswith("from ")


def ranked(per_hour: int) -> World:
    """A module full of what is low; what is high waits, and the daemon stops nobody for it."""
    thresholds = replace(BOARD.thresholds, preemptions_per_hour=per_hour)
    world = World(seed=6, slots=1, board=replace(BOARD, thresholds=thresholds))
    world.boot()
    world.card.preemptor.enabled = False
    half = {"resources": {"cpu_milli": 4000, "memory_bytes": 1 << 20}}
    for name, priority in (("low", 10), ("high", 80)):
        world.submit(workload(name, component(replicas=2, priority=priority, **half)))
        world.run(3)
    return world


def stop_for(world: World, victim: str, by: str) -> None:
    """It gets to the disk that one is stopped for another."""
    value = on_disk(world, "assignment", victim)
    place = value["place"]
    evict = {"by": by, "cnm": place["cnm"], "generation": place["generation"], "at_ms": 0}
    write(world, ("assignment", victim, {**value, "evict": evict}))


def test_what_is_stopped_for_its_equal_is_noticed(world: World) -> None:
    assert broken(lambda: stop_for(world, WEB, "shop/web/1")) == Invariant.PREEMPTED


def test_more_victims_than_an_hour_may_have_are_noticed() -> None:
    world = ranked(1)
    stop_for(world, "low/web/0", "high/web/0")
    assert broken(lambda: stop_for(world, "low/web/1", "high/web/1")) == Invariant.PREEMPTED


def test_the_budget_is_of_an_hour_of_the_daemons_clock() -> None:
    world = ranked(1)
    stop_for(world, "low/web/0", "high/web/0")
    world.kernel.node(DAEMON).clock.skip(HOUR_NS)
    stop_for(world, "low/web/1", "high/web/1")


@pytest.mark.parametrize("late_ns", [SETTLED_NS, RECALLED_NS + SECOND])
def test_a_stop_that_was_taken_back_may_come_late_and_not_for_ever(late_ns: int) -> None:
    world = ranked(0)
    value = on_disk(world, "assignment", "low/web/0")
    evict = {"by": "high/web/0", "cnm": "cnm0", "generation": 0, "at_ms": 0}
    write(world, ("assignment", "low/web/0", {**value, "evict": evict}))
    world.run(late_ns / SECOND)
    one = world.judge._running.alive("low/web/0")
    assert one is not None
    one.kill()
    if late_ns >= RECALLED_NS:
        assert broken(lambda: world.run(1)) == Invariant.SPREAD
    else:
        world.run(1)


def test_what_waits_above_what_could_make_room_for_it_is_noticed() -> None:
    world = ranked(2)
    rest, above = world.judge.rest, world.judge.preempted.waits_above
    waiting = ["high/web/0"]
    assert broken(lambda: rest.waits_above_others(waiting, above)) == Invariant.ABOVE
    off = ranked(0).judge
    off.rest.waits_above_others(waiting, off.preempted.waits_above)


def test_every_invariant_is_broken_by_a_test_here() -> None:
    with open(__file__, encoding="utf-8") as file:
        text = file.read()
    assert [name for name in Invariant.__members__ if f"== Invariant.{name}" not in text] == []


def test_what_was_killed_for_want_of_memory_may_wait_for_more_than_it_declares() -> None:
    document = component(resources={"memory_bytes": 7 << 30})
    [one] = Workload.from_json(workload("shop", document)).components
    assert Room.most(one).memory_bytes == 7 << 30
    assert Room.most(one, ooms=1).memory_bytes == (7 << 30) * 6 // 5
    limited = component(resources={"memory_bytes": 1 << 30, "memory_limit_bytes": 2 << 30})
    [other] = Workload.from_json(workload("shop", limited)).components
    assert Room.most(other, ooms=5).memory_bytes == 2 << 30
