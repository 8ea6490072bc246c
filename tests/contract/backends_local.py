"""Rows of the local board: ptys behind the relay, sealed shared memory, power by a real keeper.

byte_stream runs the relay on the test's own loop, and opens both of its ptys with the serial
backend. power starts a keeper process; its CNM is a program that forks and waits.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from hal.linux.serial import BAUD_MAX, SerialLine
from hal.linux.shm import EventfdDoorbell, ShmWindow, create_window_memfd
from hal.local.cgroups import SlotCgroup, find_trees
from hal.local.client import KeeperClient
from hal.local.power import LocalPower
from hal.local.relay import Relay
from hal.ports import Reactor
from tests.contract import rigs
from tests.process.hal.keepers import KeeperProcess, slot

WINDOW_BYTES: Final = 256 * 1024


def backends(port: str) -> Sequence[Any]:
    """The local rows of one port."""
    rows: dict[str, list[Any]] = {
        "byte_stream": [("local-relay", byte_stream)],
        "window": [("local-shm", window)],
        "doorbell": [("local-eventfd", doorbell)],
        "power": [pytest.param(power, id="local-keeper", marks=pytest.mark.process)],
    }
    return rows.get(port, [])


def byte_stream(tmp_path: Path, reactor: Reactor) -> rigs.ByteStreamRig:
    """Two ttys with the keeper's relay between them."""
    relay = Relay(reactor, tmp_path / "tty" / "cnm0-mc", BAUD_MAX)
    relay.power(True)
    a = SerialLine(str(relay.card.link), baud=BAUD_MAX)
    b = SerialLine(str(relay.cnm.link), baud=BAUD_MAX)
    hung_up: list[bool] = []

    def hang_up() -> None:
        hung_up.append(True)
        relay.close()

    def close() -> None:
        a.close()
        b.close()
        if not hung_up:
            relay.close()

    return rigs.ByteStreamRig(a=a, b=b, hang_up=hang_up, close=close)


def window(tmp_path: Path, reactor: Reactor) -> rigs.WindowRig:
    """Both sides of one sealed memfd."""
    memfd = create_window_memfd("contract", WINDOW_BYTES)
    card, cnm = ShmWindow(os.dup(memfd), "card"), ShmWindow(memfd, "cnm")

    def close() -> None:
        card.close()
        cnm.close()

    return rigs.WindowRig(a=card, b=cnm, close=close)


def doorbell(tmp_path: Path, reactor: Reactor) -> rigs.DoorbellRig:
    """Both ends of two eventfds. Death of an end does not show on these (hal/linux/shm.py)."""
    to_a, to_b = os.eventfd(0), os.eventfd(0)
    a = EventfdDoorbell(to_a, to_b)
    b = EventfdDoorbell(os.dup(to_b), os.dup(to_a))

    def close() -> None:
        reactor.unwatch(a.handle)
        reactor.unwatch(b.handle)
        a.close()
        b.close()

    return rigs.DoorbellRig(a=a, b=b, close=close)


def power(tmp_path: Path, reactor: Reactor) -> rigs.PowerRig:
    """A keeper with one CNM."""
    keeper = KeeperProcess(tmp_path, [slot(0)])
    client = KeeperClient(keeper.run_dir, reactor)
    cgroup = SlotCgroup(find_trees(), f"/apf/{keeper.run_id}/cnm0")

    def running() -> bool:
        return any(True for _ in cgroup.processes())

    def die() -> None:
        os.kill(keeper.power(0, "read")["init_pid"], 9)

    def close() -> None:
        client.close()
        keeper.close()
        assert not keeper.cgroups()

    return rigs.PowerRig(
        power=LocalPower(client), slot=0, empty_slot=7, die=die, running=running, close=close
    )
