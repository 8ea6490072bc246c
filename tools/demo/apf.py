"""The `apf` command as a person calls it, and the daemon's answers as typed rows.

What it says is what the card *claims*; the steps compare it with what the host shows.
"""

import base64
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any, Final, Self

from hal.ports import Clock
from tools.client import Client
from tools.demo.errors import StepFailed
from tools.demo.waits import MS, pause
from tools.paths import Places

POLL_MS: Final = 10
SPARE_MS: Final = 10_000  # beyond the command's own time-out: the words then are its own
TEXT_LIMIT: Final = 600  # characters of what a command said, in a failure's text


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of `apf ps`."""

    instance: str
    component: str
    phase: str
    cnm: str
    generation: int
    pid: int
    start_ticks: int
    cgroup: str
    health: str
    raw: Mapping[str, Any]

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        return cls(
            instance=raw["instance"],
            component=raw["component"],
            phase=raw["phase"],
            cnm=raw["cnm"] or "",
            generation=raw["generation"] or 0,
            pid=raw["pid"] or 0,
            start_ticks=raw["start_ticks"] or 0,
            cgroup=raw["cgroup"] or "",
            health=raw.get("health") or "",
            raw=raw,
        )

    @property
    def up(self) -> bool:
        """As the card claims: it runs, is healthy where that is known, or had a job and did it."""
        return self.phase == "STOPPED" or (
            self.phase == "RUNNING" and self.pid > 0 and self.health in ("", "healthy")
        )


class Command:
    """An `apf` that runs in the background, and not beyond its `with` block."""

    def __init__(self, words: tuple[str, ...], env: Mapping[str, str]) -> None:
        self.words = words
        self._out: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115  (lives as long as this)
        self._err: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tools", *words, "--json"],
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._out.close()
        self._err.close()

    def done(self) -> bool:
        return self._process.poll() is not None

    def kill(self) -> None:
        """What has ended stays as it ended."""
        if not self.done():
            self._process.kill()
            self._process.wait()

    def output(self) -> str:
        """All that it printed."""
        return _read(self._out)

    def data(self) -> Any:
        """What it printed, after its end. Raises StepFailed unless that was with 0."""
        assert self._process.returncode is not None
        text, words = _read(self._out), _read(self._err)
        document = json.loads(text) if text.strip() else {}
        if self._process.returncode != 0:
            error = document.get("error") or {}
            said = " ".join((error.get("text") or words or "nothing was said").split())
            if len(said) > TEXT_LIMIT:
                said = f"... {said[-TEXT_LIMIT:]}"  # the end of a trace has the reason
            raise StepFailed(
                f"`apf {' '.join(self.words)}` ended with {self._process.returncode}: {said}"
            )
        return document.get("data")


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


class Apf:
    """Calls and asks."""

    def __init__(self, places: Places, env: Mapping[str, str], clock: Clock) -> None:
        self._places = places
        self._env = env
        self._clock = clock

    def begin(self, *words: str) -> Command:
        """Started, to be looked after in a `with` block."""
        return Command(words, self._env)

    def call(
        self,
        *words: str,
        timeout_ms: int,
        meanwhile: Callable[[], object] = lambda: None,
    ) -> Any:
        """Run `apf WORDS --json`, doing something else meanwhile; its data. Raises StepFailed."""
        deadline_ns = self._clock.now_ns() + timeout_ms * MS
        with self.begin(*words) as command:
            while not command.done():
                meanwhile()
                if self._clock.now_ns() >= deadline_ns:
                    raise StepFailed(
                        f"`apf {' '.join(words)}` did not end within {timeout_ms / 1000:g} s"
                    )
                pause(self._clock, POLL_MS)
            return command.data()

    def ask(self, method: str, **params: object) -> Any:
        """One question to the control socket. Raises ToolError."""
        with Client(self._places.socket) as client:
            return client.call(method, params)

    def ps(self, workload: str) -> list[Row]:
        rows: list[Mapping[str, Any]] = self.ask("workload.ps", workload=workload)
        return [Row.from_json(row) for row in rows]

    def cnms(self) -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in self.ask("cnm.list")}

    def volume(self, name: str) -> dict[str, Any]:
        rows: list[dict[str, Any]] = self.ask("volume.list")
        found = next((row for row in rows if row["name"] == name), None)
        if found is None:
            raise StepFailed(f"volume {name} is not in `apf volume ls`")
        return found

    def log(self, instance: str) -> str:
        """What `apf logs` shows of it: all that is kept."""
        data, offset = b"", 0
        while True:
            part = self.ask("instance.logs", instance=instance, offset=offset)
            more = base64.b64decode(part["data_base64"])
            if not more:
                return data.decode(errors="replace")
            data, offset = data + more, int(part["start"]) + len(more)
