"""Listening sockets of the virtual world: connect, accept, both ways, and their ends."""

import pytest

from hal.errors import LinkDown, StoreFull, Unavailable
from hal.mock.kernel import VirtualKernel
from hal.mock.unix_server import BACKLOG, MockUnixSocket
from hal.ports import Event
from hal.service_ports import PeerCredentials

PEER = PeerCredentials(pid=7, uid=1000, gid=100)


def test_bytes_go_both_ways_and_the_listener_knows_who_it_is() -> None:
    kernel = VirtualKernel(1)
    socket = MockUnixSocket(kernel, "sock")
    server = socket.listen(kernel.node("daemon"))
    client = socket.connect(kernel.node("caller"), PEER)
    assert kernel.ready(server.handle) == Event.READ
    connection = server.accept()
    assert connection is not None
    assert server.accept() is None
    assert kernel.ready(server.handle) == Event(0)
    assert connection.peer == PEER
    client.write(b"ask")
    kernel.run_for(1)
    assert connection.read() == (b"ask", ())
    assert connection.read() == (b"", ())
    connection.write(b"answer")
    kernel.run_for(1)
    assert client.read() == b"answer"


def test_what_came_before_the_end_is_read_first() -> None:
    kernel = VirtualKernel(1)
    socket = MockUnixSocket(kernel, "sock")
    server = socket.listen(kernel.node("daemon"))
    client = socket.connect(kernel.node("caller"), PEER)
    client.write(bytes(10_000))
    kernel.run_for(1)
    client.close()
    connection = server.accept()
    assert connection is not None
    assert connection.read() == (bytes(10_000), ())
    with pytest.raises(LinkDown):
        connection.read()


def test_the_death_of_the_listener_ends_what_it_has_and_what_waits() -> None:
    kernel = VirtualKernel(1)
    socket = MockUnixSocket(kernel, "sock")
    server = socket.listen(kernel.node("daemon"))
    taken, waiting = (socket.connect(kernel.node("caller"), PEER) for _ in range(2))
    assert server.accept() is not None
    kernel.kill("daemon")
    for client in (taken, waiting):
        with pytest.raises(LinkDown):
            client.read()
    with pytest.raises(Unavailable, match="nobody listens"):
        socket.connect(kernel.node("caller"), PEER)
    socket.listen(kernel.node("daemon"))
    socket.connect(kernel.node("caller"), PEER)


def test_a_full_backlog_refuses_and_leaves_nothing_open() -> None:
    kernel = VirtualKernel(1)
    socket = MockUnixSocket(kernel, "sock")
    server = socket.listen(kernel.node("daemon"))
    clients = [socket.connect(kernel.node("caller"), PEER) for _ in range(BACKLOG)]
    handles = len(kernel.handles)
    with pytest.raises(Unavailable, match="wait already"):
        socket.connect(kernel.node("caller"), PEER)
    assert len(kernel.handles) == handles
    assert server.accept() is not None
    clients.append(socket.connect(kernel.node("caller"), PEER))
    assert len(clients) == BACKLOG + 1


def test_without_descriptors_a_connection_waits_until_there_is_one() -> None:
    kernel = VirtualKernel(1)
    socket = MockUnixSocket(kernel, "sock")
    server = socket.listen(kernel.node("daemon"))
    socket.connect(kernel.node("caller"), PEER)
    socket.no_descriptors = True
    with pytest.raises(StoreFull):
        server.accept()
    assert kernel.ready(server.handle) == Event.READ
    socket.no_descriptors = False
    assert server.accept() is not None
