"""What to do next about one instance: a pure function of desired, decided and observed state.

DESIGN D1: the daemon is level-triggered. `decide` is called again whenever one of its inputs may
have changed; it keeps nothing, so nothing is lost with a stack. It gives one action at a time,
and each action, when it is done, changes an input.

The order of the questions is the safety argument: a generation is started elsewhere only when the
CNM that held the last one is out of the way (`Sight.GONE`, DESIGN section 4 rule 9), or reported
it stopped (9a).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from firmware.assignments import Assignment, Ending, Place
from firmware.workload import Component, RestartPolicy
from protocol.apf import ExitReason, InstanceState, InstanceStatus


class Sight(Enum):
    """What the card may rely on about the boot of a CNM that a `Place` names."""

    CURRENT = "current"  # leased, and its report is newer than our last command
    UNSURE = "unsure"  # suspect, fencing, booting, or a stale report: wait
    GONE = "gone"  # fenced, or another boot: whatever ran there is dead


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A place as it is seen now."""

    sight: Sight
    status: InstanceStatus | None = None  # of this instance there, whatever its generation
    draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """Nothing to do until an input changes."""

    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceIt:
    """Find a CNM and write it down, with a new generation."""

    restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """The CNM that held it is gone: give the place up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """It ended: a new generation, after a pause that grows with the restarts."""

    attempt: bool = False  # its restart policy has it so, and may allow so many only


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Bring image, data and spec to the CNM and have them unpacked."""

    place: Place
    prepare: bool = False  # the target of a move


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    place: Place
    generation: int  # what is really there, perhaps older than the place's


@dataclass(frozen=True, slots=True, kw_only=True)
class Flush:
    """Bring the volumes of a stopped generation back to the card."""

    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    """Delete what a generation left on its CNM; `abort` what was never started."""

    place: Place
    generation: int
    abort: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Forget:
    """Nothing of it is left anywhere: delete the assignment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """Write down that it ended by itself and stays so."""

    ending: Ending


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """A move's point of no return: the target becomes the place. Where volumes came home since it
    was prepared, it becomes a new generation, which is staged with their newest state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelMove:
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Vacate:
    """It has ended for somebody else's sake, and its data is home: give the place up."""

    restarts: int
    attempts: int


Action: TypeAlias = (
    Wait
    | PlaceIt
    | Release
    | Again
    | Stage
    | Start
    | Stop
    | Flush
    | Remove
    | Forget
    | End
    | Flip
    | CancelMove
    | Vacate
)

UNSTARTED = frozenset({InstanceState.STAGING, InstanceState.PREPARED})
LIVE = frozenset(
    {InstanceState.STARTING, InstanceState.RUNNING, InstanceState.STOPPING}
)  # may still be running
DEAD = frozenset({InstanceState.STOPPED, InstanceState.EXITED, InstanceState.FAILED})


def decide(
    component: Component | None,
    assignment: Assignment | None,
    seen: Seen | None,
    target: Seen | None,
    gates: Sequence[str] = (),
) -> Action:
    """One step towards what is wanted.

    `component` None: not wanted (any more). `seen` and `target` belong to the assignment's place
    and target. `gates` are the dependencies that are not met yet, in words.
    """
    if assignment is None:
        return PlaceIt() if component is not None else Wait()
    if component is None:
        return _undo(assignment, seen, target)
    if assignment.place is None:
        return PlaceIt(restarts=assignment.restarts)
    assert seen is not None
    if assignment.target is not None:
        assert target is not None
        return _move(assignment, assignment.place, seen, assignment.target, target)
    return _keep(component, assignment, assignment.place, seen, gates)


def _keep(
    component: Component,
    assignment: Assignment,
    place: Place,
    seen: Seen,
    gates: Sequence[str],
) -> Action:
    """Wanted, placed, not moving."""
    if seen.sight is Sight.GONE:
        # rule 12: started again whatever its restart policy says, unless it had ended by itself
        return Wait(reason=assignment.ending.text) if assignment.ending else Release()
    if seen.sight is Sight.UNSURE:
        return Wait(reason="its module is not heard at the moment")
    status = seen.status
    if status is None or status.state == InstanceState.ABSENT:
        return Wait(reason=assignment.ending.text) if assignment.ending else Stage(place=place)
    if status.generation > place.generation:
        return Wait(reason=f"quarantined: generation {status.generation} is newer than ours")
    if status.generation < place.generation:
        if status.state in LIVE:
            return Stop(place=place, generation=status.generation)
        return Stage(place=place)  # takes the place of what is dead or merely prepared
    if assignment.ending is not None:
        return Wait(reason=assignment.ending.text)
    if assignment.evicting:
        return _evict(component, assignment, place, status)
    match status.state:
        case InstanceState.PREPARED:
            return Wait(reason="; ".join(gates)) if gates else Start(place=place)
        case InstanceState.STOPPED | InstanceState.EXITED | InstanceState.FAILED:
            return _after_end(component, assignment, place, status)
        case _:
            return Wait()


