"""`hal.ports.Runtime`: RUNNING means seen to run, the end is told once, nothing is left behind."""

import signal

import pytest

from hal.errors import HalError, Unavailable
from hal.ports import ExitReason, InstanceExit, InstanceHandle, InstanceSpec, Usage
from tests.contract.results import Result, soon
from tests.contract.rigs import RuntimeRig, World

PORT = "runtime"
LIMIT_S = 40.0  # real container engines on a busy machine


class Started:
    """One instance under test."""

    def __init__(self, rig: RuntimeRig, world: World, spec: InstanceSpec) -> None:
        self.exits: list[InstanceExit] = []
        self._world = world
        result: Result[InstanceHandle] = Result()
        rig.runtime.submit_start(spec, soon(world, LIMIT_S), result, self.exits.append)
        assert not result.came, "a submit completes through the mailbox, never inside the call"
        self.handle = result.wait(world, LIMIT_S)

    def exit(self) -> InstanceExit:
        self._world.run_until(lambda: bool(self.exits), LIMIT_S)
        self._world.run_for(0.02)
        assert len(self.exits) == 1, "the end is told once"
        return self.exits[0]


def remove(rig: RuntimeRig, world: World, key: str) -> None:
    result: Result[None] = Result()
    rig.runtime.submit_remove(key, soon(world, LIMIT_S), result)
    result.wait(world, LIMIT_S)


def kill(rig: RuntimeRig, world: World, started: Started, key: str) -> None:
    rig.runtime.kill_all(key)
    started.exit()
    remove(rig, world, key)


def test_a_started_instance_really_runs(rig: RuntimeRig, world: World) -> None:
    started = Started(rig, world, rig.runs_for_ever("one"))
    assert rig.alive("one") >= 1
    assert started.handle.pid > 0
    assert started.handle.start_ticks > 0
    assert started.exits == []
    kill(rig, world, started, "one")


@pytest.mark.parametrize("status", [0, 1, 7])
def test_the_exit_status_is_told(rig: RuntimeRig, world: World, status: int) -> None:
    end = Started(rig, world, rig.exits_with("ends", status)).exit()
    assert (end.reason, end.status) == (ExitReason.EXITED, status)
    assert rig.alive("ends") == 0
    remove(rig, world, "ends")


def test_a_stop_signal_ends_what_obeys_it(rig: RuntimeRig, world: World) -> None:
    started = Started(rig, world, rig.runs_for_ever("polite"))
    for _ in range(100):  # a PID 1 ignores it until its handler is set
        rig.runtime.signal("polite", signal.SIGTERM)
        world.run_for(0.1)
        if started.exits:
            break
    end = started.exit()
    assert end.reason in (ExitReason.SIGNALED, ExitReason.EXITED)
    if end.reason is ExitReason.SIGNALED:
        assert end.status == signal.SIGTERM
    remove(rig, world, "polite")


def test_what_ignores_the_stop_signal_dies_of_kill_all(rig: RuntimeRig, world: World) -> None:
    started = Started(rig, world, rig.ignores_term("stubborn"))
    world.run_for(0.2)  # let it set its handler
    rig.runtime.signal("stubborn", signal.SIGTERM)
    world.run_for(0.2)
    assert started.exits == []
    assert rig.alive("stubborn") >= 1
    rig.runtime.kill_all("stubborn")
    end = started.exit()
    assert (end.reason, end.status) == (ExitReason.SIGNALED, signal.SIGKILL)
    assert rig.alive("stubborn") == 0
    remove(rig, world, "stubborn")


def test_kill_all_takes_every_process_also_one_in_its_own_session(
    rig: RuntimeRig, world: World
) -> None:
    started = Started(rig, world, rig.forks("many"))
    world.run_until(lambda: rig.alive("many") >= 3, LIMIT_S)
    rig.runtime.kill_all("many")
    started.exit()
    assert rig.alive("many") == 0, "the end is told when all of it is gone"
    remove(rig, world, "many")


def test_a_start_that_fails_says_why_and_leaves_nothing(rig: RuntimeRig, world: World) -> None:
    exits: list[InstanceExit] = []
    result: Result[InstanceHandle] = Result()
    rig.runtime.submit_start(rig.cannot_start("bad"), soon(world, LIMIT_S), result, exits.append)
    error = result.error(world, LIMIT_S)
    assert len(str(error)) > 10, "the runtime's own words"
    world.run_for(0.05)
    assert exits == [], "no end is told of what never ran"
    assert rig.alive("bad") == 0
    remove(rig, world, "bad")
    started = Started(rig, world, rig.runs_for_ever("bad"))  # the key is free again
    kill(rig, world, started, "bad")


