"""firmware.profiler: what a workload needs, and a table of profiles that has a bound."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware import profiler as pf
from firmware.profile_meter import Meter
from firmware.workload import Component, Workload

SECOND = 1_000_000_000
MIB = 1 << 20


def workload(*components: dict[str, Any]) -> Workload:
    return Workload.from_json(
        {
            "schema": "apf-workload/1",
            "name": "shop",
            "components": [{"image": "busybox:latest", **one} for one in components],
        }
    )


def test_reservation_goes_before_limit_and_limit_before_default() -> None:
    found = pf.analyze_workload(
        workload(
            {"name": "a", "resources": {"cpu_milli": 200, "cpu_limit_milli": 900}},
            {"name": "b", "resources": {"cpu_limit_milli": 900, "memory_limit_bytes": 1 << 30}},
            {"name": "c"},
        ),
        pf.Profiler(),
    )
    assert [(n.instance, n.demand.cpu_milli, n.demand.memory_bytes) for n in found] == [
        ("shop/a/0", 200, pf.DEFAULT_MEMORY_BYTES),
        ("shop/b/0", 900, 1 << 30),
        ("shop/c/0", pf.DEFAULT_CPU_MILLI, pf.DEFAULT_MEMORY_BYTES),
    ]


def test_every_replica_has_a_need_and_placement_is_carried_over() -> None:
    accelerator = {"kind": "gpu", "model": "a2", "count": 2, "milli": 500}
    found = pf.analyze_workload(
        workload(
            {
                "name": "web",
                "replicas": 3,
                "resources": {"arch": "arm64", "accelerators": [accelerator]},
                "placement": {"labels": {"zone": "a"}, "spread": True, "max_per_cnm": 2},
            }
        ),
        pf.Profiler(),
    )
    assert [n.instance for n in found] == ["shop/web/0", "shop/web/1", "shop/web/2"]
    wants = found[0].constraints
    assert (wants.workload, wants.component, wants.arch) == ("shop", "web", "arm64")
    assert (wants.labels, wants.spread, wants.max_per_cnm) == ((("zone", "a"),), True, 2)
    assert found[0].demand.accelerators[0].milli == 500


def test_together_ties_a_whole_group_and_asks_room_for_all_of_it() -> None:
    found = pf.analyze_workload(
        workload(
            {"name": "a", "placement": {"together": ["b"]}},
            {"name": "b", "resources": {"memory_bytes": 77}},
            {"name": "c", "placement": {"together": ["b"]}},
            {"name": "d"},
        ),
        pf.Profiler(),
    )
    wants = {need.component: need.constraints for need in found}
    assert wants["a"].together == {"b", "c"}
    assert wants["b"].together == {"a", "c"}
    assert [(name, d.memory_bytes) for name, d in wants["a"].companions] == [
        ("b", 77),
        ("c", pf.DEFAULT_MEMORY_BYTES),
    ]
    assert wants["d"].together == frozenset()


@pytest.mark.parametrize(
    ("image", "runtime", "accepted"),
    [
        ("busybox:1", "auto", {"oci"}),
        ("host", "auto", {"process"}),
        ("host", "process", {"process"}),
        ("busybox:1", "oci", {"oci"}),
    ],
)
def test_the_runtime_follows_the_image(image: str, runtime: str, accepted: set[str]) -> None:
    found = pf.analyze_workload(
        workload({"name": "a", "image": image, "runtime": runtime}), pf.Profiler()
    )
    assert found[0].constraints.runtimes == accepted


def one(**resources: int) -> Component:
    return workload({"name": "a", "resources": resources}).components[0]


def run(
    table: pf.Profiler,
    component: Component,
    seconds: int,
    *,
    cpu_milli: int,
    memory_bytes: int,
    reserved_bytes: int = 0,
    begin_s: int = 0,
) -> None:
    """One instance that uses the same all the time, with a report each ten seconds."""
    meter = Meter()
    for second in range(begin_s, begin_s + seconds + 1, 10):
        counters = (second * cpu_milli * 1000, None, None)
        table.observe(component, meter, second * SECOND, counters, memory_bytes, reserved_bytes)


def test_a_measured_component_reserves_more_the_longer_it_was_measured() -> None:
    table, spec = pf.Profiler(), one(cpu_milli=100, memory_bytes=100 * MIB)
    seen = [table.demand(spec).cpu_milli]
    for begin in (0, 300, 1500):
        run(table, spec, 300, cpu_milli=200, memory_bytes=MIB, begin_s=begin)
        seen.append(table.demand(spec).cpu_milli)
    assert seen[:2] == [100, 138]  # firmware.profile, the example in its docstring
    assert seen[1] < seen[2] < seen[3] <= 230
    assert table.demand(spec).hint_cpu_milli == 230


def test_what_was_asked_for_is_lowered_only_where_the_component_says_so() -> None:
    wants = {"cpu_milli": 500, "memory_bytes": 1 << 30}
    found = {}
    for choice in ("auto", "on", "off"):
        table = pf.Profiler()
        spec = workload({"name": "a", "resources": wants, "profile": choice}).components[0]
        run(table, spec, 24 * 3600, cpu_milli=100, memory_bytes=100 * MIB)
        demand = table.demand(spec)
        found[choice] = (demand.cpu_milli, demand.memory_bytes >> 20)
        assert len(table) == (choice != "off")
    assert found == {"auto": (500, 1024), "on": (230, 230), "off": (500, 1024)}


def test_a_component_that_asked_for_nothing_gets_what_it_was_seen_to_need() -> None:
    table = pf.Profiler()
    run(table, one(), 24 * 3600, cpu_milli=4, memory_bytes=6 * MIB)
    demand = table.demand(one())
    assert (demand.cpu_milli, demand.memory_bytes) == (10, 2 * (6 * MIB * 115 // 100))


def test_no_reservation_is_above_its_limit() -> None:
    table, spec = pf.Profiler(), one(cpu_limit_milli=300, memory_limit_bytes=64 * MIB)
    run(table, spec, 7200, cpu_milli=900, memory_bytes=400 * MIB, reserved_bytes=64 * MIB)
    table.on_oom(spec, 64 * MIB)
    demand = table.demand(spec)
    assert (demand.expected_cpu_milli, demand.expected_memory_bytes) == (300, 64 * MIB)
    assert table.demand(one()).memory_bytes > 400 * MIB  # another limit, the same identity


def test_a_peak_above_the_reservation_raises_the_next_one_at_once() -> None:
    table, spec = pf.Profiler(), one(memory_bytes=32 * MIB)
    meter = Meter()
    assert not table.observe(spec, meter, 0, (None, None, None), 32 * MIB, 32 * MIB)
    assert table.observe(spec, meter, 1, (None, None, None), 40 * MIB, 32 * MIB)
    assert table.demand(spec).memory_bytes == 46 * MIB
    assert not table.observe(spec, meter, 2, (None, None, None), 40 * MIB, 32 * MIB)


def test_corrections_of_processor_time_are_given_up_before_those_of_memory() -> None:
    table, spec = pf.Profiler(), one(cpu_milli=100, memory_bytes=32 * MIB)
    run(table, spec, 3600, cpu_milli=800, memory_bytes=40 * MIB, reserved_bytes=32 * MIB)
    found = [(d.cpu_milli, d.memory_bytes >> 20) for d in table.demands(spec)]
    assert found == [(877, 46), (100, 46), (100, 32)]


def test_the_link_is_corrected_where_something_of_it_was_asked_for() -> None:
    table, asked = pf.Profiler(), one(link_mbit=100)
    meter = Meter()
    for second in range(3601):  # 200 Mbit/s
        table.observe(asked, meter, second * SECOND, (None, None, second * 25_000_000), None, 0)
    assert table.demand(asked).link_mbit == 220  # of 230, as far as an hour tells
    assert table.demand(one()).link_mbit == 0


def test_the_bandwidth_of_the_drives_is_corrected_where_something_of_it_was_asked_for() -> None:
    table, asked = pf.Profiler(), one(nvme_mbit=100, window_slots=3)
    meter = Meter()
    for second in range(3601):  # 200 Mbit/s
        table.observe(asked, meter, second * SECOND, (None, second * 25_000_000, None), None, 0)
    measured, fewer, law = table.demands(asked)
    assert (measured.nvme_mbit, fewer.nvme_mbit, law.nvme_mbit) == (220, 100, 100)
    assert measured.window_slots == 3
    assert table.demand(one()).nvme_mbit == 0


def test_the_digest_is_the_identity_and_stands_for_every_reference_to_it() -> None:
    digests = {"one:1": "d" * 64, "two:1": "d" * 64, "one:2": "e" * 64}
    table = pf.Profiler(lambda ref: digests.get(ref, ""))
    parts = {
        image: workload({"name": "a", "image": image}).components[0] for image in (*digests, "host")
    }
    for seconds, image in enumerate(parts):
        run(table, parts[image], seconds, cpu_milli=1, memory_bytes=MIB)
    assert len(table) == 3
    assert table.profile(parts["one:1"]) is table.profile(parts["two:1"])
    assert table.identity(parts["host"]) == "host a"
    digests["one:1"] = "f" * 64
    assert table.profile(parts["one:1"]) is None


def test_the_table_drops_what_was_unused_for_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pf, "MAX_PROFILES", 3)
    table = pf.Profiler()
    parts = {name: workload({"name": name}).components[0] for name in "abcd"}
    for name in "abcad":
        run(table, parts[name], 0, cpu_milli=1, memory_bytes=1)
    assert table.profile(parts["b"]) is None
    assert len(table) == 3


def test_profiles_survive_a_restart_and_their_time_goes_on() -> None:
    table, spec = pf.Profiler(), one(memory_bytes=32 * MIB)
    run(table, spec, 900, cpu_milli=250, memory_bytes=40 * MIB, reserved_bytes=32 * MIB)
    records = json.loads(json.dumps({name: p.to_json() for name, p in table.items()}))
    back = pf.Profiler()
    back.load(records, 5 * SECOND)  # the machine has just booted
    assert back.demand(spec) == table.demand(spec)
    assert back.time_ns(5 * SECOND) == 900 * SECOND
    run(back, spec, 900, cpu_milli=250, memory_bytes=MIB, begin_s=5)
    profile = back.profile(spec)
    assert profile is not None
    assert profile.confidence_s == 1800


anything = st.recursive(
    st.none() | st.integers() | st.text(max_size=4) | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["image", "name", "cpu_milli", "memory_bytes", "epoch", "first", "weights"]
            ),
            inner,
        )
    ),
)


@given(st.dictionaries(st.text(max_size=3), st.dictionaries(st.text(max_size=4), anything)))
def test_damaged_records_are_read_as_far_as_they_are_good(records: Any) -> None:
    table = pf.Profiler()
    table.load(records, 0)
    for record in records.values():
        record |= {"image": "x", "name": "a"}
    table.load(records, 0)
    assert len(table) == len(records)
    table.demand(one())
