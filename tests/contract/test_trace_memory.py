"""`hal.service_ports.TraceMemory`: what was written outlives whoever wrote it."""

import pytest

from hal.errors import Refused
from tests.contract.rigs import TRACE_BYTES, TraceMemoryRig

PORT = "trace_memory"


def test_it_begins_with_zeros_and_has_the_size_that_was_asked_for(rig: TraceMemoryRig) -> None:
    assert rig.memory.size_bytes == TRACE_BYTES
    assert rig.memory.read() == bytes(TRACE_BYTES)


def test_what_was_written_is_there_for_the_next_one(rig: TraceMemoryRig) -> None:
    rig.memory.write(0, b"first")
    rig.memory.write(TRACE_BYTES - 4, memoryview(b"last"))
    found = rig.reopen().read()
    assert found[:5] == b"first"
    assert found[-4:] == b"last"
    assert not any(found[5:-4])


@pytest.mark.parametrize(("offset", "count"), [(-1, 1), (TRACE_BYTES, 1), (TRACE_BYTES - 3, 4)])
def test_a_write_outside_it_is_refused_and_changes_nothing(
    rig: TraceMemoryRig, offset: int, count: int
) -> None:
    with pytest.raises(Refused):
        rig.memory.write(offset, b"x" * count)
    assert not any(rig.memory.read())
