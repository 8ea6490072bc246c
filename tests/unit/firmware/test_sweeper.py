"""What a module runs without an order is said once for as long as it runs there, and forgotten."""

from collections.abc import Iterable
from types import SimpleNamespace

import pytest

from firmware.events import EventCode
from firmware.sweeper import Sweeper
from protocol.apf import InstanceState, InstanceStatus


class Bench:
    """A card that ordered nothing."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.sweeper = Sweeper(
            SimpleNamespace(assignments={}, pending=frozenset()),  # type: ignore[arg-type]
            SimpleNamespace(),  # type: ignore[arg-type]
            SimpleNamespace(emit=self.emit),  # type: ignore[arg-type]
            lambda _assignment, _place: None,
        )

    def emit(self, code: EventCode, _text: str, *, cnm: str, instance: str) -> None:
        assert code is EventCode.INSTANCE_QUARANTINED
        self.said.append(f"{cnm} {instance}")

    def report(self, cnm: str, instances: Iterable[str], generation: int = 1) -> None:
        """What a module says that it runs."""
        module = SimpleNamespace(
            id=cnm,
            boot_id=b"b" * 16,
            current=True,
            observed={name: running(name, generation) for name in instances},
        )
        self.sweeper.look(module)  # type: ignore[arg-type]


def running(instance: str, generation: int) -> InstanceStatus:
    return InstanceStatus(instance=instance, generation=generation, state=InstanceState.RUNNING)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_stranger_is_said_once_and_again_when_it_is_another_one(bench: Bench) -> None:
    for _ in range(3):
        bench.report("cnm0", ["a/b/0"])
    assert bench.said == ["cnm0 a/b/0"]
    bench.report("cnm1", ["a/b/0"])
    bench.report("cnm0", ["a/b/0"], generation=2)
    assert bench.said == ["cnm0 a/b/0", "cnm1 a/b/0", "cnm0 a/b/0"]


def test_a_stranger_that_is_there_is_said_once_however_many_there_were(bench: Bench) -> None:
    for month in range(40):
        bench.report("cnm0", [f"old/{month}/{n}" for n in range(128)])
    bench.said.clear()
    for _ in range(3):
        bench.report("cnm0", ["new/a/0"])
    assert bench.said == ["cnm0 new/a/0"]
