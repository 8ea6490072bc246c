"""`apf decode`: what captured bytes say, layer by layer. Exit 0 good, 1 bad bytes, 2 usage."""

import re
import sys
from pathlib import Path
from typing import Any, Final

import click

from protocol.decode import APF_VENDOR_ID, LAYERS, Decoded, all_ok, decode, decode_packets
from tools.errors import BadUsage
from tools.output import Output
from tools.session import ApfCommand, Session

MAX_INPUT_BYTES: Final = 4 << 20  # a whole day of a 1 Hz console; more is a wrong file
PACKET_SEPARATOR: Final = "|"

_HEX_NOISE: Final = re.compile(r"0[xX](?=[0-9a-fA-F])|[\s:,_-]")
_HEX_TEXT: Final = re.compile(rb"[0-9a-fA-FxX\s:,_|-]*")
# Left out of the tree where the layer inside says the same in words.
_SAID_INSIDE: Final = ("payload", "packet", "message")
_HEX_KEYS: Final = ("fcs", "vendor", "opcode")  # people know these in hex


@click.command("decode", cls=ApfCommand)
@click.argument("source", metavar="HEX|FILE|-")
@click.option(
    "--layer",
    type=click.Choice(LAYERS),
    help="The outermost layer; found by itself when not given. `serial` judges framing only.",
)
@click.option(
    "--vendor-id",
    type=click.IntRange(0, 0xFFFF),
    default=APF_VENDOR_ID,
    help="Vendor id of our control protocol, where the board sets another [0x4150].",
)
@click.pass_obj
def decode_command(session: Session, source: str, layer: str | None, vendor_id: int) -> int:
    """Decode bytes of a control link: serial frames, MCTP packets, messages.

    Bytes are HEX (spaces, colons and 0x are allowed), a FILE of bytes or of hex text, or "-" for
    standard input. "|" in hex separates MCTP packets. Ends 1 when anything in them is wrong.
    """
    chunks = read_source(source)
    found: Decoded
    if len(chunks) == 1:
        found = decode(chunks[0], layer, vendor_id=vendor_id)
    elif layer in (None, "mctp"):
        found = decode_packets(chunks, vendor_id=vendor_id)
    else:
        raise BadUsage("usage", f'"{PACKET_SEPARATOR}" separates MCTP packets, not {layer}')
    session.out.data("decode", found, lambda: show(session.out, found))
    nodes = found if isinstance(found, list) else [found]
    good = all(node["ok"] for node in nodes) if layer == "serial" else all_ok(found)
    return 0 if good else 1


def read_source(source: str) -> list[bytes]:
    """The bytes that `source` names, cut at "|". Raises `BadUsage` where there are none."""
    if source == "-":
        return _from_file(sys.stdin.buffer.read(MAX_INPUT_BYTES + 1), "standard input")
    path = Path(source)
    if _is_file(path):
        try:
            with path.open("rb") as file:
                return _from_file(file.read(MAX_INPUT_BYTES + 1), source)
        except OSError as exc:
            raise BadUsage("unreadable", f"can't read {source}: {exc.strerror}") from exc
    return _from_hex(source, "neither a file nor hex")


def show(out: Output, found: Decoded) -> None:
    """The tree, for people."""
    nodes = found if isinstance(found, list) else [found]
    for index, item in enumerate(nodes):
        if len(nodes) > 1:
            out.print(f"#{index}")
        _show_node(out, item, 1 if len(nodes) > 1 else 0)
    bad = sum(not all_ok(item) for item in nodes)
    if len(nodes) > 1:
        out.say(f"{len(nodes)} pieces, {bad} of them bad")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False  # hex too long for a name


def _from_file(data: bytes, name: str) -> list[bytes]:
    if not data:
        raise BadUsage("no_bytes", f"{name} is empty")
    if len(data) > MAX_INPUT_BYTES:
        raise BadUsage("too_large", f"{name} has more than {MAX_INPUT_BYTES} bytes")
    if _HEX_TEXT.fullmatch(data):
        return _from_hex(data.decode("ascii"), f"{name} holds hex text that is broken")
    return [data]


def _from_hex(text: str, wrong: str) -> list[bytes]:
    chunks = []
    for part in text.split(PACKET_SEPARATOR):
        digits = _HEX_NOISE.sub("", part)
        try:
            chunks.append(bytes.fromhex(digits))
        except ValueError as exc:
            shown = text if len(text) <= 60 else text[:57] + "..."
            raise BadUsage("bad_hex", f"{wrong} ({_hex_fault(digits)}): {shown}") from exc
    if not any(chunks):
        raise BadUsage("no_bytes", "there are no bytes to decode")
    return chunks


def _hex_fault(digits: str) -> str:
    for at, digit in enumerate(digits):
        if digit not in "0123456789abcdefABCDEF":
            return f"{digit!r} is digit {at + 1}"
    return f"{len(digits)} digits, one is missing"


def _show_node(out: Output, item: dict[str, Any], depth: int) -> None:
    pad = "  " * depth
    error = item["error"]
    if error is None:
        out.print(f"{pad}{item['layer']}: ok")
    else:
        where = "" if error["offset"] is None else f" at byte {error['offset']}"
        out.print(f"{pad}{item['layer']}: BAD {error['code']}{where}: {error['text']}")
    hidden = _SAID_INSIDE if item["inner"] is not None else ()
    _show_fields(out, {k: v for k, v in item["fields"].items() if k not in hidden}, depth + 1)
    if item["inner"] is not None:
        _show_node(out, item["inner"], depth + 1)


def _show_fields(out: Output, fields: dict[str, Any], depth: int) -> None:
    pad = "  " * depth
    for key, value in fields.items():
        if key.endswith(("_name", "_error")):
            continue  # shown beside its number
        if isinstance(value, dict):
            out.print(f"{pad}{key}:")
            _show_fields(out, value, depth + 1)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for index, entry in enumerate(value):
                out.print(f"{pad}{key}[{index}]:")
                _show_fields(out, entry, depth + 1)
        else:
            beside = fields.get(f"{key}_name", fields.get(f"{key}_error"))
            words = f" ({beside})" if beside is not None else ""
            shown = f"0x{value:04X}" if key in _HEX_KEYS and value is not None else _text(value)
            out.print(f"{pad}{key} = {shown}{words}")


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return "[" + ", ".join(_text(item) for item in value) + "]"
    if isinstance(value, str):
        return value if value else '""'
    return str(value)
