"""How a step ends when what it claims is not so."""

from typing import TypeVar

T = TypeVar("T")


class StepFailed(Exception):
    """`text`: what was wanted, and what was seen instead."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


def hold(condition: object, text: str) -> None:
    """Raises StepFailed with `text` unless the condition is true."""
    if not condition:
        raise StepFailed(text)


def need(value: T | None, text: str) -> T:
    """The value. Raises StepFailed with `text` when there is none."""
    if value is None:
        raise StepFailed(text)
    return value
