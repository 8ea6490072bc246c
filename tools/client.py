"""The daemon's control socket from a tool's side: blocking, with deadlines (DESIGN D9).

JSON-RPC 2.0, one message a line; a descriptor goes along by SCM_RIGHTS with the first byte of its
request. A connection that has timed out or hung up is not used again.
"""

import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from hal.linux.clock import LinuxClock
from tools.errors import DaemonRefused, DaemonUnreachable, DeadlinePassed, ToolError

CALL_TIMEOUT_MS: Final = 10_000
MAX_LINE_BYTES: Final = 32 << 20  # the daemon sends at most 16 MiB
MAX_HELD: Final = 65_536  # notifications that came while an answer was waited for
RECEIVE_BYTES: Final = 1 << 16
_HELP: Final = "is it up? `apf up` starts it, `apf --run DIR` names another place"


class Client:
    """One connection. Use as a context manager."""

    def __init__(
        self,
        path: str | Path,
        *,
        timeout_ms: int = CALL_TIMEOUT_MS,
    ) -> None:
        """Raises DaemonUnreachable."""
        self._path = str(path)
        self._clock = LinuxClock()
        self._timeout_ms = timeout_ms
        self._buffer = bytearray()
        self._scanned = 0
        self._next_id = 1
        self._held: list[dict[str, Any]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.settimeout(timeout_ms / 1000)
            self._socket.connect(self._path)
        except OSError as exc:
            self.close()
            raise self._unreachable(str(exc.strerror or exc)) from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()
        self._clock.close()

    def call(
        self,
        method: str,
        params: Mapping[str, object] | None = None,
        *,
        fds: Sequence[int] = (),
        timeout_ms: int | None = None,
    ) -> Any:
        """The result. Raises DaemonRefused, DaemonUnreachable, DeadlinePassed. The descriptors
        stay the caller's own."""
        until_ns = self._until_ns(self._timeout_ms if timeout_ms is None else timeout_ms)
        request_id = self._next_id
        self._next_id += 1
        message = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params or {}}
        try:
            self._send(json.dumps(message, separators=(",", ":")).encode() + b"\n", fds, until_ns)
        except DaemonUnreachable as exc:  # it hung up, and may have said why before
            said = self._last_words(method, until_ns)
            if said is None:
                raise
            raise said from exc
        while True:
            answer = self._receive(until_ns, method)
            if "method" in answer:
                if len(self._held) >= MAX_HELD:
                    raise self._unreachable(f"more than {MAX_HELD} notifications before an answer")
                self._held.append(answer)
                continue
            if answer.get("id") not in (request_id, None):
                continue  # the late answer to a call that was given up
            error = answer.get("error")
            if error is not None:
                raise _refusal(method, error)
            return answer.get("result")

    def _last_words(self, method: str, until_ns: int) -> ToolError | None:
        try:
            answer = self._receive(until_ns, method)
        except ToolError:
            return None
        error = answer.get("error")
        return None if error is None else _refusal(method, error)

    def notifications(self, *, timeout_ms: int | None = None) -> Iterator[dict[str, Any]]:
        """`{"method", "params"}` as they come. Ends when `timeout_ms` pass without one; None waits
        for ever. Raises DaemonUnreachable when the daemon goes."""
        while True:
            if self._held:
                yield self._held.pop(0)
                continue
            until_ns = None if timeout_ms is None else self._until_ns(timeout_ms)
            try:
                message = self._receive(until_ns, "notifications")
            except DeadlinePassed:
                return
            if "method" in message:
                yield message

    def _until_ns(self, timeout_ms: int) -> int:
        return self._clock.now_ns() + timeout_ms * 1_000_000

    def _arm(self, until_ns: int | None, what: str) -> None:
        if until_ns is None:
            self._socket.settimeout(None)
            return
        left_ns = until_ns - self._clock.now_ns()
        if left_ns <= 0:
            raise DeadlinePassed("deadline_passed", f"{what}: no answer in time from {self._path}")
        self._socket.settimeout(left_ns / 1e9)

    def _send(self, line: bytes, fds: Sequence[int], until_ns: int) -> None:
        rest = memoryview(line)
        try:
            if fds:
                self._arm(until_ns, "send")
                rest = rest[socket.send_fds(self._socket, [rest], list(fds)) :]
            while rest:
                self._arm(until_ns, "send")
                rest = rest[self._socket.send(rest) :]
        except TimeoutError as exc:
            raise DeadlinePassed(
                "deadline_passed", f"{self._path} does not take requests: the daemon is stuck"
            ) from exc
        except OSError as exc:
            raise self._unreachable(str(exc.strerror or exc)) from exc

    def _receive(self, until_ns: int | None, what: str) -> dict[str, Any]:
        while True:
            end = self._buffer.find(b"\n", self._scanned)
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                self._scanned = 0
                return self._parse(line)
            self._scanned = len(self._buffer)
            if self._scanned > MAX_LINE_BYTES:
                raise self._unreachable(f"an answer of more than {MAX_LINE_BYTES} bytes")
            self._arm(until_ns, what)
            try:
                data = self._socket.recv(RECEIVE_BYTES)
            except TimeoutError as exc:
                raise DeadlinePassed(
                    "deadline_passed", f"{what}: no answer in time from {self._path}"
                ) from exc
            except OSError as exc:
                raise self._unreachable(str(exc.strerror or exc)) from exc
            if not data:
                raise self._unreachable("the daemon closed the connection")
            self._buffer += data

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise self._unreachable(f"an answer that is not JSON: {line[:40]!r}") from exc
        if not isinstance(message, dict):
            raise self._unreachable(f"an answer that is no object: {line[:40]!r}")
        return message

    def _unreachable(self, why: str) -> DaemonUnreachable:
        return DaemonUnreachable(
            "daemon_unreachable",
            f"the daemon at {self._path} can't be reached: {why}; {_HELP}",
            {"socket": self._path, "why": why},
        )


def _refusal(method: str, error: object) -> DaemonRefused:
    """A JSON-RPC error object as what the daemon wanted to say."""
    if not isinstance(error, dict):
        return DaemonRefused("bad_answer", f"{method}: an error of no known form: {error!r}")
    data = error.get("data")
    details = dict(data) if isinstance(data, dict) else {}
    code = str(details.pop("code", f"rpc_{error.get('code')}"))
    return DaemonRefused(code, str(error.get("message", code)), {"method": method, **details})
