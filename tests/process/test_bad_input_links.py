"""Garbage on the control links and in the window of a real card: it costs the frames that it hits.

Both pty pairs of a link can be opened beside their users: what is written to `ttyX.cnm` comes to
the card as if the module had sent it, what is written to `ttyX` comes to the module. Frames are
built by hand from DSP0253: flag, revision, count, data, FCS, flag.
"""

import hashlib
import os
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from protocol.crc import fcs16
from protocol.mctp.serial import frame_serial
from tests.process.local_card import BUSYBOX, LocalCard, a_card
from tools.demo import observe

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers and namespaces need root"),
    pytest.mark.skipif(not BUSYBOX, reason="busybox-static is not installed"),
]

STEADY = """
services:
  loop:
    image: busybox
    command: ["/bin/sh", "-c", "while true; do sleep 1; done"]
    cpus: 0.1
    mem_limit: 32m
    stop_grace_period: 0.2s
"""
BYTES_PER_S = 80_000  # of 921,600 baud, so that heartbeats pass too
CARD_EID, CNM_EID = 8, 9  # firmware/discovery.py


def frame(data: bytes, *, count: int | None = None, spoil: int = 0) -> bytes:
    """A DSP0253 frame, with another count or a spoiled FCS if wanted."""
    body = bytes([1, len(data) if count is None else count]) + data
    fcs = fcs16(body) ^ spoil
    tail = bytes([fcs >> 8, fcs & 0xFF])
    escaped = b"".join({0x7E: b"\x7d\x5e", 0x7D: b"\x7d\x5d"}.get(b, bytes([b])) for b in body)
    return b"\x7e" + escaped + tail + b"\x7e"


def packet(
    payload: bytes, *, dest: int, src: int, som: int = 1, eom: int = 1, seq: int = 0
) -> bytes:
    """An MCTP packet (DSP0236 8.1), tag 0 with its owner bit."""
    return bytes([1, dest, src, som << 7 | eom << 6 | seq << 4 | 8]) + payload


def pieces(dest: int, src: int) -> dict[str, tuple[str, list[bytes]]]:
    """Bad input by name: what it is counted under at the least (one word, or either of two: what
    follows a flag is the head of a frame), and its frames."""
    rng = random.Random(7)

    def vendor(head: bytes, size: int, count: int) -> list[bytes]:
        parts = (head + rng.randbytes(size) for _ in range(count))
        return [frame(packet(part, dest=dest, src=src)) for part in parts]

    endless = [packet(b"\x7e" + bytes(59), dest=dest, src=src, eom=0)]
    for number in range(1, 1150):  # 69,000 bytes: a message longer than any may be
        endless.append(packet(bytes(60), dest=dest, src=src, som=0, eom=0, seq=number % 4))
    middle = frame(packet(bytes(30), dest=dest, src=src, som=0, seq=1))
    return {
        "noise": ("garbage bad_revision", [rng.randbytes(20_000)]),
        "flags": ("", [b"\x7e" * 5_000]),  # between frames there may be as many as one likes
        "escapes": ("garbage bad_revision", [b"\x7d" * 5_000]),
        "length 0": ("empty", [frame(b"")] * 50),
        "the longest frame": ("", [frame(packet(bytes(251), dest=dest, src=src))] * 20),
        "one more than its count": ("bad_fcs", [frame(bytes(256), count=255)] * 20),
        "less than its count": ("flag_in_body", [frame(bytes(10), count=200)] * 20),
        "wrong FCS": ("bad_fcs", [frame(packet(bytes(20), dest=dest, src=src), spoil=1)] * 50),
        "an unfinished frame": ("flag_in_body", [frame(bytes(100))[:50]]),
        "short packets": ("short", [frame(bytes(size)) for size in (1, 2, 3, 4)] * 20),
        "another MCTP version": ("bad_version", [frame(b"\x02" + bytes(8))] * 20),
        "middles without a start": ("no_start", [middle] * 20),
        "vendor messages of nobody": ("rx_bad_vendor", vendor(b"\x7e\x12\x34", 20, 20)),
        "our vendor id and noise": ("rx_bad_flags", vendor(b"\x7e\x41\x50", 40, 50)),
        "unknown message types": (
            "rx_unknown_type",
            [frame(packet(bytes([kind] * 9), dest=dest, src=src)) for kind in range(0x10, 0x40)],
        ),
        "a message without end": ("too_long", [frame(item) for item in endless]),
    }


NAMES = tuple(pieces(CARD_EID, CNM_EID))


@pytest.fixture(scope="module")
def card() -> Iterator[LocalCard]:
    with a_card() as card:
        card.import_busybox()
        card.run_compose(STEADY, "steady")
        yield card


