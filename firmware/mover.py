"""The mover: carries chunks between a window of shared memory and one over the fabric (DESIGN D11).

    daemon or agent <--- sealed shared memory ---> mover <--- BAR ---> the far end's mover

A device that vanishes reads as ones, or is SIGBUS: neither may reach the daemon. So only this small
process touches the BAR. Towards both sides it speaks the window protocol (protocol/SPEC.md 14) as
any end does; what it takes from one ring it puts into the other, CRC-32C checked and made anew, and
gives a slot back only when the far side has taken its chunk: "taken" means the same as without it.

Two connections in a row are one only while both stand:
- the near one is offered when the far one stands, and taken back when that ends: what was under way
  is lost, and the near end is told so in the way that it knows, by a new connection;
- when the near one ends (the daemon was restarted), the far one begins anew, for the same reason.

Bounds: the two rings, and one chunk held in each direction.
"""

import os
import sys
from collections.abc import Callable
from typing import Final

from firmware.window import SLOT_BYTES, WindowChannel
from hal.errors import HalError
from hal.ports import ByteStream, Doorbell, Entropy, ProcessSpec, Reactor, Spawner, Window
from protocol.window import geometry_for

RING_MOST: Final = 64
Pair = tuple[Window, Doorbell]
_Chunk = tuple[int, int, int, bytes]


class Bridge:
    """Both directions over one pair of windows. Loop thread only."""

    def __init__(
        self,
        near: Pair,
        far: Pair,
        reactor: Reactor,
        entropy: Entropy,
        *,
        on_end: Callable[[str], None],
        say: Callable[[str], None],
        slot_bytes: int = SLOT_BYTES,
    ) -> None:
        """`on_end(why)` once, when a window itself has failed: nothing can be carried any more.
        `say(text)`: a peer that misbehaves. Raises ValueError for a window that is too small."""
        self._reactor, self._on_end, self._say = reactor, on_end, say
        self._ended = False
        self._closing = False  # a connection ends because we end it

        def channel(pair: Pair) -> WindowChannel:
            window, doorbell = pair
            return WindowChannel(
                window,
                doorbell,
                reactor,
                entropy,
                keeps=True,
                ring_entries=ring_entries_for(window.tx_bytes, slot_bytes),
                slot_bytes=slot_bytes,
            )

        self.near, self.far = channel(near), channel(far)
        self._ways = (_Way(self.near, self.far), _Way(self.far, self.near))
        self.near.on_fault = lambda text: self._fault(self.near, f"near {text}")
        self.far.on_fault = lambda text: self._fault(self.far, f"far {text}")
        self.far.on_connect = lambda: reactor.post(self._far_up)
        self.far.on_disconnect = lambda: self._unless_closing(self._far_down)
        self.near.on_disconnect = lambda: self._unless_closing(self._near_down)

    def start(self) -> None:
        """Raises HalError."""
        self.far.attach()
        self.far.expect(True)

    def close(self) -> None:
        """Detach both, in order; twice is fine."""
        self._ended = True
        self._detach()

    def _detach(self) -> None:
        self._closing = True
        self.near.close()
        self.far.close()
        self._closing = False

    def _unless_closing(self, call: Callable[[], None]) -> None:
        if not self._closing:
            self._reactor.post(call)

    def _far_up(self) -> None:
        if self._ended or not self.far.connected or self.near.attached:
            return
        for way in self._ways:
            way.begin()
        try:
            self.near.attach()
            self.near.expect(True)
        except HalError as exc:
            self._end(f"near window: {exc}")

    def _far_down(self) -> None:
        """What was under way is lost: the near end meets a new connection when this one is back
        (it may be: then `_far_up` comes next)."""
        self._closing = True
        self.near.close()
        self._closing = False

    def _near_down(self) -> None:
        """The far end must meet a new connection too."""
        if self._ended or not self.far.attached:
            return
        self._detach()
        try:
            self.far.attach()
            self.far.expect(True)
        except HalError as exc:
            self._end(f"far window: {exc}")

    def _fault(self, channel: WindowChannel, text: str) -> None:
        """Attached still: only the peer misbehaves, and the channel has begun a new session."""
        if channel.attached:
            self._say(text)
        else:
            self._end(text)

    def _end(self, why: str) -> None:
        if not self._ended:
            self.close()
            self._on_end(why)


class _Way:
    """One direction. Takes over the channels' callbacks for it."""

    def __init__(self, source: WindowChannel, target: WindowChannel) -> None:
        self._source, self._target = source, target
        self._held: _Chunk | None = None  # found no room
        self._gone = 0
        source.on_chunk = self._on_chunk
        target.on_space = self._on_space
        target.on_taken = self._on_taken

    def begin(self) -> None:
        """A new pair of connections: nothing of the old one is under way."""
        self._held = None
        self._gone = self._target.tx_put
        self._source.hold(False)

    def _on_chunk(self, kind: int, transfer_id: int, chunk: int, data: bytes) -> None:
        if not self._target.send(kind, transfer_id, chunk, data):
            self._held = kind, transfer_id, chunk, data
            self._source.hold(True)

    def _on_space(self) -> None:
        held, self._held = self._held, None
        if held is not None and not self._target.send(*held):
            self._held = held
            return
        self._source.hold(False)

    def _on_taken(self) -> None:
        while self._gone < self._target.tx_gone:
            self._gone += 1
            self._source.give_back()


def mover_argv(window: str, near_fds: str, control_fd: int, *, run: str = "") -> list[str]:
    """How a mover is started (`firmware.mover_app`). `run`: whose keeper holds VFIO functions."""
    argv = [sys.executable, "-m", "firmware.mover_app", "--window", window]
    argv += ["--run", run] if run and window.startswith("vfio:") else []
    return [*argv, "--near", near_fds, "--control", str(control_fd)]


def open_mailbox(link: str, spawner: Spawner) -> ByteStream:
    """A control link `mailbox:BAR?side=S`, through a relay of its own that ends with the stream.
    Raises HalError."""
    stream, fd = spawner.stream_pair()
    memory = "pci:" + link.removeprefix("mailbox:")
    try:
        spawner.spawn(
            ProcessSpec(argv=mailbox_argv(memory, fd), env=dict(os.environ), pass_fds=(fd,)),
            lambda _status: None,  # its end hangs the stream up, and the link is opened anew
        )
    except HalError:
        stream.close()
        raise
    return stream


def mailbox_argv(memory: str, stream_fd: int) -> list[str]:
    """How a mailbox's relay is started."""
    argv = [sys.executable, "-m", "firmware.mover_app", "--mailbox", memory]
    return [*argv, "--control", str(stream_fd)]


def ring_entries_for(half_bytes: int, slot_bytes: int) -> int:
    """As many slots as fit a half, at most RING_MOST. Raises ValueError when not even two do."""
    entries = RING_MOST
    while entries > 2:
        try:
            geometry_for(entries, slot_bytes, half_bytes)
        except ValueError:
            entries //= 2
        else:
            break
    geometry_for(entries, slot_bytes, half_bytes)
    return entries
