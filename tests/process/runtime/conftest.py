"""A real loop, real children, and a cgroup of its own for each test."""

import os
import secrets
import sys
from collections.abc import Callable, Iterator

import pytest

from firmware.loop import MS, Loop
from hal.linux.cgroup import CgroupTree
from hal.linux.children import Children, become_subreaper
from hal.linux.clock import LinuxClock

Until = Callable[[Callable[[], bool]], None]


@pytest.fixture
def loop() -> Iterator[Loop]:
    clock = LinuxClock()
    made = Loop(clock)
    yield made
    made.close()
    clock.close()


@pytest.fixture
def until(loop: Loop) -> Until:
    """Run the loop until the predicate holds; fails after 30 s."""

    def run(predicate: Callable[[], bool]) -> None:
        end_ns = loop.now_ns() + 30_000 * MS

        def look() -> None:
            if predicate() or loop.now_ns() > end_ns:
                loop.stop()

        if predicate():
            return
        cancel = loop.every(MS, look)
        loop.run()
        cancel()
        assert predicate(), "nothing came of it in 30 s"

    return run


@pytest.fixture
def soon(loop: Loop) -> int:
    """A deadline that these tests never reach, ns."""
    return loop.now_ns() + 60_000 * MS


@pytest.fixture
def children(loop: Loop) -> Children:
    become_subreaper()
    return Children(loop)


@pytest.fixture
def tree() -> CgroupTree:
    return CgroupTree.detect()


@pytest.fixture
def cgroup_path(tree: CgroupTree) -> Iterator[str]:
    """A path that no other test uses; all that is left in it is killed and removed."""
    path = f"/apf-test-{os.getpid()}-{secrets.token_hex(3)}"
    yield path
    group = tree.at(path)
    for _ in range(1000):
        group.kill()
        if not group.populated() and not group.remove():
            break
    assert not group.exists()


@pytest.fixture
def python() -> str:
    return sys.executable