def _evict(
    component: Component, assignment: Assignment, place: Place, status: InstanceStatus
) -> Action:
    """Its room is for another instance: stop it, bring the data home, give the place up. What was
    merely prepared too: a START may be on its way, and only a STOP buries it (9a); so what its
    module has lost is staged by `_keep`, to be stopped. One that has ended by itself meanwhile is
    treated as its policy says, but not where it was."""
    if status.state == InstanceState.STOPPING:
        return Wait(reason=f"{place.cnm} stops it")
    if status.state in LIVE or status.state in UNSTARTED:
        return Stop(place=place, generation=status.generation)
    if status.state not in DEAD:
        return Wait()
    step = _after_end(component, assignment, place, status)
    if not isinstance(step, Again):
        return step
    ended = status.state == InstanceState.EXITED
    return Vacate(restarts=assignment.restarts + ended, attempts=assignment.attempts + ended)


def _after_end(
    component: Component, assignment: Assignment, place: Place, status: InstanceStatus
) -> Action:
    if _unsaved(assignment, status):
        return Flush(place=place)
    by_itself = status.state == InstanceState.EXITED
    failed = not (status.exit_reason == ExitReason.EXITED and status.exit_status == 0)
    if not by_itself and (status.state == InstanceState.STOPPED or _ran(status)):
        return Again()  # ended, but not by itself (a lease's end, a move taken back): rule 12
    policy, limit = component.restart.policy, component.restart.max_attempts
    wanted = failed if policy is RestartPolicy.ON_FAILURE else policy is not RestartPolicy.NO
    if wanted and (limit == 0 or assignment.attempts < limit):
        return Again(attempt=True)
    text = status.text or _how(status)
    ending = Ending(failed=failed, status=status.exit_status, text=text, reason=status.exit_reason)
    return End(ending=ending)


def _move(
    assignment: Assignment,
    place: Place,
    seen: Seen,
    target_place: Place,
    target: Seen,
) -> Action:
    """Prepare there, stop here, bring the data home, flip. The start follows from the flip."""
    if target.sight is Sight.GONE:
        return CancelMove(reason=f"{target_place.cnm} is gone")
    if seen.sight is Sight.GONE:
        return Flip()  # the source died: the target is as good a place as any, and prepared
    if target.sight is Sight.UNSURE or seen.sight is Sight.UNSURE:
        return Wait(reason="a module of the move is not heard at the moment")
    there = target.status
    if there is not None and there.generation > target_place.generation:
        return CancelMove(reason=f"{target_place.cnm} holds a newer generation")
    ours = there if there is not None and there.generation == target_place.generation else None
    if ours is not None and ours.state in DEAD:
        return CancelMove(reason=f"{target_place.cnm} could not prepare it: {ours.text}")
    if ours is None or ours.state == InstanceState.ABSENT:
        if there is not None and there.generation < target_place.generation:
            if there.state in LIVE:
                return Stop(place=target_place, generation=there.generation)
            if there.state in UNSTARTED:
                return Remove(place=target_place, generation=there.generation, abort=True)
        return Stage(place=target_place, prepare=True)
    if ours.state != InstanceState.PREPARED:
        return Wait(reason=f"{target_place.cnm} prepares")
    here = seen.status
    if here is not None and here.state == InstanceState.EXITED:
        return CancelMove(reason="it ended by itself before it was moved")
    if here is not None and (here.state in LIVE or here.state in UNSTARTED):
        if here.state == InstanceState.STOPPING:
            return Wait(reason=f"{place.cnm} stops it")
        # what was merely prepared too: a START may be on its way, and only a STOP buries it (9a)
        return Stop(place=place, generation=here.generation)
    if here is not None and _unsaved(assignment, here):
        return Flush(place=place)
    return Flip()


def _undo(assignment: Assignment, seen: Seen | None, target: Seen | None) -> Action:
    """Not wanted: stop it, save its data, delete what is left, at the target first."""
    if assignment.target is not None and target is not None:
        if target.sight is Sight.UNSURE:
            return Wait(reason="a module of the move is not heard at the moment")
        if target.sight is Sight.CURRENT:
            step = _clear(assignment.target, target.status)
            if step is not None:
                return step
    if assignment.place is None or seen is None or seen.sight is Sight.GONE:
        return Forget()
    if seen.sight is Sight.UNSURE:
        return Wait(reason="its module is not heard at the moment")
    status = seen.status
    if status is not None and _unsaved(assignment, status):
        return Flush(place=assignment.place)
    return _clear(assignment.place, status) or Forget()


def _clear(place: Place, status: InstanceStatus | None) -> Action | None:
    if status is None or status.state == InstanceState.ABSENT:
        return None
    if status.state == InstanceState.STOPPING:
        return Wait(reason=f"{place.cnm} stops it")
    if status.state in LIVE:
        return Stop(place=place, generation=status.generation)
    return Remove(place=place, generation=status.generation, abort=status.state in UNSTARTED)


def _ran(status: InstanceStatus) -> bool:
    """It was started and has ended, whoever ended it: the end of a program has a reason."""
    return status.state in DEAD and status.exit_reason != ExitReason.NONE


def _unsaved(assignment: Assignment, status: InstanceStatus) -> bool:
    """It ran, has ended, and its volumes were not brought home since."""
    return (
        bool(assignment.volumes)
        and assignment.place is not None
        and status.generation == assignment.place.generation
        and assignment.flushed < status.generation
        and _ran(status)
    )


def _how(status: InstanceStatus) -> str:
    if status.exit_reason == ExitReason.EXITED:
        return f"exited with status {status.exit_status}"
    if status.exit_reason == ExitReason.SIGNALED:
        return f"killed by signal {status.exit_status}"
    if status.exit_reason == ExitReason.OOM_KILLED:
        return "killed: out of memory"
    return "ended, nobody could read why"
