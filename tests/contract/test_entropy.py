"""`hal.ports.Entropy`: bytes of the length that was asked for, and not the same ones."""

import pytest

from tests.contract.rigs import EntropyRig

PORT = "entropy"


@pytest.mark.parametrize("length", [0, 1, 16, 4096])
def test_the_length_is_what_was_asked_for(rig: EntropyRig, length: int) -> None:
    assert len(rig.entropy.random_bytes(length)) == length


def test_boot_ids_do_not_repeat(rig: EntropyRig) -> None:
    drawn = {rig.entropy.random_bytes(16) for _ in range(1000)}
    assert len(drawn) == 1000


def test_all_byte_values_come_up(rig: EntropyRig) -> None:
    assert set(rig.entropy.random_bytes(65_536)) == set(range(256))