@pytest.fixture(autouse=True)
def unharmed(card: LocalCard) -> Iterator[None]:
    """No module was lost, no process touched, no link is left deaf."""
    boots = {name: (cnm["boot_id"], cnm["init_pid"]) for name, cnm in card.cnms().items()}
    running = card.first_processes()
    yield
    card.wait_leased()
    assert {name: (c["boot_id"], c["init_pid"]) for name, c in card.cnms().items()} == boots
    assert card.first_processes() == running
    assert not card.events("cnm.fencing")


def write_line(card: LocalCard, name: str, frames: Iterable[bytes]) -> None:
    """Into a pty, beside its user, whole frames at a time, at the pace at which it takes them."""
    fd = os.open(card.run / "tty" / name, os.O_WRONLY | os.O_NOCTTY)
    try:
        for data in frames:
            rest = data
            while rest:
                rest = rest[os.write(fd, rest[:2_000]) :]
                time.sleep(min(len(data), 2_000) / BYTES_PER_S)
    finally:
        os.close(fd)


def counters(card: LocalCard, cnm: str, link: str) -> Counter[str]:
    rows = card.call("cnm.show", id=cnm)["links"]
    return Counter(next(row["counters"] for row in rows if row["name"] == link))


def heard(card: LocalCard, cnm: str, link: str) -> int:
    """Good packets that the card has had from this link."""
    return counters(card, cnm, link)["rx_packets"]


def test_the_frames_of_this_test_are_those_of_the_card() -> None:
    good = packet(bytes(range(40)), dest=CARD_EID, src=CNM_EID)
    assert frame(good) == frame_serial(good)


@pytest.mark.parametrize("link", ["mc", "agent"])
@pytest.mark.parametrize("name", NAMES)
def test_the_card_drops_and_counts_it_and_the_link_recovers(
    card: LocalCard, link: str, name: str
) -> None:
    cnm = "cnm3"
    reasons, frames = pieces(CARD_EID, CNM_EID)[name]
    before = counters(card, cnm, link)
    write_line(card, f"{cnm}-{link}.cnm", frames)
    if reasons:
        wanted = set(reasons.split())
        card.wait("it is counted", lambda: wanted & (counters(card, cnm, link) - before).keys())
    card.wait_leased()
    packets = heard(card, cnm, "mc")
    card.wait("heartbeats are heard", lambda: heard(card, cnm, "mc") >= packets + 3)


@pytest.mark.parametrize("link", ["mc", "agent"])
def test_the_module_drops_it_too_and_works_on(card: LocalCard, link: str) -> None:
    row = card.ps()["steady/loop/0"]
    for _reason, frames in pieces(CNM_EID, CARD_EID).values():
        write_line(card, f"{row['cnm']}-{link}", frames)
    card.wait_leased()
    assert card.apf("logs", "steady/loop/0")["text"] == ""  # by its agent, through the window
    card.run_compose(STEADY, f"after-{link}")
    assert card.ps(f"after-{link}")[f"after-{link}/loop/0"]["cnm"] == row["cnm"]
    card.remove(f"after-{link}")


def test_a_noisy_line_loses_frames_but_no_work(card: LocalCard) -> None:
    """One bit in 20,000 is flipped, one byte in 5,000 lost, on both links of the busy module."""
    row = card.ps()["steady/loop/0"]
    slot = card.cnms()[row["cnm"]]["slot"]
    before = counters(card, row["cnm"], "mc")
    card.keeper().call("fault", slot=slot, flip=0.00005, drop=0.0002, seed=3)
    try:
        card.run_compose(STEADY, "noisy")
        card.remove("noisy")
        time.sleep(1)
    finally:
        card.keeper().call("fault", slot=slot)
    lost = counters(card, row["cnm"], "mc") - before
    assert lost.keys() - {"rx_bytes", "rx_packets", "tx_bytes", "tx_packets"}, lost


def test_bits_that_flip_in_the_window_never_reach_a_component(card: LocalCard) -> None:
    """The chunks that the card sends are damaged in the shared memory itself."""
    want = os.urandom(6_000_000)
    root = card.place / "random"
    (root / "bin").mkdir(parents=True)
    os.link(card.rootfs() / "bin/busybox", root / "bin/sh")
    os.link(card.rootfs() / "bin/busybox", root / "bin/sleep")
    (root / "blob").write_bytes(want)
    card.apf("image", "import", "random", str(root))
    slots = [cnm["slot"] for cnm in card.cnms().values()]
    for slot in slots:
        card.keeper().call("window_corrupt", slot=slot, flips=30, seed=slot + 1)
    try:
        card.run_compose(STEADY.replace("busybox", "random"), "flipped")
    finally:
        for slot in slots:
            card.keeper().call("window_corrupt", slot=slot, flips=0)
    pid = card.ps("flipped")["flipped/loop/0"]["pid"]
    got = Path(f"/proc/{pid}/root/blob").read_bytes()
    assert hashlib.sha256(got).digest() == hashlib.sha256(want).digest()
    assert observe.start_ticks(pid) is not None
    card.remove("flipped")
