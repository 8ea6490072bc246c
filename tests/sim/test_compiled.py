"""What `make compiled` makes does the same as what it was made of: the same traces, and on any
bytes the same answers. (A compiled slice whose end lies before its start raises SystemError.)"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILED = ROOT / "build" / "compiled"
ROOMS = ("firmware", "hal", "protocol", "tools")
KIND = """
import firmware.loop, hal.mock.kernel, protocol.mctp.serial
kinds = {module.__file__.rsplit(".", 1)[1] for module in (
    firmware.loop, hal.mock.kernel, protocol.mctp.serial)}
"""
SEEDS = """
from tools.sim.run import run_seed
for seed in (1, 3, 7, 8, 11, 13, 878):
    outcome = run_seed(seed, hours=0.02)
    print(outcome.trace_sha256, outcome.violation)
print(run_seed(14, hours=0.02, heartbeat_hz=10.0).trace_sha256)
"""
BYTES = """
import hashlib, random
from protocol.apf import decode
from protocol.errors import ProtocolError
from protocol.mctp.reassembly import Reassembler
from protocol.mctp.serial import SerialDeframer
from protocol.mctp.serial_frame import Dialect, framer
rng, seen, taken = random.Random(1), hashlib.sha256(), 0
SPECIAL = bytes.fromhex("7e7e7e7d5d5e0101000a04ffaf")
for turn in range(20_000):
    dialect = rng.choice(list(Dialect))
    deframer, reassembler = SerialDeframer(dialect=dialect), Reassembler(local_eid=None)
    piece = bytearray()
    for _ in range(rng.randint(1, 5)):
        if rng.random() < 0.5:
            head = bytes((1, 8, 9, rng.choice((0xC8, 0x80, 0x50, 0x48))))
            piece += framer(dialect)(head + rng.randbytes(rng.randint(0, 40)))
        else:
            piece += bytes(rng.choice(SPECIAL) for _ in range(rng.randint(0, 12)))
    if piece and rng.random() < 0.5:
        piece[rng.randrange(len(piece))] ^= 1 << rng.randrange(8)
    for packet in deframer.feed(bytes(piece)):
        message = reassembler.feed(packet, link="l", now_ns=turn)
        seen.update(packet)
        if message is not None:
            seen.update(message.data)
            taken += 1
    seen.update(repr(sorted(deframer.drops.items()) + sorted(reassembler.drops.items())).encode())
    data = b"\\x7e\\x50\\x41" + rng.randbytes(rng.randint(0, 60))
    try:
        seen.update(repr(decode(data)).encode())
    except ProtocolError as exc:
        seen.update(str(exc).encode())
assert taken > 1000, taken
print(seen.hexdigest())
"""


def newest_s(where: Path) -> float:
    return max(path.stat().st_mtime for room in ROOMS for path in (where / room).rglob("*.py"))


@pytest.fixture(scope="module")
def compiled() -> Path:
    ready = COMPILED / ".ready"
    if not ready.exists():
        pytest.skip("nothing is compiled here; `make compiled` does it")
    if newest_s(ROOT) > ready.stat().st_mtime:
        pytest.skip("what is compiled here is older than its sources; `make compiled` mends it")
    return COMPILED


def said(where: Path, kind: str, program: str) -> str:
    text = f"{KIND}assert kinds == {{{kind!r}}}, kinds\n{program}"
    done = subprocess.run(
        [sys.executable, "-c", text],
        env={**os.environ, "PYTHONPATH": str(where)},
        cwd=where,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("program", [SEEDS, BYTES], ids=["seeds", "bytes"])
def test_compiled_and_interpreted_say_the_same(compiled: Path, program: str) -> None:
    assert said(compiled, "so", program) == said(ROOT, "py", program) != ""
