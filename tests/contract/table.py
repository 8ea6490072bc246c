"""Which backends stand in each suite: the mock and whatever real ones run here."""

from typing import Any, Final

from tests.contract import (
    backends_linux,
    backends_local,
    backends_mock,
    backends_pci,
    backends_window,
)
from tests.contract.rigs import Backend

PORTS: Final = (
    "byte_stream",
    "window",
    "doorbell",
    "power",
    "smbus",
    "clock",
    "entropy",
    "trace_memory",
    "files",
    "blobs",
    "trees",
    "journal",
    "spawner",
    "runtime",
    "pci_function",
    "pci_bus",
    "cxl",
    "cxl_bus",
)


def backends_of(port: str) -> list[Backend]:
    """Every row of one port's suite; the mock is always the first."""
    if port not in PORTS:
        raise ValueError(f"no contract suite for port {port!r}; known: {', '.join(PORTS)}")
    rows = [
        Backend(name="mock", factory=factory, virtual=True)
        for factory in backends_mock.backends(port)
    ]
    for module in (backends_linux, backends_local, backends_window, backends_pci):
        rows.extend(_row(entry) for entry in module.backends(port))
    return rows


def _row(entry: Any) -> Backend:
    if isinstance(entry, Backend):
        return entry
    if isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str):
        return Backend(name=entry[0], factory=entry[1])
    return Backend(name=entry.id, factory=entry.values[0], marks=tuple(entry.marks))  # pytest.param
