"""Packets to the keeper that only a careless or a hostile client sends."""

import json
import os
import socket

import pytest

from hal.errors import Refused
from hal.local import wire
from hal.ports import Event
from tests.fuzz.targets.keeper import Board, Client, Loop, Requests, Server, Socket


def ask(request: object) -> dict[str, object]:
    """The keeper's one answer."""
    server = Server.__new__(Server)
    server._handle, server._clients = Requests(Board()).handle, set()
    sock = Socket(json.dumps(request, ensure_ascii=False).encode())
    server._on_ready(Client(Loop(), sock, server._on_ready), Event.READ)
    [packet] = sock.sent
    answer: dict[str, object] = json.loads(packet)
    return answer


@pytest.mark.parametrize("number", ["x" * 65_000, "é" * 30_000, [1], {"a": 1}, 10**100, 1.5])
def test_what_is_no_id_is_answered_without_one(number: object) -> None:
    """Its answer would not fit a packet, nor would the answer that says so."""
    answer = ask({"id": number, "op": "status", "slot": 0})
    assert answer["id"] is None
    assert answer["ok"] is True


@pytest.mark.parametrize("link", [[], {}, ["mc"], 7, True, "nothing"])
def test_a_link_that_is_no_name_is_refused(link: object) -> None:
    answer = ask({"id": 1, "op": "fault", "slot": 0, "link": link, "cut": True})
    assert answer["ok"] is False
    assert "link" in str(answer["error"])


def test_descriptors_that_come_are_not_inherited_by_children() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        assert wire.send(near, b"{}", [0, 1])
        received = wire.receive(far)
        assert received is not None
        fds = received[1]
        try:
            assert len(fds) == 2
            assert not any(os.get_inheritable(fd) for fd in fds)
        finally:
            wire.close_all(fds)


def test_more_descriptors_than_a_packet_may_bring_are_refused_and_closed() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        before = len(os.listdir("/proc/self/fd"))
        assert wire.send(near, b"{}", [0] * (wire.FDS_LIMIT + 1))
        with pytest.raises(Refused):
            wire.receive(far)
        assert len(os.listdir("/proc/self/fd")) == before
