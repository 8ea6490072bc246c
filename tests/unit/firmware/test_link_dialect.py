"""Two ends of a line and its dialect: one leads, one follows, and they meet and stay."""

import random
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from firmware.board import load_board
from firmware.board_file import BoardError
from firmware.board_types import Timing
from firmware.cnm.config import CnmConfig
from firmware.endpoint import ATTEMPTS, TIMEOUT_MS
from firmware.keeper_config import plan_keeper
from firmware.link import Link
from firmware.link_dialect import HOLD_NS, STALE_NS
from firmware.loop import MS, Loop
from hal.mock.kernel import VirtualKernel
from hal.mock.line import MockLine
from hal.mock.line_faults import LinePlan
from hal.ports import ByteStream
from protocol.mctp.fragment import fragment
from protocol.mctp.serial_frame import Dialect, framer

A, B, C, D = Dialect
NOTICE = b"\x7e" + bytes(range(20))
SECOND = 1_000 * MS


@dataclass
class Ends:
    kernel: VirtualKernel
    line: MockLine
    card: Link
    cnm: Link
    changes: list[tuple[str, Dialect, Dialect]] = field(default_factory=list)
    heard: dict[str, int] = field(default_factory=lambda: {"card": 0, "cnm": 0})

    def run(self, seconds: float) -> None:
        self.kernel.run_for(int(seconds * SECOND))

    def talk(self, name: str, every_ns: int, *, jitter: int = 0) -> None:
        """One notice each so often, for ever."""
        link = getattr(self, name)
        rng = random.Random(jitter)
        count = 0

        def tick() -> None:
            nonlocal count
            count += 1
            data = NOTICE + count.to_bytes(4, "big")  # another sum each time
            link.send_message(data, tag=7, to=True)
            self.kernel.after(every_ns + rng.randrange(1 + jitter * MS), tick)

        tick()

    def teach(self, side: str, dialect: Dialect, count: int = 2) -> None:
        """Frames out of nowhere."""
        self.line.inject(side, b"".join(frames(dialect, count)))
        self.kernel.run_for(MS)


def frames(dialect: Dialect, count: int = 1) -> list[bytes]:
    """Frames of this dialect that no other one sends."""
    found = []
    for number in range(100_000):
        data = NOTICE + number.to_bytes(4, "big")
        [packet] = fragment(data, dest_eid=0, src_eid=9, tag=7, to=True)
        wire = framer(dialect)(packet)
        if dialect not in (B, C) or framer(B)(packet) != framer(C)(packet):
            found.append(wire)
            if len(found) == count:
                break
    return found


def joined(card: Dialect | None = None, cnm: Dialect | None = None, seed: int = 5) -> Ends:
    kernel = VirtualKernel(seed)
    line = kernel.add_line(MockLine(kernel, "cnm0-mc", baud=921_600))
    links = []
    for name, side, fixed in (("card", "a", card), ("cnm", "b", cnm)):
        node = kernel.node(name)
        loop = Loop(node.clock)
        kernel.attach(name, loop)

        def opener(side: str = side, node: object = node) -> ByteStream:
            return line.open(side, node)

        links.append(Link(loop, opener, name=name, leads=name == "card", dialect=fixed))
    ends = Ends(kernel, line, *links)
    for link in links:
        link.on_dialect = lambda old, new, link=link: ends.changes.append((link.name, old, new))
        link.on_message = lambda _m, link=link: ends.heard.update(
            {link.name: ends.heard[link.name] + 1}
        )
    return ends


@pytest.mark.parametrize("dialect", [B, C, D])
def test_the_card_comes_over_to_a_module_that_speaks_only_another_dialect(
    dialect: Dialect,
) -> None:
    ends = joined(cnm=dialect)
    ends.talk("cnm", 100 * MS)
    ends.talk("card", 100 * MS)
    ends.run(60)
    assert ends.card.dialect is dialect
    assert ends.card.drops["dialect_changes"] == len(ends.changes) == (2 if dialect is C else 1)
    before = dict(ends.heard)
    ends.run(60)
    assert ends.heard["card"] - before["card"] >= 599
    assert ends.heard["cnm"] - before["cnm"] >= 599


@pytest.mark.parametrize("dialect", Dialect)
def test_a_module_that_follows_comes_over_to_a_card_that_speaks_only_one(dialect: Dialect) -> None:
    ends = joined(card=dialect)
    ends.talk("cnm", 100 * MS)
    ends.talk("card", 100 * MS)
    ends.run(120)
    assert ends.cnm.dialect is dialect
    assert {name for name, _old, _new in ends.changes} <= {"cnm"}


