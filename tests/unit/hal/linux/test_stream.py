"""StreamSocket over a real socket pair."""

import os
import socket

import pytest

from hal.errors import LinkDown, Refused
from hal.linux.stream import StreamSocket, stream_pair


def test_bytes_pass_both_ways_until_the_far_end_closes() -> None:
    ours, fd = stream_pair()
    theirs = StreamSocket.from_fd(fd)
    assert ours.read() == b""
    assert ours.write(b"ping") == 4
    assert theirs.read() == b"ping"
    assert theirs.write(memoryview(b"pong")) == 4
    assert ours.read() == b"pong"
    theirs.close()
    with pytest.raises(LinkDown):
        ours.read()
    with pytest.raises(LinkDown):
        ours.write(b"x")
    ours.close()


def test_what_was_sent_before_the_end_is_still_read() -> None:
    ours, fd = stream_pair()
    os.write(fd, b"last words")
    os.close(fd)
    assert ours.read() == b"last words"
    with pytest.raises(LinkDown, match="closed"):
        ours.read()
    ours.close()


def test_a_busy_line_takes_nothing_and_the_rest_is_the_callers() -> None:
    ours, fd = stream_pair()
    data = bytes(range(256)) * 4096
    sent = 0
    while taken := ours.write(data[sent : sent + 65536]):
        sent += taken
    assert ours.write(b"x") == 0
    theirs = StreamSocket.from_fd(fd)
    got = b""
    while piece := theirs.read():
        assert len(piece) <= 4096
        got += piece
    assert got == data[:sent]
    ours.close()
    theirs.close()


def test_only_stream_sockets_are_taken() -> None:
    reader, writer = os.pipe()
    with pytest.raises(Refused, match="not a socket"):
        StreamSocket.from_fd(reader)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with pytest.raises(Refused, match="SOCK_STREAM"):
        StreamSocket.from_fd(ours.fileno())
    assert os.fstat(ours.fileno())  # still open: it is the caller's
    ours.close()
    theirs.close()
    os.close(reader)
    os.close(writer)
