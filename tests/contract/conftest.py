"""One contract suite per port, run on every backend that can run here (STYLE rule 6).

How a backend joins. `tests/contract/backends_linux.py` and `backends_local.py` each offer

    def backends(port: str) -> list[tuple[str, Factory]]

where `port` is one of the names in `table.PORTS`, the string names the backend in the test's id
(`"linux-pty"`, `"local-shm"`), and

    factory(tmp_path: Path, reactor: Reactor) -> <Port>Rig      (see rigs.py)

sets up one port for one test. An unknown or unsupported port is `[]`. `pytest.param(factory,
id=name, marks=...)` is taken as well as a pair, for backends that start real processes. A
factory that finds out that this machine can't do it calls `pytest.skip("what is missing")`.

The factory is called on the test's thread, which is also the loop's thread. `reactor` is a real
`firmware.loop.Loop` on a `hal.linux.clock.LinuxClock`; the mock gets the loop of a node of the
virtual kernel. A backend closes what it opened in `rig.close`. A test waits only by
`world.run_until(predicate, limit_s)`, which runs that loop; it never sleeps and asserts no time.

A suite uses it so (`PORT` picks the rows of the table):

    PORT = "byte_stream"

    def test_bytes_come_in_order(rig: ByteStreamRig, world: World) -> None: ...
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.rigs import Backend, World
from tests.contract.worlds import RealWorld, VirtualWorld


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    """The world of the backend that the test is parametrised with."""
    backend: Backend = request.getfixturevalue("backend")
    made: World = VirtualWorld() if backend.virtual else RealWorld()
    yield made
    made.close()


@pytest.fixture
def rig(backend: Backend, world: World, tmp_path: Path) -> Iterator[object]:
    """The port under test; `backend` comes from the suite's `pytest.mark.parametrize`."""
    made = backend.factory(tmp_path, world.reactor)
    yield made
    made.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A suite says which port it judges: `PORT = "byte_stream"`."""
    if "rig" not in metafunc.fixturenames:
        return
    from tests.contract.table import backends_of  # late: the table imports every backend

    table = backends_of(metafunc.module.PORT)
    metafunc.parametrize(
        "backend", [pytest.param(b, id=b.name, marks=list(b.marks)) for b in table]
    )
