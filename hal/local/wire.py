"""The keeper's socket: one JSON object in one SOCK_SEQPACKET packet, descriptors beside it.

Request  {"id": n, "op": name, ...arguments}
Answer   {"id": n, "ok": true, "result": {...}} (+ descriptors)
         {"id": n, "ok": false, "error": {"kind": "refused" | "unavailable", "text": why}}
Event    {"event": "slot", "slot": {...}}
A packet is at most 64 KiB and brings at most 8 descriptors.
"""

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

from hal.errors import HalError, PeerGone, Refused, Unavailable

JsonObject: TypeAlias = dict[str, Any]

MESSAGE_LIMIT_BYTES: Final = 65536
FDS_LIMIT: Final = 8
PENDING_LIMIT: Final = 256  # requests of one client that wait for their answer
SOCKET_NAME: Final = "keeper.sock"
_INT: Final = struct.Struct("i")
_SUN_PATH_BYTES: Final = 107  # unix(7): sun_path is 108 bytes with its zero


def encode(message: JsonObject) -> bytes:
    """Raises Refused when it would be larger than a packet may be."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) > MESSAGE_LIMIT_BYTES:
        raise Refused(f"a message of {len(data)} B; at most {MESSAGE_LIMIT_BYTES} B go in a packet")
    return data


def send(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> bool:
    """False when the socket is full. The descriptors stay the caller's. Raises PeerGone."""
    try:
        if fds:
            socket.send_fds(sock, [data], list(fds))
        else:
            sock.send(data)
    except BlockingIOError:
        return False
    except OSError as exc:
        raise PeerGone(f"keeper socket: send: {exc}") from exc
    return True


def receive(sock: socket.socket) -> tuple[JsonObject, list[int]] | None:
    """The next packet and its descriptors, which are now the caller's; None when there is none.

    Raises PeerGone at the end of the connection and Refused for a packet that is not ours (its
    descriptors are closed).
    """
    try:
        # socket.recv_fds of Python 3.11 loses the flags: children would inherit what comes
        data, ancillary, flags, _ = sock.recvmsg(
            MESSAGE_LIMIT_BYTES, socket.CMSG_LEN(FDS_LIMIT * _INT.size), socket.MSG_CMSG_CLOEXEC
        )
    except BlockingIOError:
        return None
    except OSError as exc:
        raise PeerGone(f"keeper socket: receive: {exc}") from exc
    fds = [
        fd
        for level, kind, payload in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for (fd,) in _INT.iter_unpack(payload[: len(payload) // _INT.size * _INT.size])
    ]
    try:
        if not data:
            raise PeerGone("keeper socket: the far end closed it")
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise Refused(
                f"a packet of more than {MESSAGE_LIMIT_BYTES} B or {FDS_LIMIT} descriptors"
            )
        return _decode(data), fds
    except HalError:
        close_all(fds)
        raise


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        os.close(fd)


def _decode(data: bytes) -> JsonObject:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise Refused(f"a packet of {len(data)} B is no JSON: {exc}") from exc
    if not isinstance(message, dict):
        raise Refused(f"a packet holds a JSON {type(message).__name__}, wanted an object")
    return message


def error_of(exc: HalError) -> JsonObject:
    """The `error` object of an answer."""
    kind = "refused" if isinstance(exc, Refused) else "unavailable"
    return {"kind": kind, "text": str(exc)}


def result_of(message: JsonObject) -> JsonObject | HalError:
    """The `result` of an answer, or the error that it carries."""
    if message.get("ok") is True:
        result = message.get("result")
        return result if isinstance(result, dict) else {}
    error = message.get("error")
    error = error if isinstance(error, dict) else {}
    text = str(error.get("text", "the keeper gave no reason"))
    return Refused(text) if error.get("kind") == "refused" else Unavailable(text)


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name for `path` that fits sockaddr_un, however deep its directory lies."""
    if len(os.fsencode(path)) <= _SUN_PATH_BYTES:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def connect(run_dir: Path) -> socket.socket:
    """A blocking connection to the keeper of this run directory. Raises Unavailable."""
    path = run_dir / SOCKET_NAME
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with short_path(path) as name:
            sock.connect(name)
    except OSError as exc:
        sock.close()
        raise Unavailable(f"no keeper at {path}: {exc}; start it with `apf up`") from exc
    return sock
