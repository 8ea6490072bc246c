"""A control link through a memory that two relay processes share, each killed once."""

import os
import signal

import pytest

from firmware.link import Link
from firmware.mover import mailbox_argv
from hal.linux.cgroup import CgroupTree
from hal.linux.children import Children
from hal.linux.spawner import LinuxSpawner
from hal.ports import ProcessSpec
from protocol.mctp.serial_frame import Dialect
from tests.contract.worlds import RealWorld

pytestmark = pytest.mark.process


def test_a_link_through_a_mailbox_survives_the_death_of_either_relay(tmp_path):
    memory = tmp_path / "bar"
    memory.write_bytes(bytes(64 * 1024))
    world = RealWorld()
    spawner = LinuxSpawner(Children(world.reactor), CgroupTree.detect())
    pids = {"a": 0, "b": 0}
    ended = []

    def opener(side):
        def open_stream():
            stream, fd = spawner.stream_pair()
            argv = mailbox_argv(f"map:{memory}?side={side}", fd)
            spec = ProcessSpec(argv=argv, env=dict(os.environ), pass_fds=(fd,))
            pids[side] = spawner.spawn(spec, ended.append).pid
            return stream

        return open_stream

    links = [Link(world.reactor, opener(side), name=side, dialect=Dialect.A) for side in ("a", "b")]
    got = []
    links[1].on_message = lambda message: got.append(bytes(message.data))

    def passes(text):
        body = bytes([0x7E]) + text * 100
        world.run_until(
            lambda: links[0].send_message(body, tag=1, to=True) and body in got, limit_s=30
        )

    passes(b"first")
    for side in ("a", "b"):
        old = pids[side]
        os.kill(old, signal.SIGKILL)
        world.run_until(lambda s=side, o=old: pids[s] != o, limit_s=30)
        passes(f"after the death of {side}".encode())
    for link in links:
        link.close()
    world.run_until(lambda: len(ended) == 4, limit_s=30)
    assert sorted(ended) == [-9, -9, 0, 0]
    world.close()
