"""Collects completions, so that a test can wait for them and see that each came once."""

from typing import Any, Generic, TypeVar

from hal.errors import HalError
from tests.contract.rigs import World

T = TypeVar("T")


class Result(Generic[T]):
    """Give it as `done`; then `wait` for the one value. A second completion fails the test."""

    def __init__(self) -> None:
        self.values: list[T | HalError] = []

    def __call__(self, value: T | HalError) -> None:
        self.values.append(value)
        assert len(self.values) == 1, f"completed more than once: {self.values}"

    @property
    def came(self) -> bool:
        return bool(self.values)

    def wait(self, world: World, limit_s: float = 20.0) -> T:
        """The value; an error is raised."""
        world.run_until(lambda: self.came, limit_s)
        value = self.values[0]
        if isinstance(value, HalError):
            raise value
        return value

    def error(self, world: World, limit_s: float = 20.0) -> HalError:
        """The error; a value fails the test."""
        world.run_until(lambda: self.came, limit_s)
        value = self.values[0]
        assert isinstance(value, HalError), f"completed with {value!r}, not with an error"
        return value


def soon(world: World, seconds: float = 30.0) -> int:
    """A deadline that is far enough away."""
    return world.reactor.now_ns() + int(seconds * 1_000_000_000)


def need(power: Any, what: str) -> Any:
    """A power that only some backends' rigs have; skips by name where it is None."""
    import pytest

    if power is None:
        pytest.skip(f"this backend's rig can't {what}")
    return power
