"""JSON-RPC 2.0, one message a line, without the socket below it (DESIGN D9).

Ref: https://www.jsonrpc.org/specification (2.0, 2013-01-04). Choices where it leaves one:
- A batch is refused (-32600, "batch_unsupported"): lines may be pipelined, which gives the same.
- Parameters go by name only; positional ones are refused (-32602).
- An id is a string of at most 128 characters, an integer below 2**53 or null; it is echoed as is.
- A message without an id is a notification: it is carried out, and never answered.

Bytes come from whoever may open the socket, so the depth of nesting is measured before the JSON
is parsed, and what other parsers would read differently is refused: duplicate keys, NaN,
lone surrogates. Every number of this interface is an integer; handlers refuse any other.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NoReturn, Protocol, TypeAlias

from firmware.fields import FieldError, Fields, path_text, shown
from hal.errors import HalError
from hal.service_ports import PeerCredentials

PARSE_ERROR: Final = -32700
INVALID_REQUEST: Final = -32600
METHOD_NOT_FOUND: Final = -32601
INVALID_PARAMS: Final = -32602
REFUSED: Final = -32000
UNAUTHORISED: Final = -32001
BUSY: Final = -32002

MAX_DEPTH: Final = 32  # the workload's normal form is 7 deep
MAX_QUOTES: Final = 1 << 17
MAX_COMMAS: Final = 1 << 17
MAX_BRACKETS: Final = 1 << 16
MAX_ID_CHARS: Final = 128
MAX_ID_INTEGER: Final = 2**53 - 1  # what every JSON reader keeps exactly
MAX_METHOD_CHARS: Final = 64
MAX_RESPONSE_BYTES: Final = 16 << 20  # 4,000 components in `ps` are about 2 MiB

_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)  # linear
_SQUARE: Final = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS: Final = bytes(b for b in range(256) if b not in b"[]{}")

RequestId: TypeAlias = str | int | None


class Role(IntEnum):
    """What a caller may do; a higher role may do all that a lower one may."""

    READ = 0  # look
    OPERATE = 1  # run workloads, move them, import images
    ADMIN = 2  # power of slots, shutdown


class RpcError(Exception):
    """A request is not carried out. `code` is JSON-RPC's number, `word` the stable snake_case
    reason in `data.code`."""

    def __init__(self, code: int, word: str, text: str, **data: object) -> None:
        super().__init__(text)
        self.code = code
        self.word = word
        self.data = {"code": word, **data}

    def to_json(self) -> dict[str, object]:
        return {"code": self.code, "message": str(self), "data": self.data}


def refused(word: str, text: str, **data: object) -> RpcError:
    """The request is well-formed and the card says no."""
    return RpcError(REFUSED, word, text, **data)


def busy(word: str, text: str, **data: object) -> RpcError:
    """Not now; the same request may be good later."""
    return RpcError(BUSY, word, text, **data)


@dataclass(frozen=True, slots=True, kw_only=True)
class RolePolicy:
    """Roles by the peer's credentials: root and the daemon's own user are admin, members of the
    operators' group operate, everybody else who may open the socket reads."""

    admin_uids: frozenset[int]
    operate_gids: frozenset[int] = frozenset()

    def role_of(self, peer: PeerCredentials) -> Role:
        if peer.uid in self.admin_uids:
            return Role.ADMIN
        if peer.gid in self.operate_gids or peer.groups & self.operate_gids:
            return Role.OPERATE
        return Role.READ


class Caller(Protocol):
    """The connection that a request came by."""

    @property
    def role(self) -> Role: ...

    @property
    def peer(self) -> PeerCredentials: ...

    def notify(self, method: str, params: Mapping[str, object]) -> bool:
        """Push a notification; False (nothing sent) when the reader is behind or gone."""
        ...

    def discard(self, fds: Sequence[int]) -> None:
        """Close descriptors that came from it and that nobody wants."""
        ...

    def on_room(self, call: Callable[[], None]) -> None:
        """Call whenever a reader that was behind has caught up."""
        ...

    def on_close(self, call: Callable[[], None]) -> None:
        """Call once, when the connection ends."""
        ...


class Deferred:
    """An answer that comes later. The first outcome counts; when the caller has gone in the
    meantime, or its deadline has passed, the answer is dropped."""

    def __init__(self) -> None:
        self._outcome: tuple[object, RpcError | None] | None = None
        self._listener: Callable[[object, RpcError | None], None] | None = None

    @property
    def settled(self) -> bool:
        return self._outcome is not None

    def complete(self, result: object) -> None:
        self._settle(result, None)

    def fail(self, error: RpcError) -> None:
        self._settle(None, error)

    def fail_from(self, error: HalError | FieldError) -> None:
        """Fail with what a port or a check reported."""
        self._settle(None, error_of(error))

    def _settle(self, result: object, error: RpcError | None) -> None:
        if self._outcome is None:
            self._outcome = (result, error)
            if self._listener is not None:
                self._listener(result, error)

    def listen(self, call: Callable[[object, RpcError | None], None]) -> None:
        """Hear the outcome, at once if there is one already. The dispatcher's own."""
        self._listener = call
        if self._outcome is not None:
            call(*self._outcome)


