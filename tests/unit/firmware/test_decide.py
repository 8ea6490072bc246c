"""The reconciler's brain: single steps as a table, and a model that it must bring to rest."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firmware import decide as steps
from firmware.assignments import Assignment, Ending, Eviction, Place
from firmware.decide import DEAD, LIVE, Seen, Sight, decide
from firmware.workload import Component, Workload
from protocol.apf import ExitReason, InstanceState, InstanceStatus

NAME = "shop/web/0"


def component(restart: str = "no", volumes: int = 0, most: int = 0) -> Component:
    document = {
        "schema": "apf-workload/1",
        "name": "shop",
        "components": [
            {
                "name": "web",
                "image": "busybox",
                "restart": {"policy": restart, "max_attempts": most},
                "volumes": [{"name": f"v{n}", "target": f"/v{n}"} for n in range(volumes)],
            }
        ],
    }
    return Workload.from_json(document).components[0]


def at(cnm: str, generation: int, boot: bytes = b"1" * 16) -> Place:
    return Place(cnm=cnm, boot_id=boot, generation=generation)


def assigned(place: Place | None, **changes: object) -> Assignment:
    base = Assignment(instance=NAME, workload="shop", component="web", index=0, place=place)
    return replace(base, **changes)


def status(state: InstanceState, generation: int = 1, **changes: object) -> InstanceStatus:
    return InstanceStatus(instance=NAME, generation=generation, state=state, **changes)


def current(found: InstanceStatus | None = None, *, draining: bool = False) -> Seen:
    return Seen(sight=Sight.CURRENT, status=found, draining=draining)


GONE, UNSURE = Seen(sight=Sight.GONE), Seen(sight=Sight.UNSURE)
KILLED = {"exit_reason": ExitReason.SIGNALED, "exit_status": 9}
HERE, THERE = at("cnm0", 1), at("cnm1", 2)
ENDED = Ending(failed=False, status=0, text="exited with status 0")


@pytest.mark.parametrize(
    ("want", "assignment", "seen", "expected"),
    [
        pytest.param(component(), None, None, steps.PlaceIt(), id="new"),
        pytest.param(None, None, None, steps.Wait(), id="neither wanted nor there"),
        pytest.param(
            component(), assigned(None, restarts=2), None, steps.PlaceIt(restarts=2), id="waits"
        ),
        pytest.param(component(), assigned(HERE), GONE, steps.Release(), id="module gone"),
        pytest.param(
            component(), assigned(HERE), current(), steps.Stage(place=HERE), id="not there yet"
        ),
        pytest.param(
            component(),
            assigned(HERE),
            current(status(InstanceState.PREPARED)),
            steps.Start(place=HERE),
            id="prepared",
        ),
        pytest.param(
            component(),
            assigned(at("cnm0", 5)),
            current(status(InstanceState.RUNNING, 4)),
            steps.Stop(place=at("cnm0", 5), generation=4),
            id="rule 11: lower is stopped",
        ),
        pytest.param(
            component("always"),
            assigned(HERE),
            current(status(InstanceState.EXITED, exit_reason=ExitReason.EXITED)),
            steps.Again(attempt=True),
            id="restart always",
        ),
        pytest.param(
            component("on-failure"),
            assigned(HERE),
            current(status(InstanceState.EXITED, exit_reason=ExitReason.EXITED, exit_status=3)),
            steps.Again(attempt=True),
            id="on-failure, failed",
        ),
        pytest.param(
            component("no"),
            assigned(HERE),
            current(status(InstanceState.STOPPED, text="lease expired")),
            steps.Again(),
            id="rule 12: stopped by us, not by itself",
        ),
        pytest.param(
            component("no"),
            assigned(HERE),
            current(status(InstanceState.FAILED, text="lease expired", **KILLED)),
            steps.Again(),
            id="rule 12: killed by its module, not ended by itself",
        ),
        pytest.param(
            component("no", volumes=1),
            assigned(HERE, volumes=("v0",)),
            current(status(InstanceState.FAILED, text="lease expired", **KILLED)),
            steps.Flush(place=HERE),
            id="killed by its module: its data is still there",
        ),
        pytest.param(
            component("no"),
            assigned(HERE),
            current(status(InstanceState.FAILED, text="start failed: no such file")),
            steps.End(
                ending=Ending(
                    failed=True,
                    status=0,
                    text="start failed: no such file",
                    reason=ExitReason.NONE,
                )
            ),
            id="never started, and not to be tried again",
        ),
        pytest.param(
            None,
            assigned(HERE),
            current(status(InstanceState.RUNNING)),
            steps.Stop(place=HERE, generation=1),
            id="deleted: stop",
        ),
        pytest.param(
            None,
            assigned(HERE),
            current(status(InstanceState.STOPPED)),
            steps.Remove(place=HERE, generation=1),
            id="deleted: remove",
        ),
        pytest.param(
            None,
            assigned(HERE, volumes=("v0",)),
            current(status(InstanceState.STOPPED, **KILLED)),
            steps.Flush(place=HERE),
            id="deleted: its data comes home first",
        ),
        pytest.param(
            None,
            assigned(HERE, volumes=("v0",)),
            current(status(InstanceState.STOPPED)),
            steps.Remove(place=HERE, generation=1),
            id="deleted: what never ran has no data to bring home",
        ),
        pytest.param(
            None,
            assigned(HERE),
            current(status(InstanceState.PREPARED)),
            steps.Remove(place=HERE, generation=1, abort=True),
            id="deleted: what was never started is aborted",
        ),
        pytest.param(None, assigned(HERE), current(), steps.Forget(), id="deleted: nothing left"),
        pytest.param(None, assigned(HERE), GONE, steps.Forget(), id="deleted with its module"),
    ],
)
def test_one_step(
    want: Component | None, assignment: Assignment | None, seen: Seen | None, expected: object
) -> None:
    assert decide(want, assignment, seen, None) == expected


@pytest.mark.parametrize("wanted", [True, False])
def test_nothing_is_done_while_the_module_is_not_heard(wanted: bool) -> None:
    action = decide(component() if wanted else None, assigned(HERE), UNSURE, None)
    assert isinstance(action, steps.Wait)
    assert "not heard" in action.reason


def test_a_newer_generation_than_ours_is_left_alone() -> None:
    action = decide(component(), assigned(HERE), current(status(InstanceState.RUNNING, 9)), None)
    assert isinstance(action, steps.Wait)
    assert "quarantined" in action.reason


def test_what_ended_well_stays_ended_even_when_its_module_dies() -> None:
    for seen in (GONE, current(), current(status(InstanceState.EXITED))):
        assert isinstance(decide(component(), assigned(HERE, ending=ENDED), seen, None), steps.Wait)


def test_an_end_without_restart_is_written_down_with_its_status() -> None:
    found = status(InstanceState.EXITED, exit_reason=ExitReason.EXITED, exit_status=7)
    action = decide(component("no"), assigned(HERE), current(found), None)
    assert action == steps.End(ending=Ending(failed=True, status=7, text="exited with status 7"))


@pytest.mark.parametrize(
    ("reason", "number", "exit_status", "signal"),
    [
        (ExitReason.EXITED, 0, 0, None),
        (ExitReason.SIGNALED, 9, None, 9),
        (ExitReason.OOM_KILLED, 9, None, None),
        (ExitReason.NONE, 0, None, None),
    ],
)
def test_only_what_exited_has_an_exit_status_also_after_a_restart(
    reason: ExitReason, number: int, exit_status: int | None, signal: int | None
) -> None:
    ending = Ending(failed=True, status=number, text="", reason=reason)
    kept = Ending.from_json(ending.to_json())
    assert (kept.exit_status, kept.signal) == (exit_status, signal)


def test_an_ending_of_an_old_journal_is_read_as_it_was_written() -> None:
    kept = Ending.from_json({"failed": True, "status": 3, "text": "exited with status 3"})
    assert (kept.exit_status, kept.signal) == (3, None)


def test_gates_hold_a_prepared_instance_back_and_say_why() -> None:
    seen = current(status(InstanceState.PREPARED))
    action = decide(component(), assigned(HERE), seen, None, ["waits for db: healthy"])
    assert action == steps.Wait(reason="waits for db: healthy")


def test_a_move_stops_here_only_when_there_is_prepared() -> None:
    moving = assigned(HERE, target=THERE, why="on request")
    running = current(status(InstanceState.RUNNING))
    assert decide(component(), moving, running, current()) == steps.Stage(place=THERE, prepare=True)
    staging = current(status(InstanceState.STAGING, 2))
    assert isinstance(decide(component(), moving, running, staging), steps.Wait)
    prepared = current(status(InstanceState.PREPARED, 2))
    assert decide(component(), moving, running, prepared) == steps.Stop(place=HERE, generation=1)
    stopped = current(status(InstanceState.STOPPED))
    assert decide(component(), moving, stopped, prepared) == steps.Flip()


@pytest.mark.parametrize("state", [InstanceState.STAGING, InstanceState.PREPARED])
def test_a_move_buries_what_is_prepared_here_because_its_start_may_be_on_its_way(
    state: InstanceState,
) -> None:
    there = current(status(InstanceState.PREPARED, 2))
    moving = assigned(HERE, target=THERE)
    step = decide(component(), moving, current(status(state)), there)
    assert step == steps.Stop(place=HERE, generation=1)
    buried = current(status(InstanceState.STOPPED))
    assert decide(component(), moving, buried, there) == steps.Flip()
    assert decide(component(), assigned(HERE), buried, None) == steps.Again(), "the move was off"


def test_a_move_brings_the_data_home_between_stop_and_flip() -> None:
    moving = assigned(HERE, target=THERE, volumes=("v0",))
    stopped = current(status(InstanceState.STOPPED, **KILLED))
    prepared = current(status(InstanceState.PREPARED, 2))
    assert decide(component(volumes=1), moving, stopped, prepared) == steps.Flush(place=HERE)
    flushed = replace(moving, flushed=1)
    assert decide(component(volumes=1), flushed, stopped, prepared) == steps.Flip()


def test_a_move_is_cancelled_when_its_target_dies_and_flips_when_its_source_does() -> None:
    moving = assigned(HERE, target=THERE)
    assert isinstance(
        decide(component(), moving, current(status(InstanceState.RUNNING)), GONE),
        steps.CancelMove,
    )
    assert decide(component(), moving, GONE, current()) == steps.Flip()


def test_what_ends_by_itself_during_a_move_is_not_started_at_the_target() -> None:
    moving = assigned(HERE, target=THERE)
    ended = current(status(InstanceState.EXITED, exit_reason=ExitReason.EXITED))
    prepared = current(status(InstanceState.PREPARED, 2))
    assert isinstance(decide(component(), moving, ended, prepared), steps.CancelMove)


def test_a_target_whose_preparation_was_ended_cancels_the_move() -> None:
    moving = assigned(HERE, target=THERE)
    running = current(status(InstanceState.RUNNING))
    dead = current(status(InstanceState.STOPPED, 2, text="lease expired"))
    assert isinstance(decide(component(), moving, running, dead), steps.CancelMove)


def test_at_the_target_of_a_deleted_move_the_dead_are_removed_and_the_prepared_aborted() -> None:
    moving = assigned(HERE, target=THERE)
    for state, abort in ((InstanceState.PREPARED, True), (InstanceState.STOPPED, False)):
        found = current(status(state, 1))  # an older generation was here once
        assert decide(None, moving, GONE, found) == steps.Remove(
            place=THERE, generation=1, abort=abort
        )


# --- stopped for another instance ---


def evicted(place: Place = HERE, **changes: object) -> Assignment:
    evict = Eviction(by="high/web/0", cnm=place.cnm, generation=place.generation, at_ms=1)
    return assigned(place, evict=evict, **changes)


@pytest.mark.parametrize("restart", ["no", "always", "on-failure", "unless-stopped"])
def test_what_is_stopped_for_another_gives_its_place_up_whatever_its_policy_says(
    restart: str,
) -> None:
    want = component(restart)
    for state in (InstanceState.STARTING, InstanceState.RUNNING, InstanceState.PREPARED):
        stop = steps.Stop(place=HERE, generation=1)
        assert decide(want, evicted(), current(status(state)), None, ["waits"]) == stop
    stopping = decide(want, evicted(), current(status(InstanceState.STOPPING)), None)
    assert isinstance(stopping, steps.Wait)
    stopped = current(status(InstanceState.STOPPED, **KILLED))
    assert decide(want, evicted(restarts=3, attempts=1), stopped, None) == steps.Vacate(
        restarts=3, attempts=1
    )


def test_its_data_comes_home_before_the_place_is_given_up() -> None:
    want, stopped = component(volumes=1), current(status(InstanceState.STOPPED, **KILLED))
    one = evicted(volumes=("v0",))
    assert decide(want, one, stopped, None) == steps.Flush(place=HERE)
    assert decide(want, replace(one, flushed=1), stopped, None) == steps.Vacate(
        restarts=0, attempts=0
    )


def test_what_has_ended_by_itself_before_it_was_stopped_is_over_as_its_policy_says() -> None:
    done = current(status(InstanceState.EXITED, exit_reason=ExitReason.EXITED))
    assert isinstance(decide(component("no"), evicted(), done, None), steps.End)
    vacate = steps.Vacate(restarts=2, attempts=1)
    assert decide(component("always"), evicted(restarts=1), done, None) == vacate


def test_a_module_that_dies_meanwhile_or_is_not_heard_changes_nothing_of_the_rules() -> None:
    assert decide(component(), evicted(), GONE, None) == steps.Release()
    assert isinstance(decide(component(), evicted(), UNSURE, None), steps.Wait)
    assert decide(None, evicted(), GONE, None) == steps.Forget()


def test_an_eviction_is_of_one_generation_and_can_be_taken_back() -> None:
    running = current(status(InstanceState.RUNNING, 5))
    past = replace(evicted(HERE), place=at("cnm0", 5))
    assert decide(component(), past, running, None) == steps.Wait()
    back = replace(evicted(HERE), evict=replace(evicted(HERE).evict, generation=0))
    stopped = current(status(InstanceState.STOPPED, **KILLED))
    assert decide(component(), back, stopped, None) == steps.Again()


# --- how often ---


@pytest.mark.parametrize("policy", ["on-failure", "always", "unless-stopped"])
def test_a_policy_allows_so_many_attempts_and_no_more(policy: str) -> None:
    want = component(policy, most=2)
    failed = status(InstanceState.EXITED, exit_reason=ExitReason.EXITED, exit_status=3)
    left = assigned(HERE, restarts=9, attempts=1)
    spent = assigned(HERE, restarts=9, attempts=2)
    assert decide(want, left, current(failed), None) == steps.Again(attempt=True)
    ended = decide(want, spent, current(failed), None)
    assert isinstance(ended, steps.End)
    assert ended.ending.failed
    done = replace(failed, exit_status=0)
    ended = decide(want, spent, current(done), None)
    assert isinstance(ended, steps.End)
    assert not ended.ending.failed


def test_what_others_ended_is_started_again_with_no_attempt_left() -> None:
    spent = assigned(HERE, attempts=2)
    for state in (InstanceState.STOPPED, InstanceState.FAILED):
        stopped = current(status(state, text="lease expired", **KILLED))
        assert decide(component("on-failure", most=2), spent, stopped, None) == steps.Again()


# --- a model: two modules that do what they are told, sometimes late, and may die ---


@dataclass
class Model:
    want: Component | None
    boots: dict[str, bytes] = field(default_factory=lambda: {"cnm0": b"1" * 16, "cnm1": b"1" * 16})
    there: dict[str, InstanceStatus] = field(default_factory=dict)
    heard: dict[str, bool] = field(default_factory=lambda: {"cnm0": True, "cnm1": True})
    assignment: Assignment | None = None
    generation: int = 0

    def place(self, cnm: str) -> Place:
        self.generation += 1
        return Place(cnm=cnm, boot_id=self.boots[cnm], generation=self.generation)

    def look(self, place: Place | None) -> Seen | None:
        if place is None:
            return None
        if self.boots[place.cnm] != place.boot_id:
            return GONE
        if not self.heard[place.cnm]:
            return UNSURE
        return current(self.there.get(place.cnm))

    def check(self) -> None:
        live = [cnm for cnm, found in self.there.items() if found.state in LIVE]
        assert len(live) <= 1, f"runs twice: {live}"

    def step(self) -> bool:
        a = self.assignment
        seen, target = (self.look(a.place), self.look(a.target)) if a else (None, None)
        action = decide(self.want, a, seen, target)
        self.carry_out(action)
        self.check()
        return not isinstance(action, steps.Wait)

    def carry_out(self, action: steps.Action) -> None:
        a = self.assignment
        match action:
            case steps.PlaceIt():
                base = a or assigned(None)
                volumes = tuple(m.name for m in self.want.volumes)
                self.assignment = replace(
                    base, place=self.place("cnm0"), target=None, ending=None, volumes=volumes
                )
            case steps.Release():
                self.assignment = replace(a, place=self.place("cnm1"), target=None)
            case steps.Again(attempt=attempt):
                self.assignment = replace(
                    a,
                    place=self.place(a.place.cnm),
                    restarts=a.restarts + 1,
                    attempts=a.attempts + attempt,
                )
            case steps.Stage(place=place):
                old = self.there.get(place.cnm)
                assert old is None or old.state not in LIVE
                self.there[place.cnm] = status(InstanceState.PREPARED, place.generation)
            case steps.Start(place=place):
                self.there[place.cnm] = status(InstanceState.RUNNING, place.generation)
            case steps.Stop(place=place, generation=generation):
                assert self.there[place.cnm].generation == generation
                self.there[place.cnm] = status(InstanceState.STOPPED, generation, **KILLED)
            case steps.Flush(place=place):
                self.assignment = replace(a, flushed=place.generation)
            case steps.Remove(place=place):
                del self.there[place.cnm]
            case steps.Forget():
                self.assignment = None
            case steps.End(ending=ending):
                self.assignment = replace(a, ending=ending)
            case steps.Flip():
                target = a.target
                if a.volumes:
                    self.generation += 1
                    target = replace(target, generation=self.generation)
                self.assignment = replace(a, place=target, target=None)
            case steps.CancelMove():
                self.assignment = replace(a, target=None)
            case steps.Vacate(restarts=restarts, attempts=attempts):
                found = self.there[a.place.cnm]
                assert found.state in DEAD
                assert found.generation == a.place.generation  # and so it is buried (9a)
                assert not a.volumes or a.flushed == found.generation or not was_running(found)
                self.assignment = replace(a, place=None, restarts=restarts, attempts=attempts)

    def sweep(self) -> None:
        """What the reconciler's sweeper does with leftovers (rule 11)."""
        a = self.assignment
        places = [a.place, a.target] if a else []
        for cnm in list(self.there):
            if not any(p is not None and p.cnm == cnm for p in places):
                del self.there[cnm]

    def reboot(self, cnm: str) -> None:
        self.boots[cnm] = bytes(16 - 2) + self.generation.to_bytes(2, "big")
        self.generation += 1
        self.there.pop(cnm, None)

    def settle(self) -> None:
        for _ in range(60):
            if not self.step():
                return
        raise AssertionError("it does not come to rest")


