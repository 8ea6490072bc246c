"""firmware.allocator.explain: it says what `place` does, and its remedies are remedies."""

import random
from dataclasses import replace

import pytest

from firmware.allocator import (
    AcceleratorDemand,
    AcceleratorPool,
    AllocatorState,
    Capacity,
    CnmView,
    Constraints,
    Demand,
    DoesNotFit,
    Placement,
    Unplaceable,
    place,
    select_cnms,
)
from firmware.allocator.explain import (
    CNMS_A_STEP,
    Explanation,
    Verdict,
    explain,
    explain_steps,
)
from firmware.allocator.score import CRITERIA
from firmware.allocator.types import DIMENSIONS

MIB = 1 << 20
GIB = 1 << 30
CASES = 10_000
QUESTIONS = 5  # to one card, one after the other
FIELDS = dict(
    zip(DIMENSIONS, ("cpu_milli", "memory_bytes", "nvme_bytes", "link_mbit"), strict=False)
)
FIELDS |= {"nvme_bandwidth": "nvme_mbit", "windows": "window_slots"}


def cnm(name: str, **more: object) -> CnmView:
    capacity = Capacity(cpu_milli=4000, memory_bytes=4 * GIB, nvme_bytes=GIB, link_mbit=1000)
    fields = {"id": name, "arch": "arm64", "capacity": capacity, "labels": {}} | more
    return CnmView(**fields)  # type: ignore[arg-type]


def books(*views: CnmView) -> AllocatorState:
    state = AllocatorState()
    for view in views:
        state.add_cnm(view)
    return state


def verdict(found: Explanation, name: str) -> Verdict:
    seen = found.verdict(name)
    assert seen is not None
    return seen


def remedies(found: Explanation, name: str) -> list[str]:
    return [remedy.text for remedy in verdict(found, name).remedies]


def part(component: str, **more: object) -> Constraints:
    return Constraints(workload="shop", component=component, **more)  # type: ignore[arg-type]