@pytest.mark.parametrize("dialect", [B, C, D])
def test_a_module_that_only_answers_is_asked_in_every_dialect_until_it_is_heard(
    dialect: Dialect,
) -> None:
    ends = joined(cnm=dialect)
    ends.cnm.on_message = lambda _m: ends.cnm.send_message(NOTICE, tag=0, to=False)
    ends.card.on_message = lambda _m: ends.heard.update(card=ends.heard["card"] + 1)
    ends.talk("card", 250 * MS)
    ends.run(1.3)
    assert ends.card.dialect in ((B, C) if dialect in (B, C) else (D,))
    assert ends.heard["card"] >= 1
    ends.run(10)
    foreign = sum(n for name, n in ends.cnm.drops.items() if name.startswith("dialect_"))
    assert foreign <= 9, "probing goes on though it was heard"


def test_probing_costs_a_module_of_our_dialect_nothing_and_ends_with_its_first_frame() -> None:
    ends = joined()
    ends.talk("card", 250 * MS)
    ends.run(2)
    assert ends.heard["cnm"] >= 8
    assert ends.changes == []
    assert ends.cnm.drops["dialect_b"] + ends.cnm.drops["dialect_d"] == ends.heard["cnm"]
    ends.talk("cnm", 100 * MS)
    ends.run(1)
    before = ends.cnm.drops["dialect_b"]
    ends.run(10)
    assert ends.cnm.drops["dialect_b"] == before


def test_long_messages_are_never_sent_three_times() -> None:
    ends = joined()
    ends.card.send_message(bytes(500), tag=0, to=True)
    ends.run(1)
    assert ends.card.drops["tx_packets"] == 8


def test_a_frame_of_noise_moves_no_end_and_two_move_no_end_that_is_understood() -> None:
    ends = joined()
    ends.talk("cnm", 50 * MS)
    ends.talk("card", 50 * MS)
    ends.run(1)
    ends.teach("b", D, 1)
    ends.run(0.2)
    ends.teach("a", D, 5)  # well within HOLD_NS of what it understood
    assert (ends.card.dialect, ends.cnm.dialect, ends.changes) == (A, A, [])


def test_a_card_that_understood_its_module_holds_for_two_seconds_before_it_comes_over() -> None:
    ends = joined()
    ends.teach("a", A, 1)
    start_ns = ends.kernel.now_ns
    while ends.card.dialect is A:
        ends.teach("a", D, 1)
        ends.kernel.run_for(100 * MS)
        heard_ns = ends.card.last_rx_ns
        assert heard_ns is not None
        assert ends.kernel.now_ns - heard_ns < 250 * MS, "it is not silent, only not understood"
    assert HOLD_NS <= ends.kernel.now_ns - start_ns < HOLD_NS + 500 * MS


@pytest.mark.parametrize("present", Dialect)
@pytest.mark.parametrize("other", Dialect)
def test_a_line_that_is_opened_again_is_spoken_as_before_and_may_be_anything(
    present: Dialect, other: Dialect
) -> None:
    ends = joined()
    ends.teach("a", present, 3)
    assert ends.card.dialect is present
    ends.line.hang_up()
    ends.run(0.1)
    ends.line.plug()
    ends.run(1)
    assert ends.card.dialect is present
    ends.teach("a", other, 8)  # the eighth: B for C needs more each time
    assert ends.card.dialect is other, "nothing was understood on this line yet: no hold"


@pytest.mark.parametrize("at_card", Dialect)
@pytest.mark.parametrize("at_cnm", Dialect)
@pytest.mark.parametrize(
    ("card_ns", "cnm_ns"),
    [(100 * MS, 100 * MS), (37 * MS, 1_000 * MS), (1_000 * MS, 41 * MS), (0, 100 * MS)],
)
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_two_ends_that_adapt_meet_from_anywhere_and_never_part_again(
    at_card: Dialect, at_cnm: Dialect, card_ns: int, cnm_ns: int, noise: float
) -> None:
    """Also where the card asks nothing at all (0)."""
    ends = joined()
    ends.teach("a", at_card, 3)
    ends.teach("b", at_cnm, 3)
    assert (ends.card.dialect, ends.cnm.dialect) == (at_card, at_cnm)
    for direction in (ends.line.a_to_b, ends.line.b_to_a):
        direction.faults.plan = LinePlan(flip=noise, drop=noise) if noise else None
    if card_ns:
        ends.talk("card", card_ns, jitter=3)
    ends.talk("cnm", cnm_ns, jitter=2)
    ends.run(15)
    families = {"B" if link.dialect is C else link.dialect for link in (ends.card, ends.cnm)}
    assert len(families) == 1, ends.changes
    count = len(ends.changes)
    ends.run(200)
    parted = [change for change in ends.changes[count:] if set(change[1:]) != {B, C}]
    assert parted == []
    assert len(ends.changes) <= 9, "six by the teacher, two to meet, one between B and C"
    if noise == 0.0 and card_ns == cnm_ns:
        assert ends.card.dialect is ends.cnm.dialect


