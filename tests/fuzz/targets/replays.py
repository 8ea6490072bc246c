"""Recordings of ports, as people send them: cut, edited, made up; read and played back."""

import inspect
import json
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from hal.errors import HalError
from hal.record_shapes import DEADLINE, DONE, LISTENER, PORTS, SHAPES
from hal.record_values import decode, encode
from hal.replay import Recording, Signal
from tests.fuzz.reader import Reader, all_keys, edited
from tests.fuzz.target import Check, Target
from tests.unit.firmware.window_fakes import FakeReactor
from tests.unit.hal import test_record_replay as suite

SCENARIOS = (
    (suite.use_cxl, "mock:mem0", suite.add_cxl),
    (suite.use_line, "mock:line?side=a", suite.add_line),
    (suite.use_window, "mock:cnm0?side=a", suite.add_window),
    (suite.use_power, "mock:power", suite.add_slot),
    (suite.use_edu, "mock:edu", suite.add_edu),
    (suite.use_smbus, "mock:board", suite.add_smbus),
)
LINES = 12  # of each recording


@cache
def bases() -> tuple[list[Any], ...]:
    """The beginning of a recording of each port, as lists of lines."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recording"
        for use, spec, add in SCENARIOS:
            suite.record(path, use, spec, add)
            found.append([json.loads(line) for line in path.read_text().splitlines()[:LINES]])
    return tuple(found)


def replay(scratch: Path) -> Check:
    file = scratch / "recording"
    words = all_keys(*bases())

    def check(data: bytes) -> bool:
        if data and data[0] < 9:
            lines = edited(bases()[data[0] % len(SCENARIOS)], Reader(data[1:]), words)
            rows = lines if isinstance(lines, list) else [lines]
            data = "\n".join(map(json.dumps, rows)).encode(errors="surrogatepass")
        file.write_bytes(data)
        try:
            recording = Recording(file)
        except HalError as exc:
            str(exc).encode(errors="replace")
            return False
        reactor = FakeReactor()
        try:
            for _ in range(len(recording._openings)):
                _open(recording, reactor)
            recording.check_finished()
        except HalError as exc:
            str(exc).encode(errors="replace")
        return True

    return check


def _open(recording: Recording, reactor: FakeReactor) -> None:
    port = next(opening.port for opening in recording._openings if not opening.taken)
    opened = recording.open(port, reactor, _signal)
    assert (len(PORTS[port]) > 1) is isinstance(opened, tuple)
    root = recording._roots[-1]
    for _ in range(root.left):
        if not root.left:
            break
        _play(root, root._lines[root._at].body)
        reactor.settle()


def _play(root: Any, body: Any) -> None:
    """The call that stands there, as somebody makes it who has read the file."""
    item = root._objects.get(body.get("on"))
    if item is None or body.get("call") not in item._shape.calls:
        return
    given = {}
    protocol = SHAPES[item._shape.kind].protocol
    for name in list(inspect.signature(getattr(protocol, body["call"])).parameters)[1:]:
        value = decode(body.get("args", {}).get(name))
        try:
            encode(value)
        except TypeError:  # what no caller has
            value = None
        given[name] = value
    for name in (DONE, LISTENER):
        if name in given:
            given[name] = lambda _value: None
    if DEADLINE in given:
        given[DEADLINE] = 1
    getattr(item, body["call"])(**given)


def _signal() -> Signal:
    return Signal(handle=5, set=lambda _on: None, close=lambda: None)


def _seeds() -> Iterable[bytes]:
    for index in range(len(SCENARIOS)):
        yield bytes([index])
        for line in range(LINES):
            for field in range(3):
                yield bytes([index, line, 255, 2, 0])
                yield bytes([index, line, field, 4 + field, 5, 0, line])
                yield bytes([index, line, 3 + field, 0, 255, 4, 1, 17 + field])
    yield b'{"recording": 1}\n{"n": 1, "root": 1, "open": "power", "objects": [{"id": 1, '
    yield b'{"recording": 1}\n{"end": "full"}\n'


TARGETS = (
    Target(
        name="replay",
        text="a recording of a port, as text or edited, read and played back",
        make=replay,
        seeds=_seeds,
        words=(b'"open": ', b'"hex"', b'"is"', b'"call"', b"\n", b"[[[["),
        max_bytes=2048,
    ),
)
