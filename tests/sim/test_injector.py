"""Faults into a world: when they are healed, when they count, which of them make a pair."""

from collections.abc import Callable

import pytest

from tools.sim.faults import Fault, Injection, Site
from tools.sim.injector import AFTER_NS, LOOKS_NS, Injector
from tools.sim.world import SECOND, World


class Bench:
    """A world with nothing in it but time, and faults that write down what is done to them."""

    def __init__(self, haste: float = 1.0) -> None:
        self.world = World(1, slots=1)
        self.injector = Injector(self.world, haste=haste)
        self.done: list[tuple[str, str, int]] = []  # (what, id, when)

    def inject(
        self, name: str, lasts_s: float = 0.0, seen: Callable[[], bool] = lambda: True
    ) -> Injection | None:
        def act(site: Site) -> Injection:
            self.note("inject", name)
            return Injection(
                id=name,
                cnm=None,
                at_ns=site.world.kernel.now_ns,
                text="x",
                heal=lambda: self.note("heal", name),
                lasts_ns=int(lasts_s * SECOND),
                seen=seen,
            )

        fault = Fault(id=name, text="x", inject=act)
        return self.injector.inject(fault, Site(self.world, self.world.kernel.rng("x")))

    def note(self, what: str, name: str) -> None:
        self.done.append((what, name, self.world.kernel.now_ns))

    def run(self, seconds: float) -> None:
        self.injector.run_until(self.world.kernel.now_ns + int(seconds * SECOND))


def test_what_lasts_is_healed_when_its_time_is_up_and_a_one_shot_never() -> None:
    bench = Bench()
    start_ns = bench.world.kernel.now_ns
    bench.inject("L1", 3.0)
    bench.inject("L2", 1.0)
    bench.inject("L3")
    bench.run(10)
    heals = [(name, at_ns - start_ns) for what, name, at_ns in bench.done if what == "heal"]
    assert heals == [("L2", SECOND), ("L1", 3 * SECOND)]


def test_a_hasty_seed_heals_sooner_and_tells_the_judge_so() -> None:
    bench = Bench(haste=0.1)
    injection = bench.inject("L1", 10.0)
    assert injection is not None
    assert injection.lasts_ns == SECOND
    bench.run(2)
    assert bench.done[-1][0] == "heal"


def test_healing_everything_heals_each_once_and_tells_the_judge() -> None:
    bench = Bench()
    over: list[int] = []
    bench.world.judge.faults_over = over.append  # type: ignore[method-assign]
    bench.inject("L1", 5.0)
    bench.inject("C1", 50.0)
    bench.run(6)
    bench.injector.heal()
    bench.injector.heal()
    assert [(what, name) for what, name, _ in bench.done if what == "heal"] == [
        ("heal", "L1"),
        ("heal", "C1"),
    ]
    assert over == [bench.world.kernel.now_ns] * 2


@pytest.mark.parametrize("after_s", [0.0, 0.2, 3.0, 29.0])
def test_a_fault_counts_once_it_was_seen_to_act(after_s: float) -> None:
    bench = Bench()
    at_ns = bench.world.kernel.now_ns + int(after_s * SECOND)
    bench.inject("L1", seen=lambda: bench.world.kernel.now_ns >= at_ns)
    bench.run(40)
    assert bench.injector.injected == {"L1": 1}
    assert bench.injector.seen == {"L1": 1}


def test_a_fault_that_nobody_noticed_in_half_a_minute_does_not_count() -> None:
    bench = Bench()
    looks: list[int] = []
    at_ns = bench.world.kernel.now_ns + 31 * SECOND

    def seen() -> bool:
        looks.append(bench.world.kernel.now_ns)
        return looks[-1] >= at_ns

    bench.inject("L1", seen=seen)
    bench.run(60)
    assert bench.injector.injected == {"L1": 1}
    assert bench.injector.seen == {}
    assert len(looks) == len(LOOKS_NS)


def test_evidence_that_healing_would_take_away_is_seen_before() -> None:
    bench = Bench()
    healed: list[int] = []
    injection = bench.inject("L1", 0.1, seen=lambda: not healed)
    assert injection is not None
    injection.heal = lambda: healed.append(1)
    bench.run(5)
    assert bench.injector.seen == {"L1": 1}


def test_nothing_to_break_is_no_fault() -> None:
    bench = Bench()
    fault = Fault(id="L1", text="x", inject=lambda _site: None)
    assert bench.injector.inject(fault, Site(bench.world, bench.world.kernel.rng("x"))) is None
    assert bench.injector.injected == {}


def test_classes_that_act_at_the_same_time_are_a_pair() -> None:
    bench = Bench()
    bench.inject("S1", 10.0)
    bench.run(2)
    bench.inject("L1")
    bench.inject("L2")
    bench.inject("T1", seen=lambda: False)  # nobody noticed
    bench.run(7 + AFTER_NS / SECOND)
    bench.inject("C1")  # L1 is over for longer than that, S1 is not
    bench.run(30)
    assert bench.injector.pairs == {("L", "S"), ("C", "S")}
