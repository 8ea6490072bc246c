"""What was measured, where instances are placed: the placer's levels, the monitor, the views."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from firmware.allocator import Capacity, CnmView
from firmware.assignments import Assignment, Place
from firmware.inventory import Inventory
from firmware.placer import NoRoom, Placer
from firmware.profile import Profile
from firmware.profile_meter import Meter
from firmware.profiler import Profiler
from firmware.workload import Component, Workload
from protocol.apf import (
    ExitReason,
    InstanceState,
    InstanceTelemetry,
    InstanceUsage,
    Kind,
    StatusChanged,
    Telemetry,
    encode,
)
from tests.fuzz.targets.card import BOOT, SHOP, Bench

MIB = 1 << 20
SECOND = 1_000_000_000


def part(**more: Any) -> Component:
    component = {"name": "a", "image": "host", **more}
    document = {"schema": "apf-workload/1", "name": "shop", "components": [component]}
    return Workload.from_json(document).components[0]


class Cards:
    """A placer over modules that are made up, and a profiler of its own."""

    def __init__(self, **modules: tuple[int, int]) -> None:
        self.profiler = Profiler()
        decisions: Any = SimpleNamespace(workloads={}, assignments={}, pending=set())
        self.placer = Placer(Inventory(), decisions, self.profiler)
        for name, (cpu_milli, memory_mib) in modules.items():
            capacity = Capacity(cpu_milli=cpu_milli, memory_bytes=memory_mib * MIB)
            runtimes = frozenset({"process"})
            self.placer.state.add_cnm(
                CnmView(id=name, arch="amd64", capacity=capacity, labels={}, runtimes=runtimes)
            )

    def learn(self, component: Component, *, cpu_milli: int = 1, memory_mib: int = 1) -> None:
        """An hour of it."""
        meter = Meter()
        for second in range(0, 3601, 10):
            self.profiler.observe(
                component,
                meter,
                second * SECOND,
                (second * cpu_milli * 1000, None, None),
                memory_mib * MIB,
                component.resources.memory_bytes,
            )

    def choose(self, component: Component) -> str | NoRoom:
        return self.placer.choose("shop", component, "shop/a/0")

    def put(self, component: Component, cnm: str, generation: int = 1) -> Assignment:
        place = Place(cnm=cnm, boot_id=bytes(16), generation=generation)
        found = Assignment(
            instance="shop/a/0", workload="shop", component="a", index=0, place=place
        )
        self.placer.sync(found, component)
        return found

    def held(self) -> tuple[int, int]:
        hold = self.placer.state.hold_of("shop/a/0")
        assert hold is not None
        return hold.demand.cpu_milli, hold.demand.memory_bytes // MIB


SMALL = {"cpu_milli": 100, "memory_bytes": 32 * MIB}


def test_the_next_reservation_is_what_was_measured() -> None:
    cards = Cards(cnm0=(4000, 1024))
    component = part(resources=SMALL)
    cards.put(component, "cnm0")
    assert cards.held() == (100, 32)
    cards.placer.forget("shop/a/0")
    cards.learn(component, cpu_milli=800, memory_mib=100)
    assert cards.choose(component) == "cnm0"
    cards.put(component, "cnm0")
    assert cards.held() == (877, 115)


def test_processor_time_that_was_measured_leaves_nobody_pending() -> None:
    cards = Cards(cnm0=(500, 1024), cnm1=(400, 1024))
    component = part(resources=SMALL)
    cards.learn(component, cpu_milli=800, memory_mib=100)
    choice = cards.choose(component)
    assert isinstance(choice, str)
    cards.put(component, choice)
    assert cards.held() == (100, 115)


def test_a_module_without_the_memory_that_is_known_to_be_needed_is_not_taken() -> None:
    cards = Cards(cnm0=(4000, 100), cnm1=(4000, 200))
    component = part(resources=SMALL)
    cards.learn(component, memory_mib=120)
    assert cards.choose(component) == "cnm1"
    cards.placer.state.set_schedulable("cnm1", "draining")
    answer = cards.choose(component)
    assert isinstance(answer, NoRoom), "cnm1 could hold it, and comes back"


def test_memory_that_no_module_has_does_not_make_it_unplaceable() -> None:
    cards = Cards(cnm0=(4000, 100), cnm1=(4000, 90))
    component = part(resources=SMALL)
    cards.learn(component, memory_mib=120)
    choice = cards.choose(component)
    assert isinstance(choice, str)
    cards.put(component, choice)
    assert cards.held() == (100, 32)
    workload = Workload(name="shop", components=(component,))
    assert cards.placer.hopeless(workload) == {}


def test_what_begins_anew_where_it_was_takes_the_memory_that_it_needs() -> None:
    cards = Cards(cnm0=(4000, 1024))
    component = part(resources=SMALL)
    assignment = cards.put(component, "cnm0")
    cards.profiler.on_oom(component, 32 * MIB)
    assert not cards.placer.outgrown(assignment, component)
    cards.put(component, "cnm0", generation=2)
    assert cards.held() == (100, 132)


def test_what_has_outgrown_its_module_is_told_and_keeps_what_it_has() -> None:
    cards = Cards(cnm0=(4000, 100), cnm1=(4000, 1024))
    component = part(resources=SMALL)
    assignment = cards.put(component, "cnm0")
    cards.profiler.on_oom(component, 32 * MIB)
    assert cards.placer.outgrown(assignment, component)
    cards.put(component, "cnm0", generation=2)
    assert cards.held() == (100, 32)
    assert cards.placer.find_alternative_cnm(component, assignment) == "cnm1"
    cards.placer.state.remove_cnm("cnm1")
    assert not cards.placer.outgrown(assignment, component), "no module could hold that"


# --- a card, and what its module reports ---


@pytest.fixture
def bench() -> Bench:
    """A card with one leased module, shop/web/0 and /1 and shop/db/0 run."""
    made = Bench()
    for round_ in range(12):
        if round_ == 5:
            made.submit()
        for _ in range(8):
            made.answer()
        made.beat()
        made.loop.advance(100)
    assert {row["phase"] for row in made.card.views.instances(None)} == {"RUNNING"}
    return made


def tell(bench: Bench, second: int, *, memory_mib: int, instances: tuple[str, ...]) -> None:
    """INSTANCE_TELEMETRY of these, a second after the last one."""
    entries = tuple(
        InstanceUsage.of(
            instance=name,
            generation=bench.staged[name].generation,
            cpu_us=second * 200_000,
            memory_bytes=memory_mib * MIB,
            io_bytes=second * 125_000,
        )
        for name in instances
    )
    notice = InstanceTelemetry(boot_id=BOOT, seq=second, entries=entries)
    bench.tell("agent", encode(notice, kind=Kind.NOTICE, message_id=1))
    for _ in range(10):
        bench.beat()
        bench.loop.advance(100)


def profile(bench: Bench, name: str) -> Profile:
    component = SHOP.component(name)
    assert component is not None
    found = bench.card.profiler.profile(component)
    assert found is not None
    return found


def test_reports_of_all_replicas_make_one_profile(bench: Bench) -> None:
    for second in range(11):
        tell(bench, second, memory_mib=8, instances=("shop/web/0", "shop/web/1"))
    web = profile(bench, "web")
    assert (web.windows, web.peak(0), web.peak(1), web.peak(2)) == (2, 200, 8 * MIB, 1000)
    assert not web.usage[3].total, "three instances share the module's link"


def test_the_modules_link_is_a_components_own_while_it_is_alone_there(bench: Bench) -> None:
    for gone in ("shop/web/1", "shop/db/0"):
        bench.cnm.observed.pop(gone)
    for second in range(11):
        total = second * 125_000
        report = Telemetry.of(boot_id=BOOT, seq=second, link_tx_bytes=total, link_rx_bytes=total)
        bench.tell("mc", encode(report, kind=Kind.NOTICE, message_id=1))
        tell(bench, second, memory_mib=8, instances=("shop/web/0",))
    assert profile(bench, "web").peak(3) == 2000


def test_a_module_that_is_shared_tells_nothing_of_its_link(bench: Bench) -> None:
    report = Telemetry.of(boot_id=BOOT, seq=1, link_tx_bytes=0, link_rx_bytes=0)
    for second in range(11):
        moved = replace(report, seq=second, link_tx_bytes=second * 125_000)
        bench.tell("mc", encode(moved, kind=Kind.NOTICE, message_id=1))
        tell(bench, second, memory_mib=8, instances=("shop/web/0",))
    assert profile(bench, "web").usage[0].total
    assert not profile(bench, "web").usage[3].total


def test_a_profile_is_asked_for_by_six_digits_of_its_digest(bench: Bench) -> None:
    bench.card.profiler._digest_of = lambda _ref: "abcdef0123" + 54 * "0"
    tell(bench, 1, memory_mib=8, instances=("shop/web/0",))
    assert {row["component"] for row in bench.card.profile_views.show("abcdef")} == {"web", "db"}
    assert bench.card.profile_views.show("abcde") == []


def test_a_peak_above_the_reservation_shows_in_the_row(bench: Bench) -> None:
    tell(bench, 1, memory_mib=64, instances=("shop/web/0",))
    [row] = bench.card.profile_views.show("shop/web")
    assert row["memory_floor_bytes"] == 64 * MIB * 115 // 100
    memory = row["resources"]["memory_bytes"]
    assert memory["reserved"] == 32 * MIB
    assert memory["next"] == row["memory_floor_bytes"]
    assert row["bins"]["memory_bytes"][0]["ppm"] == 1_000_000


def test_nothing_uses_more_memory_than_its_module_has(bench: Bench) -> None:
    assert bench.cnm.capabilities is not None
    has_bytes = bench.cnm.capabilities.memory_bytes
    tell(bench, 1, memory_mib=(has_bytes >> 20) * 2, instances=("shop/web/0",))
    web = profile(bench, "web")
    assert (web.peak(1), web.floor_bytes) == (has_bytes, has_bytes * 115 // 100)
    component = SHOP.component("web")
    assert component is not None
    choice = bench.card.placer.choose("shop", component, "shop/web/7")
    assert choice == "cnm0", "what no module has makes nothing unplaceable"


def test_an_end_for_want_of_memory_is_learned_once(bench: Bench) -> None:
    name = "shop/web/0"
    ended = replace(
        bench.staged[name], state=InstanceState.EXITED, exit_reason=ExitReason.OOM_KILLED
    )
    for seq in (9, 10):
        bench.staged[name] = replace(ended, text=f"said {seq} times")
        notice = StatusChanged(boot_id=BOOT, status_seq=seq)
        bench.tell("agent", encode(notice, kind=Kind.NOTICE, message_id=1))
        bench.answer()
    web = profile(bench, "web")
    assert (web.ooms, web.floor_bytes) == (1, 132 * MIB)


def test_rows_have_one_schema_whether_anything_is_known_or_not(bench: Bench) -> None:
    tell(bench, 1, memory_mib=8, instances=("shop/web/0",))
    rows = bench.card.profile_views.rows()
    assert [(row["workload"], row["component"]) for row in rows] == [
        ("shop", "web"), ("shop", "db"),
    ]  # fmt: skip
    assert rows[0].keys() == rows[1].keys()
    figures = {"declared", "limit", "reserved", "next", "p50", "p90", "peak", "lower", "upper"}
    for row in rows:
        assert list(row["resources"]) == ["cpu_milli", "memory_bytes", "nvme_kbit", "link_kbit"]
        assert all(found.keys() == figures for found in row["resources"].values())
    assert rows[1]["age_ms"] is None
    assert rows[1]["resources"]["memory_bytes"]["p90"] is None


def test_a_profile_outlasts_its_workload_and_is_shown_without_one(bench: Bench) -> None:
    tell(bench, 1, memory_mib=8, instances=("shop/web/0",))
    bench.card.decisions.workloads.clear()
    [row] = bench.card.profile_views.rows()
    assert (row["workload"], row["component"], row["image"]) == (None, "web", "host")
    assert row["resources"]["memory_bytes"]["next"] is None
    assert bench.card.profile_views.show("web")
    assert bench.card.profile_views.show("shop/web") == []
