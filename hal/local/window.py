"""Opening a slot's window and doorbell: from the card by the keeper's socket, from the CNM by
its init's descriptor 3.

The keeper gives three descriptors: the memfd, the doorbell to hear, the doorbell to ring.
"""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from hal.errors import HalError, PeerGone
from hal.linux.shm import EventfdDoorbell, ShmWindow, half_bytes_of, shm_window_from_fds
from hal.local import wire
from hal.local.client import KeeperClient, KeeperReply, receive_in_time
from hal.ports import Done


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowFds:
    """Raw descriptors, to be passed on or opened; the holder closes them."""

    memfd: int
    bell_rx: int
    bell_tx: int

    @property
    def half_bytes(self) -> int:
        """What each end may write. Raises Refused for a descriptor that is no window."""
        return half_bytes_of(self.memfd)


def submit_open_window(
    client: KeeperClient,
    slot: int,
    deadline_ns: int,
    done: Done[tuple[ShmWindow, EventfdDoorbell]],
) -> None:
    """The card's end of a slot's window. It stays good over power cycles of the CNM, whose
    memory is zeroed by them."""

    def on_reply(reply: KeeperReply | HalError) -> None:
        if isinstance(reply, HalError):
            done(reply)
            return
        try:
            fds = _three(reply.fds)
            opened = shm_window_from_fds(fds.memfd, fds.bell_rx, fds.bell_tx, "card")
        except HalError as exc:
            done(exc)
            return
        done(opened)

    client.request("window", {"slot": slot}, deadline_ns, on_reply)


def open_cnm_window(keeper_fd: int, *, timeout_s: float = 5.0) -> WindowFds:
    """The CNM's end, asked for by its init (`keeper_fd` stays open). Blocks: for the start only.

    Raises DeadlinePassed, PeerGone, Unavailable (the slot has no window).
    """
    sock = socket.socket(fileno=os.dup(keeper_fd))
    try:
        sock.settimeout(timeout_s)
        wire.send(sock, wire.encode({"id": 1, "op": "window"}))
        while True:
            message, fds = receive_in_time(sock, "window")
            if message.get("id") == 1:
                break
            wire.close_all(fds)
    finally:
        sock.settimeout(None)  # the flag belongs to the file that `keeper_fd` shares
        sock.close()
    result = wire.result_of(message)
    if isinstance(result, HalError):
        wire.close_all(fds)
        raise result
    return _three(fds)


def _three(fds: Sequence[int]) -> WindowFds:
    if len(fds) != 3:
        wire.close_all(fds)
        raise PeerGone(f"the keeper gave {len(fds)} descriptors for a window, wanted 3")
    memfd, bell_rx, bell_tx = fds
    return WindowFds(memfd=memfd, bell_rx=bell_rx, bell_tx=bell_tx)