class Call:
    """One request as its handler sees it."""

    def __init__(
        self, method: str, params: Fields, caller: Caller, fds: list[int] | None = None
    ) -> None:
        self.method = method
        self.params = params
        self.caller = caller
        self._fds = fds if fds is not None else []

    def take_fd(self) -> int:
        """The descriptor that came with the request; from now on the taker's to close."""
        if not self._fds:
            raise RpcError(
                INVALID_PARAMS, "descriptor_missing", f"{self.method} needs a file descriptor"
            )
        return self._fds.pop(0)


Handler: TypeAlias = Callable[[Call], object]  # a JSON value, or a Deferred


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    name: str
    role: Role
    handler: Handler
    fds: int = 0  # descriptors that must come with it


class MethodTable:
    """Methods by name, each with the role it takes."""

    def __init__(self) -> None:
        self._methods: dict[str, Method] = {}

    def add(self, name: str, role: Role, handler: Handler, *, fds: int = 0) -> None:
        """`handler(call)` returns the result or a Deferred, or raises RpcError, FieldError or
        HalError, having changed nothing."""
        assert name not in self._methods, name
        self._methods[name] = Method(name=name, role=role, handler=handler, fds=fds)

    def get(self, name: str) -> Method | None:
        return self._methods.get(name)

    def names(self) -> Sequence[str]:
        return sorted(self._methods)


def error_of(exc: RpcError | FieldError | HalError) -> RpcError:
    """What the caller hears about an error of ours."""
    if isinstance(exc, RpcError):
        return exc
    if isinstance(exc, FieldError):
        return RpcError(
            INVALID_PARAMS,
            "bad_params",
            str(exc),
            path=path_text(exc.path),
            want=exc.want,
            got=exc.got,
        )
    word = re.sub(r"(?<!^)(?=[A-Z])", "_", type(exc).__name__).lower()  # StoreFull: store_full
    return refused(word, str(exc))


def complexity(line: bytes) -> str:
    """Why a line is not worth parsing, or "". Without recursion and without a loop over bytes:
    each pass takes the innermost level of brackets away. The limits keep the worst line of 1 MiB
    below some 20 ms; a workload of 4,096 instances is far from them."""
    if line.count(b'"') > MAX_QUOTES or line.count(b",") > MAX_COMMAS:
        return f"more than {MAX_QUOTES // 2} strings or {MAX_COMMAS} commas"
    # one kind of bracket is enough here: whether they match is the parser's to judge
    brackets = _STRING.sub(b"", line).translate(_SQUARE, _NOT_BRACKETS)
    if len(brackets) > MAX_BRACKETS:
        return f"more than {MAX_BRACKETS} brackets"
    for _ in range(MAX_DEPTH):
        if not brackets:
            return ""
        brackets = brackets.replace(b"[]", b"")
    return f"brackets that do not close, or more than {MAX_DEPTH} levels of them" * bool(brackets)


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {twice[:64]!r} appears twice")
    return found


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def parse(line: bytes) -> object:
    """The JSON value of a line. Raises RpcError (-32700)."""
    why = complexity(line)
    if why:
        raise RpcError(PARSE_ERROR, "nesting", why)
    try:
        text = line.decode()
        value: object = _DECODER.decode(text)
        if "\\u" in text:  # an escape may hide half a character
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as exc:
        reason = str(exc).replace("\n", " ")[:200]
        raise RpcError(PARSE_ERROR, "parse", f"not a JSON text: {reason}") from exc
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    method: str
    params: Mapping[str, object]
    request_id: RequestId
    notification: bool


def read_id(value: object) -> RequestId:
    if value is None or (isinstance(value, str) and len(value) <= MAX_ID_CHARS):
        return value
    if type(value) is int and abs(value) <= MAX_ID_INTEGER:
        return value
    raise RpcError(
        INVALID_REQUEST,
        "bad_id",
        f"id must be a string of at most {MAX_ID_CHARS} characters, an integer or null, "
        f"found {shown(value)}",
    )


