"""`--break`: a fault on purpose, just before the step that must notice it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Final

from hal.local.client import KeeperControl
from tools.demo.context import Context

WRONG_GREETING: Final = "goodbye"  # the components' output then is not what it should be


class Break(StrEnum):
    """What may be broken."""

    NONE = "none"
    RELAY = "relay"
    WINDOW = "window"
    OUTPUT = "output"


def compose_env(fault: Break) -> Mapping[str, str]:
    """What a broken output adds to the variables of the Compose files."""
    return {"DEMO_GREETING": WRONG_GREETING} if fault is Break.OUTPUT else {}


@contextmanager
def _keeper(context: Context) -> Iterator[KeeperControl]:
    control = KeeperControl(context.demo.run)
    try:
        yield control
    finally:
        control.close()


def cut_links(context: Context) -> None:
    """Both control links of the CNM that alone has what a component asks for: no other can
    stand in for it."""
    cnm = context.accelerated[0] if context.accelerated else context.board.slots[0].id
    with _keeper(context) as keeper:
        keeper.call("fault", slot=context.slot(cnm).slot, cut=True)
    context.say(f"--break relay: the control links of {cnm} are cut now")


def cut_windows(context: Context) -> None:
    """The windows of all CNMs."""
    with _keeper(context) as keeper:
        for slot in context.board.slots:
            keeper.call("window_cut", slot=slot.slot, cut=True)
    context.say("--break window: the windows of all CNMs are cut now")


_BEFORE: Final[Mapping[Break, tuple[str, Callable[[Context], None]]]] = {
    Break.RELAY: ("submit", cut_links),
    Break.WINDOW: ("transfer", cut_windows),
}


class Breaker:
    """Arms its fault once."""

    def __init__(self, fault: Break) -> None:
        self._step, self._arm = _BEFORE.get(fault, ("", cut_links))

    def before(self, step: str, context: Context) -> None:
        """Raises HalError when the keeper does not take it."""
        if step == self._step:
            self._arm(context)
