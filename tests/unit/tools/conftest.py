"""A small control socket in this process: what `apf` says to a daemon, and what it makes of the
answers."""

import array
import json
import os
import socket
import threading

import pytest
from click.testing import CliRunner

from tools.cli import cli


class FakeDaemon:
    """Answers from `answers`: a value, or a function of (params, fds), or an Exception-like dict
    with "error". Everything asked is in `calls`."""

    def __init__(self, path):
        self.calls = []
        self.answers = {}
        self.raw = {}  # method -> bytes sent instead of an answer; None hangs up
        self.notifications = []  # sent after events.subscribe
        self.file_bytes = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._threads = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in [self._accepting, *self._threads]:
            thread.join(5)

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection):
        buffer, fds = b"", []
        with connection:
            while True:
                data, ancillary, _, _ = connection.recvmsg(65536, socket.CMSG_SPACE(4 * 4))
                for _level, _kind, raw in ancillary:
                    found = array.array("i")
                    found.frombytes(raw)
                    fds += found
                if not data:
                    return
                buffer += data
                while b"\n" in buffer:
                    line, buffer = buffer.split(b"\n", 1)
                    if not self._answer(connection, json.loads(line), fds):
                        return
                    fds = []

    def _answer(self, connection, request, fds):
        method = request["method"]
        self.calls.append((method, request["params"]))
        for fd in fds:
            with os.fdopen(fd, "rb") as file:
                self.file_bytes.append(file.read())
        if method in self.raw:
            if self.raw[method] is None:
                return False
            connection.sendall(self.raw[method])
            return True
        answer = self.answers.get(method)
        if callable(answer):
            answer = answer(request["params"])
        message = {"jsonrpc": "2.0", "id": request["id"]}
        if isinstance(answer, dict) and set(answer) == {"error"}:
            message["error"] = answer["error"]
        else:
            message["result"] = answer
        connection.sendall(json.dumps(message).encode() + b"\n")
        if method == "events.subscribe":
            for params in self.notifications:
                note = {"jsonrpc": "2.0", "method": "event", "params": params}
                connection.sendall(json.dumps(note).encode() + b"\n")
        return True


@pytest.fixture
def daemon(tmp_path):
    fake = FakeDaemon(tmp_path / "apf.sock")
    yield fake
    fake.close()


@pytest.fixture
def apf(tmp_path):
    """`apf(*words)` -> click's result, against the run directory of this test."""

    def run(*words, **env):
        places = ["--run", str(tmp_path), "--state", str(tmp_path / "state")]
        runner = CliRunner(env={"NO_COLOR": "1", "XDG_RUNTIME_DIR": str(tmp_path), **env})
        result = runner.invoke(cli, [*places, *words])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run
