"""The card's ports with a recorder around them: `apf up --record FILE`.

Control links, windows with their doorbells, SMBus, CXL devices, and the slots' power are recorded,
whoever opened them (`hal.registry` or the keeper), under the names that the board gives their
slots. A daemon that is started again begins a new file; the one before is kept as FILE.before.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from firmware.card import CardPorts
from firmware.inventory import CnmPorts
from hal.errors import HalError
from hal.ports import ByteStream, Done, Doorbell, Window
from hal.record import Recorder
from hal.registry import Spec

BEFORE: Final = ".before"


def open_recorder(path: Path, now_ns: Callable[[], int]) -> Recorder:
    """A new file. Raises Unavailable when it can't be made."""
    with contextlib.suppress(OSError):  # there was none; anything else the new file will meet too
        path.replace(path.with_name(path.name + BEFORE))
    return Recorder(path, now_ns)


def recorded(ports: CardPorts, recorder: Recorder) -> CardPorts:
    """The same ports, each call of which is written down."""
    return dataclasses.replace(
        ports,
        power=recorder.wrap("power", _spec("power"), ports.power),
        slots={name: RecordedCnmPorts(slot, name, recorder) for name, slot in ports.slots.items()},
        hardware=dataclasses.replace(
            ports.hardware,
            smbus=_opener(recorder, "smbus", ports.hardware.smbus),
            memdev=_opener(recorder, "cxl", ports.hardware.memdev),
        ),
    )


def _opener(
    recorder: Recorder, port: str, opener: Callable[[str], Any] | None
) -> Callable[[str], Any] | None:
    """What opens a port by name, with a recorder around what it opens."""
    if opener is None:
        return None
    return lambda name: recorder.wrap(port, _spec(name), opener(name))


class RecordedCnmPorts:
    """`CnmPorts` of one slot."""

    def __init__(self, ports: CnmPorts, name: str, recorder: Recorder) -> None:
        self._ports, self._name, self._recorder = ports, name, recorder

    def open_mc(self) -> ByteStream:
        return self._stream("mc", self._ports.open_mc())

    def open_agent(self) -> ByteStream:
        return self._stream("agent", self._ports.open_agent())

    def open_window(self, deadline_ns: int, done: Done[tuple[Window, Doorbell]]) -> None:
        self._ports.open_window(deadline_ns, partial(self._opened, done))

    def _opened(
        self,
        done: Done[tuple[Window, Doorbell]],
        result: tuple[Window, Doorbell] | HalError,
    ) -> None:
        if isinstance(result, HalError):
            done(result)
        else:
            done(self._recorder.wrap("window", _spec(f"{self._name}/window"), result))

    def _stream(self, which: str, stream: Any) -> ByteStream:
        found: ByteStream = self._recorder.wrap(
            "byte_stream", _spec(f"{self._name}/{which}"), stream
        )
        return found


def _spec(name: str) -> Spec:
    return Spec(text=f"card:{name}", scheme="card", target=name)
