"""All kinds of faults of a run, by name: reading the modules that make them fills the table."""

from tests.process import fault_kinds_links, fault_kinds_processes, fault_kinds_room
from tests.process.fault_kind import KINDS, Kind

MODULES = (fault_kinds_processes, fault_kinds_links, fault_kinds_room)

__all__ = ["KINDS", "MODULES", "Kind"]
