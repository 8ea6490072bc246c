"""A real loop, real children, and a cgroup of its own for each test."""

import os
import secrets
import sys
from collections.abc import Iterator

import pytest

from firmware.loop import Loop
from hal.linux.cgroup import CgroupTree
from hal.linux.children import Children, become_subreaper
from tests.real_loop import loop, soon, until

__all__ = ["loop", "soon", "until"]  # as fixtures of these tests


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
