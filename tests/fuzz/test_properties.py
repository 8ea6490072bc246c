"""Every target as a property: any bytes, and seeds that were changed; what fails is shrunk.

Where a parser has properties of its own (what is built reads back, fast paths equal the
declaration), those are beside its other tests; here are all that read bytes, none left out.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.corpus import inputs_of
from tests.fuzz.table import TARGETS

EXAMPLES = 25
CHANGES = st.lists(st.tuples(st.integers(0, 2**16), st.binary(max_size=3)), max_size=4)


def changed(data: bytes, changes: list[tuple[int, bytes]]) -> bytes:
    """Each change takes the place of as many bytes, wherever it falls."""
    wire = bytearray(data)
    for place, piece in changes:
        at = place % (len(wire) + 1)
        wire[at : at + len(piece)] = piece
    return bytes(wire)


@pytest.mark.parametrize("name", TARGETS)
@settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_any_bytes_are_taken_or_refused_in_words(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = TARGETS[name]
    seeds = st.sampled_from(inputs_of(target))
    wire = data.draw(st.binary(max_size=120) | st.builds(changed, seeds, CHANGES))
    target.make(Path(tmp_path_factory.mktemp(name)))(wire)
