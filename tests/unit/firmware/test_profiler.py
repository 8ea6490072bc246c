"""firmware.profiler: declared is the law, measured is a hint, and the table has a bound."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware import profiler as pf
from firmware.workload import Workload

SECOND = 1_000_000_000


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


def run(table: pf.Profiler, samples: int, *, cpu_milli: int, memory_bytes: int) -> None:
    component = workload({"name": "a"}).components[0]
    for n in range(samples):
        table.observe(component, n * SECOND, cpu_milli, memory_bytes)


def test_a_measured_component_is_hinted_upward_and_still_reserves_what_it_declared() -> None:
    table = pf.Profiler()
    spec = workload({"name": "a", "resources": {"cpu_milli": 100, "memory_bytes": 1 << 20}})
    run(table, pf.LEAST_SAMPLES - 1, cpu_milli=800, memory_bytes=64 << 20)
    assert pf.analyze_workload(spec, table)[0].demand.hint_memory_bytes == 0
    run(table, 100, cpu_milli=800, memory_bytes=64 << 20)
    demand = pf.analyze_workload(spec, table)[0].demand
    assert (demand.cpu_milli, demand.memory_bytes) == (100, 1 << 20)
    assert 800 * 1.15 <= demand.expected_cpu_milli <= 800 * 1.25 * 1.15
    assert (64 << 20) * 1.15 - 2 <= demand.expected_memory_bytes <= (64 << 20) * 1.25 * 1.15


def test_a_measured_low_use_never_lowers_what_is_reserved() -> None:
    table = pf.Profiler()
    run(table, 100, cpu_milli=1, memory_bytes=4096)
    spec = workload({"name": "a", "resources": {"cpu_milli": 500, "memory_bytes": 1 << 30}})
    demand = pf.analyze_workload(spec, table)[0].demand
    assert (demand.expected_cpu_milli, demand.expected_memory_bytes) == (500, 1 << 30)


def test_old_samples_fade() -> None:
    table = pf.Profiler()
    run(table, 300, cpu_milli=100, memory_bytes=1 << 30)
    run(table, 6000, cpu_milli=100, memory_bytes=1 << 20)
    profile = table.profile(workload({"name": "a"}).components[0])
    assert profile is not None
    assert profile.hint_memory_bytes < 2 << 20
    assert profile.memory_bytes.peak < 2 << 20


def test_what_can_not_be_read_is_no_sample() -> None:
    table = pf.Profiler()
    component = workload({"name": "a"}).components[0]
    assert table.show(component, 0) is None
    table.observe(component, 5 * SECOND, None, 4096)
    table.observe(component, 6 * SECOND, 100, None)
    profile = table.profile(component)
    assert profile is not None
    assert (profile.cpu_milli.total, profile.memory_bytes.total) == (1, 1)
    shown = table.show(component, 8 * SECOND)
    assert shown is not None
    assert (shown["age_ms"], shown["memory_hint_bytes"]) == (2000, 0)


def test_the_table_drops_what_was_unused_for_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pf, "MAX_PROFILES", 3)
    table = pf.Profiler()
    parts = {name: workload({"name": name}).components[0] for name in "abcd"}
    for name in "abcad":
        table.observe(parts[name], 0, 1, 1)
    assert table.profile(parts["b"]) is None
    assert len(table) == 3


def test_the_table_survives_a_restart_as_json() -> None:
    table = pf.Profiler()
    component = workload({"name": "a"}).components[0]
    run(table, 900, cpu_milli=250, memory_bytes=9 << 20)
    back = pf.Profiler.from_json(json.loads(json.dumps(table.to_json())))
    before, after = table.profile(component), back.profile(component)
    assert before is not None
    assert after is not None
    assert after.show() == before.show()


@given(st.integers(0, pf.MAX_VALUE))
def test_a_value_lies_in_its_bucket_and_the_bucket_is_narrow(value: int) -> None:
    bucket = pf.bucket_of(value)
    assert value <= pf.upper_edge(bucket) <= value + value // 4
    assert bucket == 0 or pf.upper_edge(bucket - 1) < value


@given(st.lists(st.integers(-5, 1 << 70), max_size=700))
def test_a_histogram_stays_bounded_whatever_a_cnm_reports(values: list[int]) -> None:
    histogram = pf.Histogram()
    for value in values:
        histogram.add(value)
    assert histogram.total < pf.FADE_SAMPLES
    assert histogram.total == sum(histogram.counts.values())
    assert histogram.mean <= histogram.peak
    assert histogram.percentile(95) <= histogram.peak


anything = st.recursive(
    st.none() | st.integers() | st.text(max_size=4) | st.sampled_from(["profiles", "counts"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["profiles", "counts", "last", "5", "9999"]), inner)
    ),
)


@given(anything)
def test_a_damaged_table_is_read_as_far_as_it_is_good(value: object) -> None:
    table = pf.Profiler.from_json(value)
    assert len(table) <= pf.MAX_PROFILES
    pf.Profiler.from_json({"profiles": [["a", value, value]]})