def test_each_change_between_b_and_c_takes_the_card_twice_as_many_frames_as_the_last() -> None:
    ends = joined()
    ends.teach("a", B)
    for count, other in ((2, C), (4, B), (8, C)):
        ends.teach("a", other, count - 1)
        assert ends.card.dialect is not other
        ends.teach("a", other, 1)
        assert ends.card.dialect is other
    ends.teach("b", B)
    for other in (C, B, C, B):  # the module's end follows at once
        ends.teach("b", other, 2)
        assert ends.cnm.dialect is other


def test_what_waits_in_the_old_dialect_is_dropped_and_counted() -> None:
    ends = joined()
    for _ in range(4):  # more than the line's buffer takes
        ends.card.send_message(bytes(6000), tag=0, to=True)
    ends.teach("a", D)
    assert ends.card.dialect is D
    assert ends.card.drops["tx_dropped_at_dialect"] > 0
    ends.run(1)
    assert ends.card.send_message(NOTICE, tag=7, to=True)
    ends.run(1)
    assert ends.cnm.drops["dialect_d"] >= 1


def test_an_end_of_a_fixed_dialect_probes_nothing_and_never_moves() -> None:
    ends = joined(card=B)
    ends.teach("a", D, 50)
    ends.card.send_message(NOTICE, tag=7, to=True)
    ends.run(STALE_NS / SECOND + 1)
    ends.card.send_message(NOTICE, tag=7, to=True)
    ends.run(1)
    assert ends.card.dialect is B
    assert ends.card.drops["tx_packets"] == 2


@pytest.mark.parametrize("dialect", [None, *Dialect])
def test_the_dialect_of_a_module_goes_from_its_board_to_its_init(
    dialect: Dialect | None, tmp_path: Path
) -> None:
    line = f'dialect = "{dialect}"' if dialect else ""
    file = tmp_path / "odd.toml"
    file.write_text(
        '[board]\nname = "odd"\nkind = "local"\ninherit = "local"\ndescription = "one of them"\n'
        f"[[slot]]\nslot = 2\n[slot.module]\n{line}\n"
    )
    board = load_board(str(file), run_dir=str(tmp_path))
    plan = plan_keeper(board, run=tmp_path, state=tmp_path, python="python", env={})
    read = {name: CnmConfig.from_json(made.to_json()) for name, (_, made) in plan.inits.items()}
    assert {name: config.module.dialect for name, config in read.items()} == {
        "cnm0": None,
        "cnm1": None,
        "cnm2": dialect,
        "cnm3": None,
    }


def test_a_dialect_that_is_none_of_the_four_is_refused_with_what_is_known(tmp_path: Path) -> None:
    file = tmp_path / "odd.toml"
    file.write_text(
        '[board]\nname = "odd"\nkind = "local"\ninherit = "local"\ndescription = "one of them"\n'
        '[[slot]]\nslot = 2\n[slot.module]\ndialect = "E"\n'
    )
    with pytest.raises(BoardError, match="one of adapts, A, B, C, D"):
        load_board(str(file), run_dir=str(tmp_path))


def test_the_specification_says_what_the_constants_are() -> None:
    text = (Path(__file__).parents[3] / "protocol" / "SPEC.md").read_text()
    part = text[text.index("1.1 *Serial lines*") : text.index("## 2 Header")]
    assert f"understood\n   nothing for {HOLD_NS // SECOND} s." in part
    assert f"nothing for {STALE_NS // SECOND} s, each message" in part
    assert HOLD_NS > ATTEMPTS * TIMEOUT_MS * MS, "a module that follows hears two of three attempts"
    assert Timing().lease_ms * MS > HOLD_NS
    assert Timing().fence_wait_ms * MS < STALE_NS
