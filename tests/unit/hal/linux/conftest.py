"""A real loop, and the powers that these tests share."""

from collections.abc import Iterator

import pytest

from firmware.loop import Loop
from hal.linux.workers import Workers
from tests.real_loop import loop, soon, until

__all__ = ["loop", "soon", "until"]  # as fixtures of these tests


@pytest.fixture
def workers(loop: Loop) -> Iterator[Workers]:
    made = Workers(loop)
    yield made
    made.close()
