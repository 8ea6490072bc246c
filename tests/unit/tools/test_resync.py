"""Resynchronisation as a figure: the exhaustive sweep holds its bound in every dialect."""

from pathlib import Path

import pytest

from protocol.mctp.serial import SerialDeframer
from protocol.mctp.serial_frame import Dialect, framer
from tools.bench import resync
from tools.bench.measure import Bench
from tools.bench.resync_linux import LinuxReceiver
from tools.bench.resync_streams import AMBIGUOUS_COUNTS, Kind, damaged, framed, packets


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dialect", Dialect)
def test_one_damaged_byte_costs_its_frame_and_at_most_the_next_and_never_the_link(
    dialect: Dialect, shared: bool
) -> None:
    tally = resync.measured(damaged(dialect, shared=shared), lambda: resync.adaptive(dialect))
    assert tally.cases > 20_000
    assert tally.worst == (2 if shared else 1)  # a shared flag belongs to two frames
    assert (tally.above_two, tally.deaf, tally.moved, tally.wrong) == (0, 0, 0, 0)
    if not shared:
        assert all(tally.mean(kind) <= 1 for kind in Kind)


@pytest.mark.parametrize("dialect", Dialect)
def test_the_same_is_taken_wherever_the_reads_are_cut(dialect: Dialect) -> None:
    for number, case in enumerate(damaged(dialect, shared=False)):
        if number % 397:  # a prime: of every kind of damage, at every kind of place
            continue
        whole = resync.adaptive(dialect)
        want = whole.feed(case.stream)
        for cut in range(len(case.stream) + 1):
            line = resync.adaptive(dialect)
            got = line.feed(case.stream[:cut]) + line.feed(case.stream[cut:])
            assert (got, line.drops, line.dialect) == (want, whole.drops, whole.dialect)
        line = resync.adaptive(dialect)
        got = [p for byte in case.stream for p in line.feed(bytes((byte,)))]
        assert (got, line.drops) == (want, whole.drops)


@pytest.mark.parametrize("dialect", Dialect)
def test_the_streams_hold_what_framing_can_trip_over(dialect: Dialect) -> None:
    sent = packets(dialect)
    assert len(set(sent)) == len(sent)
    counts = {len(packet) for packet in sent}
    assert counts >= {1, 68, 0x5D, 0x5E, *AMBIGUOUS_COUNTS}
    tails = [framed(packet, dialect)[-3:-1] for packet in sent]
    assert any(0x7D in tail for tail in tails)
    assert any(0x7E in tail for tail in tails) is (dialect is not Dialect.B)
    for packet in sent:
        if len(packet) not in AMBIGUOUS_COUNTS:
            assert framed(packet, dialect) == framer(dialect)(packet)
    stream = b"".join(framed(packet, dialect) for packet in sent)
    assert SerialDeframer(dialect=dialect).feed(stream) == sent


def test_the_sweep_sees_a_receiver_that_loses_more() -> None:
    cases = list(damaged(Dialect.A, shared=False, quick=True, limit_bytes=74))
    linux = resync.measured(cases, lambda: LinuxReceiver(Dialect.A))
    assert linux.worst > 2
    assert linux.deaf > 0
    ours = resync.measured(cases, lambda: resync.adaptive(Dialect.A))
    assert ours.worst == 1


def test_the_model_of_linux_reads_good_frames_and_is_deaf_after_a_lost_revision_byte() -> None:
    frames = [framed(bytes((number, 2, 3, 4, 5)), Dialect.A) for number in range(6)]
    receiver = LinuxReceiver(Dialect.A)
    assert len(receiver.feed(b"".join(frames))) == 6
    hurt = frames[0][:1] + frames[0][2:]
    receiver = LinuxReceiver(Dialect.A)
    assert receiver.feed(hurt + b"".join(frames[1:] * 5)) == []  # reference 4.3


def test_the_rows_stand_beside_their_goals() -> None:
    bench = Bench(state_dir=Path, quick=True, say=lambda _text: None)
    rows = [figure.to_json() for figure in resync.run(bench)]
    named = {row["name"]: row for row in rows}
    assert len(named) == len(rows) == 4 * 10
    worst = named["resync.a.worst"]
    assert (worst["must"], worst["aim"], worst["reached"]) == (2, 1, "aim")
    assert worst["baseline"] > worst["value"]
    assert named["resync.b.worst"]["baseline"] is None
    assert named["resync.c.deaf"]["must"] == 0