def test_the_same_key_can_be_used_again_after_remove(rig: RuntimeRig, world: World) -> None:
    first = Started(rig, world, rig.exits_with("again", 0))
    first.exit()
    remove(rig, world, "again")
    second = Started(rig, world, rig.exits_with("again", 1))
    assert second.exit().status == 1
    remove(rig, world, "again")


def test_a_key_in_use_is_an_error_and_the_running_one_is_untouched(
    rig: RuntimeRig, world: World
) -> None:
    started = Started(rig, world, rig.runs_for_ever("taken"))
    result: Result[InstanceHandle] = Result()
    rig.runtime.submit_start(
        rig.runs_for_ever("taken"), soon(world, LIMIT_S), result, lambda end: None
    )
    result.error(world, LIMIT_S)
    assert rig.alive("taken") >= 1
    assert started.exits == []
    kill(rig, world, started, "taken")


@pytest.mark.parametrize("key", ["", "UPPER", "a/b", "..//x", "x" * 65, "a b"])
def test_a_bad_key_is_an_error(rig: RuntimeRig, world: World, key: str) -> None:
    result: Result[InstanceHandle] = Result()
    rig.runtime.submit_start(rig.runs_for_ever(key), soon(world, LIMIT_S), result, lambda end: None)
    result.error(world, LIMIT_S)


def test_instances_end_on_their_own(rig: RuntimeRig, world: World) -> None:
    first = Started(rig, world, rig.runs_for_ever("first"))
    second = Started(rig, world, rig.runs_for_ever("second"))
    assert first.handle.pid != second.handle.pid
    kill(rig, world, first, "first")
    assert second.exits == []
    assert rig.alive("second") >= 1
    kill(rig, world, second, "second")


def test_a_program_runs_inside(rig: RuntimeRig, world: World) -> None:
    started = Started(rig, world, rig.runs_for_ever("host"))
    result: Result[tuple[int, bytes]] = Result()
    rig.runtime.submit_exec("host", rig.exec_echo, soon(world, LIMIT_S), result)
    status, output = result.wait(world, LIMIT_S)
    assert (status, output.strip()) == (3, b"hello")
    assert started.exits == []
    kill(rig, world, started, "host")


def test_a_program_inside_is_killed_at_its_deadline(rig: RuntimeRig, world: World) -> None:
    started = Started(rig, world, rig.runs_for_ever("host"))
    result: Result[tuple[int, bytes]] = Result()
    rig.runtime.submit_exec("host", rig.exec_for_ever, soon(world, 0.3), result)
    assert isinstance(result.error(world, LIMIT_S), HalError)
    assert started.exits == [], "the instance itself goes on"
    kill(rig, world, started, "host")


def test_a_program_in_what_does_not_run_is_unavailable(rig: RuntimeRig, world: World) -> None:
    result: Result[tuple[int, bytes]] = Result()
    rig.runtime.submit_exec("nobody", rig.exec_echo, soon(world), result)
    assert isinstance(result.error(world, LIMIT_S), Unavailable)


def test_usage_is_numbers_or_none_and_grows(rig: RuntimeRig, world: World) -> None:
    started = Started(rig, world, rig.runs_for_ever("meter"))
    world.run_for(0.05)
    first = rig.runtime.usage("meter")
    world.run_for(0.1)
    second = rig.runtime.usage("meter")
    for value in (first.cpu_us, first.memory_bytes, first.pids, first.memory_peak_bytes):
        assert value is None or value >= 0
    if first.cpu_us is not None and second.cpu_us is not None:
        assert second.cpu_us >= first.cpu_us
    kill(rig, world, started, "meter")


def test_unknown_keys_are_ignored_and_have_no_usage(rig: RuntimeRig, world: World) -> None:
    rig.runtime.signal("nobody", signal.SIGTERM)
    rig.runtime.kill_all("nobody")
    assert rig.runtime.usage("nobody") == Usage()
    remove(rig, world, "nobody")
    remove(rig, world, "nobody")
