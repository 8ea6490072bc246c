"""The bulk side of a module: its window, the channel on it, and the transfers over that.

Opened when the agent has said hello, closed when its boot is over. The window itself (a memfd, a
BAR) outlives both; attaching again starts both rings afresh.
"""

from collections.abc import Callable
from typing import Final

from firmware.events import EventCode, EventLog
from firmware.inventory import Cnm
from firmware.loop import MS, Loop
from firmware.transfer import TransferSender
from firmware.window import WindowChannel
from hal.errors import HalError
from hal.ports import BlobStore, Doorbell, Entropy, Window
from protocol.apf import Ctx

OPEN_DEADLINE_NS: Final = 2_000 * MS


class CnmSessions:
    """Loop thread only."""

    def __init__(
        self,
        loop: Loop,
        entropy: Entropy,
        blobs: BlobStore,
        events: EventLog,
        ctx: Callable[[Cnm], Ctx],
    ) -> None:
        self._loop = loop
        self._entropy = entropy
        self._blobs = blobs
        self._events = events
        self._ctx = ctx
        self._open: dict[str, tuple[Window, Doorbell]] = {}  # at most one a slot

    def open_window(self, cnm: Cnm, attached: Callable[[str], None]) -> None:
        """`attached("")` when transfers may be begun, or what went wrong."""
        self.close_window(cnm)

        def opened(result: tuple[Window, Doorbell] | HalError) -> None:
            if isinstance(result, HalError):
                attached(str(result))
                return
            if cnm.id in self._open:  # asked for twice: the first one counts
                for part in result:
                    part.close()
                attached("it is being attached already")
                return
            self._open[cnm.id] = result
            window, doorbell = result
            try:
                self._attach(cnm, window, doorbell)
            except (HalError, ValueError) as exc:
                self.close_window(cnm)
                attached(str(exc))
                return
            attached("")

        cnm.ports.open_window(self._loop.now_ns() + OPEN_DEADLINE_NS, opened)

    def _attach(self, cnm: Cnm, window: Window, doorbell: Doorbell) -> None:
        channel = WindowChannel(
            window,
            doorbell,
            self._loop,
            self._entropy,
            on_fault=lambda text: self._on_fault(cnm, text),
        )
        cnm.channel = channel
        cnm.transfers = TransferSender(
            cnm.agent,
            channel,
            self._blobs,
            self._loop,
            lambda: self._ctx(cnm),
            entropy=self._entropy,
        )
        cnm.transfers.route.on_connect(
            lambda: self._say(cnm, EventCode.WINDOW_UP, "window connected")
        )
        channel.attach()

    def close_window(self, cnm: Cnm) -> None:
        """Detach; what was under way fails and is begun again later."""
        transfers, cnm.transfers = cnm.transfers, None
        channel, cnm.channel = cnm.channel, None
        if transfers is not None:
            transfers.close("the window was detached")
        if channel is not None:
            channel.close()
        for part in self._open.pop(cnm.id, ()):
            part.close()

    def _on_fault(self, cnm: Cnm, text: str) -> None:
        self._say(cnm, EventCode.WINDOW_DOWN, text)
        if cnm.channel is not None and not cnm.channel.attached:
            cnm.agent_ready = False  # the port itself failed: discovery opens it anew
            transfers, cnm.transfers = cnm.transfers, None
            if transfers is not None:
                transfers.close(text)  # with the cause

    def _say(self, cnm: Cnm, code: EventCode, text: str) -> None:
        self._events.emit(code, f"{cnm.id}: {text}", cnm=cnm.id)
