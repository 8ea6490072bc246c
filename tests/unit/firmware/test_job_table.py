"""`firmware.job_table`, and that the deployer asks it for one instance at a time."""

from collections.abc import Iterator
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from firmware.assignments import Place
from firmware.deployer import Deployer
from firmware.job_table import JobKey, JobTable

X, Y = "shop/web/0", "shop/web/1"
HERE = Place(cnm="cnm0", boot_id=bytes(16), generation=1)
KEYS = st.tuples(
    st.sampled_from(["stage", "stop"]),
    st.sampled_from([X, Y]),
    st.integers(1, 2),
    st.just("cnm0"),
)


@given(st.lists(st.tuples(KEYS, st.booleans())))
def test_it_finds_of_each_instance_what_a_search_through_all_finds(
    changes: list[tuple[JobKey, bool]],
) -> None:
    table: JobTable[int] = JobTable()
    plain: dict[JobKey, int] = {}
    for number, (key, there) in enumerate(changes):
        if there:
            table[key] = plain[key] = number
        else:
            table.pop(key, None)
            plain.pop(key, None)
    assert list(table.items()) == list(plain.items())
    for instance in (X, Y):
        assert table.of(instance) == [key for key in plain if key[1] == instance]


def test_what_is_gone_leaves_nothing_behind() -> None:
    table: JobTable[int] = JobTable()
    table["stop", X, 1, "cnm0"] = 1
    del table["stop", X, 1, "cnm0"]
    assert (len(table), table._by_instance) == (0, {})


class Unsearched(JobTable[Any]):
    """It lets nobody go over all of it."""

    def __iter__(self) -> Iterator[JobKey]:
        raise AssertionError("somebody goes over all of it")


def deployer() -> Deployer:
    """One that knows of failures; nothing is asked of any module."""
    unused: Any = None
    made = Deployer(
        unused, unused, unused, unused, unused, unused, unused, unused, kick=lambda _instance: None
    )
    made._failures, made._jobs = Unsearched(), Unsearched()
    for verb in ("remove", "stage"):
        for instance in (X, Y):
            made._failures[verb, instance, 1, "cnm0"] = (1, 0, f"{verb}: no")
    return made


def test_who_asks_about_one_instance_does_not_go_over_all_others() -> None:
    made = deployer()
    assert made.trouble(X) == "stage: no", "the last one"
    assert not made.busy(X)
    made.drop_staging(X)
    made.settle_at(X, HERE)
    made.settle(Y)
    assert (made.trouble(X), made.trouble(Y)) == ("", "")


def test_what_failed_elsewhere_goes_on_resting() -> None:
    made = deployer()
    made._failures["remove", X, 1, "cnm1"] = (1, 0, "remove: lost")
    made.settle_at(X, HERE)
    assert made.trouble(X) == "remove: lost"
    assert made.trouble(Y) == "stage: no"
