"""The commands that the agent serves by asking init: start, stop, remove, abort, status.

The agent decides nothing here: it turns a body into a question on the local stream and the answer
into a reply. Deploy and Prepare are in `staging`.
"""

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from firmware.cnm.local_stream import Answer, LocalPeer
from firmware.cnm.records import RefusedError, ctx_to_json
from firmware.endpoint import Deferred, Endpoint
from protocol.apf import (
    STATUS_END,
    AbortReply,
    AbortRequest,
    CommitReply,
    CommitRequest,
    InstanceState,
    InstanceStatus,
    InstanceTelemetry,
    InstanceUsage,
    RemoveReply,
    RemoveRequest,
    StartReply,
    StartRequest,
    StatusReply,
    StatusRequest,
    StopReply,
    StopRequest,
)

Command: TypeAlias = StartRequest | CommitRequest | StopRequest | AbortRequest

COMMANDS: Final = {
    StartRequest: ("start", StartReply),
    CommitRequest: ("start", CommitReply),
    StopRequest: ("stop", StopReply),
    AbortRequest: ("abort", AbortReply),
}


class Commands:
    """Loop thread only."""

    def __init__(self, endpoint: Endpoint, init: LocalPeer, on_gone: Callable[[], None]) -> None:
        """`on_gone` after something was removed: what it held may be swept."""
        self._endpoint = endpoint
        self._init = init
        self._on_gone = on_gone
        for kind in COMMANDS:
            endpoint.serve(kind, self._command)
        endpoint.serve(RemoveRequest, self._remove)
        endpoint.serve(StatusRequest, self._status)

    def send_usage(self, seq: int, cursor: int = 0) -> None:
        """Telemetry of all that runs: one notice a page, the same `seq` in each."""

        def answered(answer: Answer) -> None:
            if isinstance(answer, RefusedError):
                return  # the next round comes soon
            entries = tuple(_usage_of(entry) for entry in answer["entries"])
            boot_id = bytes.fromhex(answer["boot"])
            self._endpoint.notify(InstanceTelemetry(boot_id=boot_id, seq=seq, entries=entries))
            if answer["next"] != STATUS_END:
                self.send_usage(seq, answer["next"])

        self._init.request("usage", {"cursor": cursor}, answered)

    def _command(self, request: Command) -> Deferred:
        operation, reply = COMMANDS[type(request)]
        args = _args_of(request)
        if isinstance(request, StopRequest):
            args["grace_ms"] = request.grace_ms
        deferred = Deferred()

        def answered(answer: Answer) -> None:
            if isinstance(answer, RefusedError):
                deferred.complete(answer.to_refusal())
                return
            if operation == "abort":
                self._on_gone()
            state = InstanceState(answer["state"])
            deferred.complete(reply(state=state, status_seq=int(answer["status_seq"])))

        self._init.request(operation, args, answered)
        return deferred

    def _remove(self, request: RemoveRequest) -> Deferred:
        deferred = Deferred()

        def answered(answer: Answer) -> None:
            if isinstance(answer, RefusedError):
                deferred.complete(answer.to_refusal())
                return
            self._on_gone()
            deferred.complete(RemoveReply(status_seq=int(answer["status_seq"])))

        self._init.request("remove", _args_of(request), answered)
        return deferred

    def _status(self, request: StatusRequest) -> Deferred:
        deferred = Deferred()

        def answered(answer: Answer) -> None:
            if isinstance(answer, RefusedError):
                deferred.complete(answer.to_refusal())
                return
            deferred.complete(
                StatusReply(
                    boot_id=bytes.fromhex(answer["boot"]),
                    status_seq=int(answer["status_seq"]),
                    total=int(answer["total"]),
                    next_cursor=int(answer["next"]),
                    entries=tuple(InstanceStatus(**entry) for entry in answer["entries"]),
                )
            )

        self._init.request("status", {"cursor": request.cursor}, answered)
        return deferred


def _args_of(request: Command | RemoveRequest) -> dict[str, Any]:
    return {
        "ctx": ctx_to_json(request.ctx),
        "instance": request.instance,
        "generation": request.generation,
    }


def _usage_of(entry: dict[str, Any]) -> InstanceUsage:
    return InstanceUsage.of(**entry)