def test_numbers_say_what_is_wanted_free_and_there_at_all() -> None:
    state = books(cnm("cnm0"))
    state.commit("x/y/0", "cnm0", Demand(memory_bytes=3 * GIB, cpu_milli=1000))
    found = explain(state, Demand(memory_bytes=5 * GIB // 2, cpu_milli=500), part("db"))
    assert found.best is None
    lines = {line.resource: line for line in verdict(found, "cnm0").resources}
    assert tuple(lines) == DIMENSIONS
    memory = lines["memory"]
    assert (memory.want, memory.free, memory.total) == (5 * GIB // 2, GIB, 4 * GIB)
    assert memory.short == 3 * GIB // 2
    assert lines["cpu"].short == lines["nvme"].short == 0
    assert remedies(found, "cnm0") == ["1.5 GiB less memory"]
    assert verdict(found, "cnm0").releases == ("x/y/0",)


def test_what_is_missing_besides_room_is_named_with_its_place() -> None:
    state = books(
        cnm("cnm0", labels={"zone": "b"}),
        cnm("cnm1", arch="amd64", why_not="draining"),
        cnm("cnm2", runtimes=frozenset({"process"})),
    )
    wanted = part(
        "db", labels=(("zone", "a"),), arch="arm64", runtimes=frozenset({"oci"}),
        exclude=frozenset({"cnm2"}),
    )  # fmt: skip
    found = explain(state, Demand(), wanted)
    assert remedies(found, "cnm0") == ["runtime oci on cnm0", "label zone=a on cnm0"]
    assert remedies(found, "cnm1") == [
        "cnm1 takes new instances again (now: draining)",
        "arch amd64 instead of arm64",
        "runtime oci on cnm1",
        "label zone=a on cnm1",
    ]
    assert remedies(found, "cnm2")[0] == "cnm2 is not excluded from this choice"


def test_units_that_are_missing_are_counted_and_no_more_than_needed() -> None:
    pools = (AcceleratorPool(kind="gpu", model="a2", count=2),)
    capacity = Capacity(cpu_milli=4000, memory_bytes=GIB, accelerators=pools)
    state = books(cnm("cnm0", capacity=capacity), cnm("cnm1"))
    half = Demand(accelerators=(AcceleratorDemand(kind="gpu", milli=600),))
    state.commit("x/y/0", "cnm0", half)
    three = Demand(accelerators=(AcceleratorDemand(kind="gpu", count=3),))
    found = explain(state, three, part("ai"))
    line = verdict(found, "cnm0").accelerators[0]
    assert (line.want, line.free, line.total) == (3, 1, 2)
    assert remedies(found, "cnm0") == ["2 more free gpu on cnm0"]
    assert remedies(found, "cnm1") == ["3 more free gpu on cnm1"]
    assert verdict(found, "cnm0").releases == (), "one release gives one unit, two are missing"
    two = Demand(accelerators=(AcceleratorDemand(kind="gpu", model="a2", count=2),))
    again = explain(state, two, part("ai"))
    assert remedies(again, "cnm0") == ["1 more free gpu/a2 on cnm0"]
    assert verdict(again, "cnm0").releases == ("x/y/0",)


def test_the_smallest_release_that_is_enough_comes_first_and_too_small_ones_do_not_count() -> None:
    state = books(cnm("cnm0"))
    for number, mib in enumerate((512, 2048, 1024, 512)):
        state.commit(f"x/y/{number}", "cnm0", Demand(memory_bytes=mib * MIB))
    found = explain(state, Demand(memory_bytes=GIB), part("db"))
    assert verdict(found, "cnm0").releases == ("x/y/2", "x/y/1")


def test_a_component_that_must_be_together_is_told_with_whom_and_where() -> None:
    state = books(cnm("cnm0"), cnm("cnm1"))
    state.commit("shop/db/0", "cnm1", Demand(cpu_milli=100), part("db"))
    found = explain(state, Demand(cpu_milli=100), part("web", together=frozenset({"db"})))
    assert found.best == "cnm1"
    assert remedies(found, "cnm0") == ["db on cnm0"]


def test_the_first_criterion_that_differs_is_why_the_best_is_before_the_runner_up() -> None:
    state = books(cnm("cnm0"), cnm("cnm1"))
    even = explain(state, Demand(cpu_milli=1000, memory_bytes=GIB), part("db"))
    assert (even.best, even.runner_up, even.decided_by) == ("cnm0", "cnm1", "id")
    spread = part("db", spread=True)
    state.commit("shop/db/0", "cnm0", Demand(cpu_milli=100), spread)
    found = explain(state, Demand(cpu_milli=100), spread)
    assert (found.best, found.runner_up, found.decided_by) == ("cnm1", "cnm0", "spread")
    alone = explain(books(cnm("cnm0")), Demand(), part("db"))
    assert (alone.best, alone.runner_up, alone.decided_by) == ("cnm0", None, "")


def test_the_books_without_an_instance_are_as_if_it_had_never_been_there() -> None:
    state, same = books(cnm("cnm0"), cnm("cnm1")), books(cnm("cnm0"), cnm("cnm1"))
    for name in ("a", "b"):
        state.commit(f"shop/{name}/0", "cnm0", Demand(memory_bytes=GIB), part(name))
    same.commit("shop/a/0", "cnm0", Demand(memory_bytes=GIB), part("a"))
    after = state.without("shop/b/0")
    question = Demand(memory_bytes=4 * GIB), part("c", together=frozenset({"b"}))
    assert explain(after, *question) == explain(same, *question)
    assert state.places("shop/b/0") == ("cnm0",), "what was asked changed nothing"
    assert state.nodes["cnm0"].free[1] == 2 * GIB


# --- against `place`, at random ---


def a_demand(rng: random.Random) -> Demand:
    wants = [
        AcceleratorDemand(
            kind=rng.choice(("gpu", "fpga")),
            model=rng.choice((None, "m", "n")),
            count=rng.randint(1, 2),
            milli=rng.choice((250, 500, 1000)),
        )
        for _ in range(rng.choice((0, 0, 0, 1, 2)))
    ]
    amounts = {FIELDS[name]: rng.choice((0, 0, 1, 2, 3)) for name in DIMENSIONS}
    hints = {"hint_cpu_milli": rng.randint(0, 5), "hint_memory_bytes": rng.randint(0, 5)}
    return Demand(accelerators=tuple(wants), **amounts, **hints)


def some_constraints(rng: random.Random) -> Constraints:
    return Constraints(
        workload=rng.choice(("w", "v")),
        component=rng.choice(("a", "b")),
        arch=rng.choice((None, None, "arm64", "amd64")),
        runtimes=frozenset(rng.choice(((), ("oci",), ("oci", "process")))),
        labels=rng.choice(((), (), (("zone", "a"),), (("rack", "1"), ("zone", "b")))),
        spread=rng.random() < 0.3,
        together=rng.choice((frozenset(), frozenset(), frozenset({"b"}))),
        companions=rng.choice(((), (), (("b", a_demand(rng)),))),
        max_per_cnm=rng.choice((0, 0, 1, 2)),
        exclude=rng.choice((frozenset(), frozenset(), frozenset({"cnm0"}))),
    )


def a_card(rng: random.Random) -> AllocatorState:
    state = AllocatorState()
    for number in range(rng.randint(1, 5)):
        pools = tuple(
            AcceleratorPool(
                kind=rng.choice(("gpu", "fpga")), model=rng.choice("mn"), count=rng.randint(1, 3)
            )
            for _ in range(rng.choice((0, 0, 1, 2)))
        )
        amounts = {FIELDS[name]: rng.choice((0, 2, 4, 8)) for name in DIMENSIONS}
        view = CnmView(
            id=f"cnm{number}",
            arch=rng.choice(("arm64", "arm64", "amd64")),
            capacity=Capacity(accelerators=pools, **amounts),
            labels=rng.choice(({}, {"zone": "a"}, {"zone": "b", "rack": "1"})),
            runtimes=frozenset(rng.choice((("oci",), ("oci", "process"), ("process",)))),
            why_not=rng.choice(("", "", "", "draining")),
            load_cpu_milli=rng.randint(0, 8),
        )
        state.add_cnm(view)
    for _ in range(rng.choice((0, 40))):  # what it has learned of its mix: nothing, or something
        state.observe(a_demand(rng))
    for number in range(rng.randint(0, 8)):
        where = rng.choice(sorted(state.nodes))
        adopt = rng.random() < 0.2
        try:
            (state.adopt if adopt else state.commit)(
                f"i{number}", where, a_demand(rng), some_constraints(rng)
            )
        except DoesNotFit:
            continue
    return state


def mended(view: CnmView, seen: Verdict, wanted: Constraints) -> tuple[CnmView, Constraints]:
    """The CNM and the constraints with every remedy applied; those about others stay."""
    capacity, labels = view.capacity, dict(view.labels)
    for remedy in seen.remedies:
        match remedy.kind:
            case "resource":
                name = FIELDS[remedy.key]
                capacity = replace(capacity, **{name: getattr(capacity, name) + remedy.amount})
            case "accelerator":
                kind, _, model = remedy.key.partition("/")
                pool = AcceleratorPool(kind=kind, model=model or "any", count=remedy.amount)
                capacity = replace(capacity, accelerators=(*capacity.accelerators, pool))
            case "label":
                labels[remedy.key] = dict(wanted.labels)[remedy.key]
            case "arch":
                view = replace(view, arch=wanted.arch or "")
            case "runtime":
                view = replace(view, runtimes=view.runtimes | {remedy.key})
            case "state":
                view = replace(view, why_not="")
            case "exclude":
                wanted = replace(wanted, exclude=wanted.exclude - {view.id})
            case "max_per_cnm":
                wanted = replace(wanted, max_per_cnm=remedy.amount)
            case _:
                assert remedy.kind == "together"
    return replace(view, capacity=capacity, labels=labels), wanted


def test_it_says_what_place_does_in_ten_thousand_cases_and_its_remedies_make_it_fit() -> None:
    rng = random.Random(5)
    seen: set[str] = set()
    state = AllocatorState()
    for case in range(CASES):
        if case % QUESTIONS == 0:
            state = a_card(rng)
        demand, wanted = a_demand(rng), some_constraints(rng)
        found, answer = explain(state, demand, wanted), place(state, demand, wanted)
        names, reasons = select_cnms(state, demand, wanted)
        assert {v.cnm: v.reason for v in found.verdicts if not v.fits} == reasons, case
        ranked = [v.cnm for v in found.verdicts if v.fits]
        assert sorted(ranked) == list(names), case
        if isinstance(answer, Placement):
            assert found.best == answer.cnm == ranked[0], case
        else:
            assert found.best is None, case
            assert dict(answer.reasons) == reasons, case
        for one in found.verdicts:
            assert bool(one.remedies) == (not one.fits), case
            assert len(one.criteria) == (len(CRITERIA) if one.fits else 0)
            seen |= {remedy.kind for remedy in one.remedies}
            check_remedies(state, one, demand, wanted, case)
            seen |= {"release"} if one.releases else set()
        go_on(state, case, rng, answer, demand, wanted)
    assert seen == {
        "resource", "accelerator", "label", "arch", "runtime", "max_per_cnm", "together",
        "exclude", "state", "release",
    }  # fmt: skip


def go_on(
    state: AllocatorState,
    case: int,
    rng: random.Random,
    answer: Placement | Unplaceable,
    demand: Demand,
    wanted: Constraints,
) -> None:
    """What `place` keeps between its questions must not tell it anything else than the books."""
    if isinstance(answer, Placement):
        state.commit(f"n{case}", answer.cnm, demand, wanted)
        state.observe(demand)
    elif held := sorted(state.instances()):
        state.release(rng.choice(held))
    where = rng.choice(sorted(state.nodes))
    state.set_load(where, cpu_milli=rng.randint(0, 8), memory_bytes=rng.randint(0, 8))
    state.set_schedulable(where, rng.choice(("", "", "", "draining")))


def check_remedies(
    state: AllocatorState, one: Verdict, demand: Demand, wanted: Constraints, case: int
) -> None:
    for instance in one.releases:
        fewer = state.copy()
        fewer.release(instance, one.cnm)
        assert one.cnm in select_cnms(fewer, demand, wanted)[0], case
    if one.fits:
        return
    better = state.copy()
    view, eased = mended(state.nodes[one.cnm].view, one, wanted)
    better.add_cnm(view)
    left = select_cnms(better, demand, eased)[1].get(one.cnm, "")
    apart = any(remedy.kind == "together" for remedy in one.remedies)
    assert not left or (apart and all(w.startswith("together") for w in left.split("; "))), case


@pytest.mark.parametrize("seed", range(3))
def test_books_without_an_instance_equal_a_release_on_a_copy(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(200):
        state, demand, wanted = a_card(rng), a_demand(rng), some_constraints(rng)
        for instance in list(state.instances())[:2]:
            fewer = state.copy()
            fewer.release(instance)
            assert explain(state.without(instance), demand, wanted) == explain(
                fewer, demand, wanted
            )


def test_an_explanation_of_a_large_card_is_made_in_small_steps() -> None:
    state = AllocatorState()
    for number in range(320):
        capacity = Capacity(cpu_milli=1000 * (1 + number % 2), memory_bytes=GIB)
        state.add_cnm(CnmView(id=f"m{number:03}", arch="arm64", capacity=capacity, labels={}))
    question = state, Demand(cpu_milli=2000), Constraints()
    count = sum(1 for _ in explain_steps(*question))
    assert count == 2 * 320 // CNMS_A_STEP
    assert len(explain(*question).verdicts) == 320