def read_request(value: object, request_id: RequestId) -> Request:
    """Judge the envelope. Raises RpcError (-32600, -32602)."""
    if isinstance(value, list):
        raise RpcError(INVALID_REQUEST, "batch_unsupported", "batches are not taken: send lines")
    if not isinstance(value, dict):
        raise RpcError(INVALID_REQUEST, "not_a_request", f"wanted an object, found {shown(value)}")
    unknown = sorted(set(value) - {"jsonrpc", "method", "params", "id"})
    if value.get("jsonrpc") != "2.0" or unknown:
        what = f"unknown key {unknown[0][:64]!r}" if unknown else "no jsonrpc: '2.0'"
        raise RpcError(INVALID_REQUEST, "not_a_request", what)
    method = value.get("method")
    if not isinstance(method, str) or not 0 < len(method) <= MAX_METHOD_CHARS:
        raise RpcError(
            INVALID_REQUEST,
            "not_a_request",
            f"method must be a string of 1 to {MAX_METHOD_CHARS} characters, found {shown(method)}",
        )
    params = value.get("params", {})
    if not isinstance(params, dict):
        raise RpcError(
            INVALID_PARAMS, "bad_params", f"params must be an object, found {shown(params)}"
        )
    return Request(
        method=method, params=params, request_id=request_id, notification="id" not in value
    )


def encode(message: Mapping[str, object]) -> bytes:
    """One line."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def notification_line(method: str, params: Mapping[str, object]) -> bytes:
    return encode({"jsonrpc": "2.0", "method": method, "params": params})


def error_line(request_id: RequestId, error: RpcError) -> bytes:
    return encode({"jsonrpc": "2.0", "id": request_id, "error": error.to_json()})


def result_line(request_id: RequestId, result: object) -> bytes:
    line = encode({"jsonrpc": "2.0", "id": request_id, "result": result})
    if len(line) <= MAX_RESPONSE_BYTES:
        return line
    return error_line(
        request_id,
        refused(
            "response_too_large",
            f"the answer has {len(line)} bytes, at most {MAX_RESPONSE_BYTES} are sent",
        ),
    )


class Dispatcher:
    """From a line to the handler, and from its outcome to a line. It never raises on what comes
    in; an exception of a handler other than the three that it may raise is a bug of ours and is
    the loop's to judge."""

    def __init__(self, table: MethodTable) -> None:
        self._table = table
        self.calls = 0
        self.errors: dict[str, int] = {}  # by word; words are ours, so they are few

    def dispatch(
        self,
        line: bytes,
        caller: Caller,
        fds: list[int],
        answer: Callable[[bytes], None],
    ) -> Deferred | None:
        """Carry out one line. `answer(line)` at most once, now or later. A method that takes
        descriptors removes as many from `fds`, refused or not, and what its handler has not
        taken is closed. Returns the Deferred that is still open, if any."""
        request_id: RequestId = None
        silent = False
        try:
            value = parse(line)
            if isinstance(value, dict):
                request_id = read_id(value.get("id"))
            request = read_request(value, request_id)
            silent = request.notification
            outcome = self._carry_out(request, caller, fds)
        except (RpcError, FieldError, HalError) as exc:
            self._say(request_id, None, error_of(exc), None if silent else answer)
            return None
        self.calls += 1
        if not isinstance(outcome, Deferred):
            self._say(request_id, outcome, None, None if silent else answer)
            return None
        outcome.listen(
            lambda result, error: self._say(request_id, result, error, None if silent else answer)
        )
        return None if outcome.settled else outcome

    def _carry_out(self, request: Request, caller: Caller, fds: list[int]) -> object:
        method = self._table.get(request.method)
        if method is None:
            raise RpcError(
                METHOD_NOT_FOUND, "unknown_method", f"there is no method {request.method!r}"
            )
        own = fds[: method.fds]
        del fds[: method.fds]
        try:
            if caller.role < method.role:
                raise RpcError(
                    UNAUTHORISED,
                    "unauthorised",
                    f"{method.name} takes the role {method.role.name.lower()}; uid "
                    f"{caller.peer.uid} has {caller.role.name.lower()}",
                )
            if len(own) < method.fds:
                raise RpcError(
                    INVALID_PARAMS,
                    "descriptor_missing",
                    f"{method.name} needs {method.fds} file descriptor(s), {len(own)} came",
                )
            return method.handler(Call(method.name, Fields(request.params), caller, own))
        finally:
            if own:
                caller.discard(own)

    def _say(
        self,
        request_id: RequestId,
        result: object,
        error: RpcError | None,
        answer: Callable[[bytes], None] | None,
    ) -> None:
        if error is not None:
            self.errors[error.word] = self.errors.get(error.word, 0) + 1
        if answer is not None:
            answer(
                result_line(request_id, result) if error is None else error_line(request_id, error)
            )
