"""The spec strings of a board's slots: what each kind of board may name, and what they point at.

    links    serial:/dev/ttyS4?baud=115200          a tty
             smbus:SEGMENT[/MUX.CHANNEL]/0xADDRESS  MCTP over SMBus (DSP0237) on the board's segment
             mailbox:0000:01:00.0/bar0?side=a       a small BAR (protocol/SPEC.md 17)
             mock:NAME
    window   shm:NAME                               the local board's keeper
             pci:0000:01:00.0/bar2?side=a           a BAR; also by the port above it:
             pci:0000:00:04.0/00.0/bar2?side=a      a bus number may change, a port does not
             vfio:0000:01:00.0/bar2?side=a          the same through VFIO
             map:/dev/dax0.0?side=a                 CXL memory, or any file that can be mapped
             mock:NAME
    power    local, mock                            by the keeper; by the virtual kernel
             pci_slot:NAME[?fence=power|lease]      /sys/bus/pci/slots/NAME/power
             none                                   always on: the lease's end is the only fence

The registry opens them (`hal.registry`); here they are checked as far as the file alone can tell.
"""

import posixpath
import re
from collections.abc import Sequence
from typing import Final

from firmware.board_hardware import Hardware, place_of
from firmware.fields import Fields, nearest, shown

LINKS: Final = {
    "local": ("serial", "mock"),
    "mock": ("serial", "mock"),
    "linux": ("serial", "smbus", "mailbox"),
    "cnm": ("serial", "mailbox"),
}
WINDOWS: Final = {
    "local": ("shm", "mock"),
    "mock": ("shm", "mock"),
    "linux": ("pci", "vfio", "map"),
    "cnm": ("pci", "vfio", "map"),
}
POWERS: Final = {
    "local": ("local", "mock", "none"),
    "mock": ("local", "mock", "none"),
    "linux": ("pci_slot", "none"),
    "cnm": ("none",),
}
KINDS: Final = tuple(LINKS)
BAUDS: Final = range(300, 4_000_001)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,127}")
_FUNCTION: Final = r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]"
_PCI_MEMORY: Final = re.compile(
    rf"(?:pci|vfio|mailbox):{_FUNCTION}(?:/[01][0-9a-f]\.[0-7]){{0,8}}/bar[0-5]\?side=[ab]"
)
_MAP_WINDOW: Final = re.compile(r"map:/[A-Za-z0-9_./-]{1,127}\?side=[ab]")
_PCI_SLOT: Final = re.compile(r"pci_slot:[A-Za-z0-9_-]{1,32}(\?fence=(power|lease))?")


def read_link(fields: Fields, key: str, kind: str, known: Hardware) -> str:
    """A control link. Raises FieldError."""
    spec, scheme = _spec(fields, key, LINKS[kind])
    name, _, options = spec.partition(":")[2].partition("?")
    if scheme == "smbus":
        place = place_of(name, known)
        if isinstance(place, str) or options:
            want = place if isinstance(place, str) else "no options"
            raise fields.fail(key, f"after smbus: {want}", shown(spec))
    elif scheme == "mailbox":
        _check_memory(fields, key, spec)
    elif scheme == "serial":
        if not name.startswith("/") or "\0" in name:
            raise fields.fail(key, "serial:/absolute/path?baud=N", shown(spec))
        baud = re.fullmatch(r"baud=([0-9]{1,7})", options)
        if baud is None or int(baud[1]) not in BAUDS:
            want = f"?baud=N with N in {BAUDS[0]}..{BAUDS[-1]} after the path"
            raise fields.fail(key, want, shown(spec))
    else:
        _check_name(fields, key, spec)
    return spec


def read_window(fields: Fields, kind: str) -> str:
    """Raises FieldError."""
    spec, scheme = _spec(fields, "window", WINDOWS[kind])
    if scheme in ("pci", "vfio"):
        _check_memory(fields, "window", spec)
    elif scheme == "map":
        if _MAP_WINDOW.fullmatch(spec) is None:
            raise fields.fail("window", "map:/absolute/path?side=a", shown(spec))
    else:
        _check_name(fields, "window", spec)
    return spec


def read_power(fields: Fields, kind: str) -> str:
    """Raises FieldError."""
    spec = fields.text("power", max_bytes=64)
    choices = POWERS[kind]
    plain = [choice for choice in choices if choice != "pci_slot"]
    if spec in plain or ("pci_slot" in choices and _PCI_SLOT.fullmatch(spec)):
        return spec
    words = [*plain, "pci_slot:NAME?fence=power|lease"] if "pci_slot" in choices else plain
    raise fields.fail("power", f"one of {', '.join(words)}", shown(spec))


def _spec(fields: Fields, key: str, schemes: Sequence[str]) -> tuple[str, str]:
    spec = fields.text(key, max_bytes=512)
    scheme, colon, _ = spec.partition(":")
    if not colon or scheme not in schemes:
        want = f"SCHEME:NAME with a scheme of {', '.join(schemes)}{nearest(scheme, schemes)}"
        raise fields.fail(key, want, shown(spec))
    return spec, scheme


def _check_memory(fields: Fields, key: str, spec: str) -> None:
    if _PCI_MEMORY.fullmatch(spec) is None:
        scheme = spec.partition(":")[0]
        want = f"{scheme}:0000:01:00.0/bar2?side=a, the function's address, BAR and side"
        raise fields.fail(key, want, shown(spec))


def _check_name(fields: Fields, key: str, spec: str) -> None:
    scheme, _, rest = spec.partition(":")
    name, mark, _ = rest.partition("?")
    if _NAME.fullmatch(name) is None or mark:
        raise fields.fail(key, f"{scheme}:NAME of [A-Za-z0-9_./-], no options", shown(spec))


def device_of(spec: str) -> str:
    """The device without its options: two baud rates do not make two ttys. A BAR is one, whether it
    is a window or a mailbox."""
    scheme, _, rest = spec.partition(":")
    scheme = "pci" if scheme in ("vfio", "mailbox") else scheme
    return f"{scheme}:{posixpath.normpath(rest.partition('?')[0])}"


def path_of(spec: str) -> str:
    """The file that must be there for a spec to be opened; "" where there is none to look for."""
    scheme, _, rest = spec.partition(":")
    name = posixpath.normpath(rest.partition("?")[0])
    if scheme in ("serial", "map"):
        return name
    if scheme in ("pci", "mailbox"):
        function, *below, bar = name.split("/")
        path = f"/sys/bus/pci/devices/{function}"
        return path if below else f"{path}/resource{bar.removeprefix('bar')}"
    return f"/sys/bus/pci/slots/{name}" if scheme == "pci_slot" else ""
