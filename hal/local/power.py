"""SlotPower port through the keeper."""

from collections.abc import Callable

from hal.errors import HalError, PeerGone
from hal.local.client import KeeperClient, KeeperReply
from hal.local.wire import JsonObject
from hal.ports import Done, FenceKind, PowerRequest, SlotState


class LocalPower:
    """Off completes only with the keeper's proof; where fence is LEASE, `text` says so."""

    def __init__(self, client: KeeperClient) -> None:
        self._client = client
        self._calls: list[Callable[[SlotState], None]] = []
        client.on_event(self._on_event)

    def submit(self, request: PowerRequest, deadline_ns: int, done: Done[SlotState]) -> None:
        def on_reply(reply: KeeperReply | HalError) -> None:
            done(reply if isinstance(reply, HalError) else state_or_error(reply.result))

        arguments = {"slot": request.slot, "action": request.action.value}
        self._client.request("power", arguments, deadline_ns, on_reply)

    def on_change(self, call: Callable[[SlotState], None]) -> None:
        self._calls.append(call)

    def _on_event(self, message: JsonObject) -> None:
        if message.get("event") != "slot":
            return
        state = state_or_error(message.get("slot"))
        if isinstance(state, SlotState):
            for call in self._calls:
                call(state)


def state_or_error(raw: object) -> SlotState | HalError:
    """A SlotState from the socket; an error when the keeper talks another language."""
    if not isinstance(raw, dict):
        return PeerGone(f"the keeper's slot state is no object: {str(raw)[:200]}")
    try:
        return SlotState(**{**raw, "fence": FenceKind(raw["fence"])})
    except (TypeError, KeyError, ValueError) as exc:
        return PeerGone(f"the keeper's slot state is not ours ({exc}): {str(raw)[:200]}")
