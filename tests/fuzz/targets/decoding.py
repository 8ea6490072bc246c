"""`apf decode`: a file that a person has, whatever is in it."""

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from protocol.decode import all_ok, decode, decode_packets
from tests.fuzz.target import Check, Target
from tests.fuzz.targets.links import GOOD, MESSAGE, PACKETS
from tools.decode import read_source, show
from tools.errors import BadUsage
from tools.output import Output

CCI = (  # a port's state asked for, a tunnel, health, one event record
    bytes.fromhex("07000300015103000000000000020001"),
    bytes.fromhex("0700050000531000000000000003000c00000400010000000000000000"),
    bytes.fromhex("08 01 05 00 0042 120000 0000 0000") + bytes(18),
    bytes.fromhex("08 01 05 00 0001 a00000 0000 0000" + "00" * 20 + "0100" + "00" * 138),
)


def decode_file(scratch: Path) -> Check:
    file = scratch / "capture"

    def check(data: bytes) -> bool:
        file.write_bytes(data)
        try:
            chunks = read_source(str(file))
        except BadUsage:
            return False
        found = decode(chunks[0]) if len(chunks) == 1 else decode_packets(chunks)
        json.dumps(found, allow_nan=False)
        with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()):
            show(Output(as_json=False), found)
        assert out.getvalue()
        return all_ok(found)

    return check


TARGETS = (
    Target(
        name="decode_file",
        text="a file into `apf decode`, shown as people see it",
        make=decode_file,
        seeds=lambda: [
            *(GOOD[0], GOOD[1], GOOD[0] + GOOD[1], MESSAGE, *PACKETS),
            *(MESSAGE.hex(" ").encode(), "|".join(p.hex() for p in PACKETS).encode(), b"0x7e 01"),
            *(b"\0\x80\x02", b"\0\0\x02\0\x08\0\0"),
            *CCI,
        ],
        words=(b"7e", b"|", b"0x", b"\x7e\x01"),
        max_bytes=600,
    ),
)
