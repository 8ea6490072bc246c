"""`hal.ports.Spawner`: our helper programs start, end once, and talk over a stream."""

import signal
from contextlib import suppress
from dataclasses import replace

import pytest

from hal.errors import LinkDown, Unavailable
from hal.ports import Process, ProcessSpec
from tests.contract.rigs import SpawnerRig, World

PORT = "spawner"


def start(rig: SpawnerRig, spec: ProcessSpec) -> tuple[Process, list[int]]:
    exits: list[int] = []
    return rig.spawner.spawn(spec, exits.append), exits


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_the_exit_status_is_told_once(rig: SpawnerRig, world: World, status: int) -> None:
    _, exits = start(rig, rig.exits_with(status))
    assert exits == []
    world.run_until(lambda: bool(exits), limit_s=20)
    world.run_for(0.02)
    assert exits == [status]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_is_told_as_minus_the_signal(
    rig: SpawnerRig, world: World, number: signal.Signals
) -> None:
    process, exits = start(rig, rig.runs_for_ever())
    world.run_for(0.02)
    assert exits == []
    process.kill(number)
    world.run_until(lambda: bool(exits), limit_s=20)
    assert exits == [-number]


def test_a_kill_after_the_end_does_nothing(rig: SpawnerRig, world: World) -> None:
    process, exits = start(rig, rig.exits_with(0))
    world.run_until(lambda: bool(exits), limit_s=20)
    process.kill(signal.SIGKILL)
    world.run_for(0.02)
    assert exits == [0]


def test_pids_are_positive_and_differ(rig: SpawnerRig, world: World) -> None:
    started = [start(rig, rig.runs_for_ever()) for _ in range(3)]
    pids = {process.pid for process, _ in started}
    assert len(pids) == 3
    assert min(pids) > 0
    for process, _ in started:
        process.kill(signal.SIGKILL)
    world.run_until(lambda: all(exits for _, exits in started), limit_s=20)


def test_each_end_goes_to_its_own_listener(rig: SpawnerRig, world: World) -> None:
    results = {status: start(rig, rig.exits_with(status))[1] for status in (3, 4, 5)}
    world.run_until(lambda: all(results.values()), limit_s=20)
    assert results == {3: [3], 4: [4], 5: [5]}


def test_an_absent_program_is_unavailable_or_ends_at_once(rig: SpawnerRig, world: World) -> None:
    exits: list[int] = []
    try:
        rig.spawner.spawn(rig.absent(), exits.append)
    except Unavailable:
        return
    world.run_until(lambda: bool(exits), limit_s=20)
    assert exits[0] != 0


def test_the_stream_pair_connects_us_with_the_program(rig: SpawnerRig, world: World) -> None:
    stream, fd = rig.spawner.stream_pair()
    process, exits = start(rig, rig.echoes(fd))
    assert stream.write(b"are you there") == 13
    got = bytearray()

    def answered() -> bool:
        got.extend(stream.read())
        return len(got) >= 13

    world.run_until(answered, limit_s=20)
    assert bytes(got) == b"are you there"
    process.kill(signal.SIGKILL)
    world.run_until(lambda: bool(exits), limit_s=20)
    stream.close()


def test_the_programs_end_hangs_the_stream_up(rig: SpawnerRig, world: World) -> None:
    stream, fd = rig.spawner.stream_pair()
    process, exits = start(rig, rig.echoes(fd))
    world.run_for(0.02)
    process.kill(signal.SIGKILL)
    world.run_until(lambda: bool(exits), limit_s=20)

    def down() -> bool:
        try:
            stream.read()
        except LinkDown:
            return True
        return False

    world.run_until(down)
    stream.close()


def test_a_program_that_is_not_started_hangs_its_stream_up(rig: SpawnerRig, world: World) -> None:
    stream, fd = rig.spawner.stream_pair()
    with suppress(Unavailable):
        rig.spawner.spawn(replace(rig.absent(), pass_fds=(fd,)), lambda _status: None)

    def down() -> bool:
        try:
            stream.read()
        except LinkDown:
            return True
        return False

    world.run_until(down, limit_s=20)
    stream.close()
