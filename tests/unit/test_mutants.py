"""The seeded bugs fit the tree as it is, and the simulator bites on some of them.

All of them are run by `make mutants`.
"""

from pathlib import Path

import pytest

from tests.mutants.mutant import ROOT, SEEDS, Caught, Mutant, copy_tree, mutants, try_one
from tools.sim.faults import chosen

LEAST = 25
QUICK = ("fence-without-proof", "generation-used-twice", "acknowledged-before-sync")
ALL = mutants()


def test_there_are_enough_of_them() -> None:
    assert len(ALL) >= LEAST
    assert len({mutant.header["What"] for mutant in ALL}) == len(ALL)


@pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.name)
def test_a_seeded_bug_fits_the_tree_and_says_what_it_is_and_where_it_was_caught(
    mutant: Mutant,
) -> None:
    mutant.apply(ROOT, "--check")
    assert list(mutant.header) == ["What", "Faults", "Hours", "Caught"]
    assert mutant.header["What"]
    assert chosen(mutant.header["Faults"])
    assert 0 < float(mutant.header["Hours"]) <= 1
    assert mutant.caught is not None
    assert 1 <= mutant.caught.seed <= SEEDS
    assert mutant.caught.invariant


@pytest.mark.parametrize("name", QUICK)
def test_a_seeded_bug_is_caught_and_without_it_nothing_is(name: str, tmp_path: Path) -> None:
    (mutant,) = (mutant for mutant in ALL if mutant.name == name)
    found, stray = try_one(mutant, copy_tree(tmp_path / "sound"), SEEDS)
    assert found is not None
    assert stray is None


def test_where_a_bug_is_caught_is_noted_in_its_header_and_nothing_else_changes(
    tmp_path: Path,
) -> None:
    copy = tmp_path / "some-bug.patch"
    copy.write_text(ALL[0].path.read_text())
    Mutant(copy).note(Caught(seed=7, invariant="I2 two copies run", text="two"))
    noted = Mutant(copy)
    assert noted.caught == Caught(seed=7, invariant="I2 two copies run", text="")
    assert noted.header == {**ALL[0].header, "Caught": "seed 7, I2 two copies run"}
    assert copy.read_text().split("\n\n", 1)[1] == ALL[0].path.read_text().split("\n\n", 1)[1]


def test_a_patch_that_fits_no_more_says_so(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="does not apply"):
        ALL[0].apply(tmp_path, "--check")
