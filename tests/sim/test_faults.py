"""The fault catalogue: each fault that is modelled can be injected, shows itself, and passes.

A fault that shows itself here is one that the card has met: its evidence is the firmware's or the
hardware's own. Afterwards all is mended, the card comes to rest, and the judge has said nothing.
"""

import random

import pytest

from firmware.board_types import Board
from hal.ports import FenceKind
from tools.sim.documents import component, volume, workload
from tools.sim.faults import CLASSES, FAULTS, Fault, Injection, Site, chosen
from tools.sim.module import fence_by
from tools.sim.run import sim_board
from tools.sim.world import BOARD, SECOND, World

LOOK_S = 0.1
SEEN_WITHIN_S = 35.0
COUNTS = {"L": 18, "B": 8, "P": 7, "C": 9, "S": 8, "T": 5, "E": 6, "D": 6, "N": 9, "X": 5}
MODELLED = [name for name, fault in FAULTS.items() if fault.inject is not None]
BY_LOT = {"S2", "S3"}  # what a power cut takes along is the disk's to draw: each time, or not
SEEDS = 2  # worlds for each fault, one with power fences and one with leases only
SEVERAL_WAYS = {
    "B8",
    "C1",
    "C7",
    "D6",
    "E4",
    "E6",
    "L8",
    "L17",
    "P7",
    "S5",
    "T2",
    "T5",
    "X2",
}  # so, more
NOT_MODELLED: list[str] = []
HERE = [name for name in MODELLED if FAULTS[name].fits(BOARD)]  # what a small mock board has


def busy_world(
    seed: int, *, slots: int = 3, fence: FenceKind = FenceKind.POWER, board: Board = BOARD
) -> World:
    world = World(seed, slots=slots, board=board)
    fence_by(list(world.modules.values()), fence)
    world.boot()
    world.submit(workload("shop", component(replicas=4), component("db", volumes=[volume()])))
    world.settle()
    return world


def inject(world: World, fault: Fault, rng: random.Random) -> Injection:
    """As soon as there is something to break; within ten draws."""
    assert fault.inject is not None
    for _ in range(10):
        found = fault.inject(Site(world, rng))
        if found is not None:
            world.judge.injected(found)  # type: ignore[arg-type]
            return found
        world.run(LOOK_S)
    raise AssertionError(f"{fault.id} found nothing to break")


def passes(world: World, injection: Injection) -> bool:
    """Let it last, mend it, wait until the card is at rest; was it seen?"""
    start_ns = world.kernel.now_ns
    mended = False
    while world.kernel.now_ns - start_ns < SEEN_WITHIN_S * SECOND:
        world.run(LOOK_S)
        seen = injection.seen()
        if not mended and world.kernel.now_ns - start_ns >= injection.lasts_ns:
            mended = True
            injection.heal()
        if mended and seen:
            break
    injection.heal()
    injection.heal()  # twice is fine
    world.judge.faults_over(world.kernel.now_ns)
    world.settle(limit_s=180)
    return injection.seen()


@pytest.mark.parametrize("name", MODELLED)
def test_a_fault_is_seen_by_the_card_and_passes_without_a_violation(name: str) -> None:
    seen = []
    for seed in range(1, SEEDS * (1 + (name in SEVERAL_WAYS | BY_LOT)) + 1):
        fence = FenceKind.POWER if seed % 2 else FenceKind.LEASE
        board = BOARD if FAULTS[name].fits(BOARD) else sim_board("rev_a")
        world = busy_world(seed, fence=fence, board=board)
        injection = inject(world, FAULTS[name], world.kernel.rng("faults"))
        assert injection.id == name
        assert injection.cnm is None or injection.cnm in world.modules
        seen.append(passes(world, injection))
        assert len(world.running()) == 5
        world.judge.finish()
    assert any(seen) if name in BY_LOT else all(seen), f"{name}: {seen}"


@pytest.mark.parametrize("seed", range(3))
def test_all_faults_on_one_card_one_over_the_other_are_survived_twice_alike(seed: int) -> None:
    traces = []
    for _ in range(2):
        world = busy_world(seed, slots=4)
        rng = world.kernel.rng("faults")
        injections: list[Injection] = []
        seen: set[str] = set()
        for name in rng.sample(HERE, len(HERE)):
            found = FAULTS[name].inject(Site(world, rng))  # type: ignore[misc]
            if found is not None:
                world.judge.injected(found)  # type: ignore[arg-type]
                injections.append(found)
                if found.lasts_ns:
                    world.kernel.after(found.lasts_ns, found.heal)
            world.run(1.0 + rng.random())
            seen |= {one.id for one in injections if one.seen()}
        for one in injections:
            one.heal()
        world.run(1.0)
        world.judge.faults_over(world.kernel.now_ns)
        if world.card_or_none is None:
            world.start_daemon()
        world.settle(limit_s=300)
        assert len(world.running()) == 5
        assert len(seen) > len(HERE) // 2  # of some, nothing was there to break just then
        traces.append(world.kernel.trace.sha256())
    assert traces[0] == traces[1]


def test_the_catalogue_has_all_81_faults_in_its_order() -> None:
    wanted = [f"{letter}{n}" for letter, count in COUNTS.items() for n in range(1, count + 1)]
    assert list(FAULTS) == wanted
    assert len(wanted) == 81
    assert all(fault.id == name and fault.text for name, fault in FAULTS.items())
    assert list(CLASSES) == list(COUNTS)


def test_what_is_not_modelled_says_why_and_nothing_else_is_left_out() -> None:
    silent = [fault for fault in FAULTS.values() if fault.inject is None]
    assert [fault.id for fault in silent] == NOT_MODELLED
    assert all(fault.not_modelled for fault in silent)


def test_faults_are_chosen_by_class_and_by_id_in_the_catalogue_s_order() -> None:
    assert [fault.id for fault in chosen("all")] == list(FAULTS)
    assert [fault.id for fault in chosen("S7, l1")] == ["L1", "S7"]
    assert [fault.id for fault in chosen("T,T5,t")] == ["T1", "T2", "T3", "T4", "T5"]


@pytest.mark.parametrize("words", ["", "L19", "Q", "L1;L2", "L1,", "every"])
def test_a_word_that_names_no_fault_is_refused_with_what_is_known(words: str) -> None:
    with pytest.raises(ValueError, match=r"known: all, the classes L, B, P.*L1 to L18.*X1 to X5"):
        chosen(words)
