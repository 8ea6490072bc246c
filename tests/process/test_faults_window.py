"""A peer that shrinks its window, or scribbles over it (protocol/SPEC.md 14.4; hal/linux/shm.py).

The memory is sealed, so that nobody dies of SIGBUS; what a mad module writes into its half is
counted and dropped, costs only its own transfers, and ends when it ends.
"""

import fcntl
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from hal.errors import Refused
from hal.linux.shm import ShmWindow, create_window_memfd
from tests.process.card_watch import CopyWatch
from tests.process.fault_kinds_links import HEADER_BYTES, scribble
from tests.process.fault_logs import LogWatch
from tests.process.local_card import BUSYBOX, LocalCard, a_card, say

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(120),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers and namespaces need root"),
    pytest.mark.skipif(not BUSYBOX, reason="busybox-static is not installed"),
]

SEED = int(os.environ.get("APF_TEST_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)
STEADY = """
services:
  loop:
    image: busybox
    command: ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.5; done"]
    cpus: 0.1
    mem_limit: 32m
    stop_grace_period: 1s
    deploy: {replicas: 4, placement: {preferences: [{spread: node.id}]}}
"""
GUEST = """
services:
  guest:
    image: other
    command: ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.5; done"]
    cpus: 0.1
    mem_limit: 32m
    restart: always
    stop_grace_period: 1s
    deploy: {placement: {constraints: [node.id == cnm0]}}
"""
VICTIM = "cnm0"
SCRIBBLES = 12


@pytest.fixture(scope="module")
def card() -> Iterator[LocalCard]:
    with a_card() as card:
        card.import_busybox()
        card.run_compose(STEADY, "steady")
        yield card


@contextmanager
def window_of(card: LocalCard, cnm: str) -> Iterator[tuple[int, int, int]]:
    """Its memory, the card's doorbell, and the bytes of a half."""
    reply = card.keeper().call_with_fds("window", slot=card.cnms()[cnm]["slot"])
    try:
        yield reply.fds[0], reply.fds[1], int(str(reply.result["size_bytes"])) // 2
    finally:
        for fd in reply.fds:
            os.close(fd)


def test_nobody_who_has_the_windows_descriptor_can_shrink_grow_or_unseal_it(
    card: LocalCard,
) -> None:
    status = card.managing()
    assert status is not None
    with window_of(card, VICTIM) as (memfd, _bell, half_bytes):
        before = os.fstat(memfd).st_size
        for size in (0, half_bytes, before - 1, before + 4096):
            with pytest.raises(PermissionError):
                os.ftruncate(memfd, size)
        with pytest.raises(PermissionError):
            fcntl.fcntl(memfd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        assert os.fstat(memfd).st_size == before
    after = card.managing()
    assert after is not None
    assert after["daemon_pid"] == status["daemon_pid"]


def test_memory_that_could_be_shrunk_is_no_window(tmp_path: os.PathLike[str]) -> None:
    """What a keeper that is not ours might hand out: refused before it is mapped."""
    good = create_window_memfd("test", 1 << 16)
    size_bytes = os.fstat(good).st_size
    os.close(good)
    plain = os.memfd_create("apf-test", os.MFD_ALLOW_SEALING)
    os.ftruncate(plain, size_bytes)
    with pytest.raises(Refused, match="seals"):
        ShmWindow(plain, "card")


def test_a_module_that_scribbles_over_its_window_harms_itself_alone_and_heals(
    card: LocalCard,
) -> None:
    say(f"\nseed {SEED} (APF_TEST_SEED)")
    rng, logs = random.Random(SEED), LogWatch(card)
    before = card.first_processes()
    card.rootfs()
    (card.place / "rootfs" / "ballast").write_bytes(rng.randbytes(3 << 20))  # in several chunks
    card.apf("image", "import", "other", str(card.place / "rootfs"))
    with CopyWatch(card) as watch, window_of(card, VICTIM) as (memfd, bell, half_bytes):
        card.submit(GUEST, "guest")
        for number in range(SCRIBBLES):
            assert not scribble(memfd, half_bytes, rng.randbytes(HEADER_BYTES))
            os.eventfd_write(bell, 1)
            if number == SCRIBBLES // 2:
                card.call("cnm.show", id="cnm1")  # others are served as ever
        rows = card.wait_running("guest/guest/0", timeout_s=60)
        assert not watch.violations, watch.violations
    pid = rows["guest/guest/0"]["pid"]
    with open(f"/proc/{pid}/root/ballast", "rb") as file:
        assert file.read() == (card.place / "rootfs" / "ballast").read_bytes()
    after = card.first_processes()
    assert {name: after[name] for name in before} == before
    card.remove("guest")
    assert all(cnm["state"] == "LEASED" for cnm in card.cnms().values())
    said = [event["text"] for event in card.events("window.down")]
    assert any(VICTIM in text for text in said), said
    assert not [text for text in said if VICTIM not in text]
    logs.look()
    assert not logs.tracebacks, logs.tracebacks