EVENTS = st.sampled_from(
    [
        *("step", "step", "step", "mute0", "hear", "reboot0", "reboot1", "move", "exit", "delete"),
        *("evict", "take back"),
    ]
)


def was_running(found: InstanceStatus) -> bool:
    return found.exit_reason != ExitReason.NONE


@settings(max_examples=300, deadline=None)
@given(st.lists(EVENTS, max_size=40), st.sampled_from(["no", "always"]), st.integers(0, 1))
def test_whatever_happens_it_never_runs_twice_and_ends_where_it_should(
    events: list[str], restart: str, volumes: int
) -> None:
    model = Model(component(restart, volumes))
    for event in events:
        a = model.assignment
        match event:
            case "step":
                model.step()
            case "mute0":
                model.heard["cnm0"] = False
            case "hear":
                model.heard = dict.fromkeys(model.heard, True)
            case "reboot0" | "reboot1":
                model.reboot(f"cnm{event[-1]}")
            case "move" if a and a.place and not a.target and not a.ending:
                other = "cnm1" if a.place.cnm == "cnm0" else "cnm0"
                model.assignment = replace(a, target=model.place(other), why="test")
            case "exit":
                for cnm, found in model.there.items():
                    if found.state == InstanceState.RUNNING:
                        model.there[cnm] = status(
                            InstanceState.EXITED,
                            found.generation,
                            exit_reason=ExitReason.EXITED,
                        )
            case "evict" if a and a.place and not a.target and not a.ending:
                generation = a.place.generation
                evict = Eviction(by="x/y/0", cnm=a.place.cnm, generation=generation, at_ms=0)
                model.assignment = replace(a, evict=evict)
            case "take back" if a and a.evict:
                model.assignment = replace(a, evict=replace(a.evict, generation=0))
            case "delete":
                model.want = None
    model.heard = dict.fromkeys(model.heard, True)
    model.settle()
    model.sweep()
    if model.want is None:
        assert model.assignment is None
        assert model.there == {}
    elif model.assignment.ending is None:
        place = model.assignment.place
        assert model.there[place.cnm] == status(InstanceState.RUNNING, place.generation)
