"""The owner's side of a mover, on a time that the test moves, with movers that it plays."""

from typing import Any

from hal.errors import Unavailable
from hal.linux.mover import Mover
from hal.ports import Event
from tests.fuzz.targets.relays import Owner


def up(owner: Owner) -> Mover:
    [process] = owner.running
    process.stream.data = b"up\n"
    owner.reactor.watches[process.stream.handle](Event.READ)
    assert owner.mover.up
    return owner.mover


def test_who_asked_before_it_was_closed_is_told_that_it_was() -> None:
    owner = Owner()
    answers: list[Any] = []
    mover = up(owner)
    mover.submit_open(owner.reactor.now_ns() + 1_000, answers.append)
    mover.close()
    owner.reactor.settle()
    [answer] = answers
    assert isinstance(answer, Unavailable)
    assert "was stopped" in str(answer)


def test_who_asked_before_it_died_is_told_of_what() -> None:
    owner = Owner()
    answers: list[Any] = []
    mover = up(owner)
    mover.submit_open(owner.reactor.now_ns() + 1_000, answers.append)
    owner.end(-7)
    owner.reactor.settle()
    [answer] = answers
    assert "SIGBUS" in str(answer)
    mover.close()
