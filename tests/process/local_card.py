"""A real card on this machine for tests: `apf up` in places of its own, watched from outside.

Asking is done over the card's socket, as `apf` does it, but without a process for each question;
`LocalCard.apf` runs the command itself where the command is what is judged.
"""

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self

from hal.local.client import KeeperControl
from tools.client import Client
from tools.demo import observe
from tools.errors import ToolError

ROOT = Path(__file__).parents[2]
NOBODY = 65534
DEBIAN_PYTHON = "/usr/bin/python3.11"
APPLETS = ("sh", "sleep", "echo", "cat", "mkdir", "mv", "test", "id", "dd")
BUSYBOX = next((path for path in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(path)), "")


@cache
def python_for_others() -> tuple[str, dict[str, str]] | None:
    """An interpreter that another user may run, with what we depend on, and its environment; None
    when there is none (ours may lie in a home directory)."""
    packages = sysconfig.get_path("purelib")
    for python, path in ((sys.executable, str(ROOT)), (DEBIAN_PYTHON, f"{ROOT}:{packages}")):
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": path}
        words = [python, "-c", "import click, construct, cffi, fastcrc, serial, tools.cli"]
        try:
            done = subprocess.run(
                words, env=env, cwd="/", user=NOBODY, group=NOBODY, extra_groups=[],
                capture_output=True, check=False,
            )  # fmt: skip
        except OSError:
            continue
        if done.returncode == 0:
            return python, env
    return None


def say(text: str) -> None:
    """A figure for whoever reads the run (`pytest -s`, or a failure's report)."""
    sys.stdout.write(text + "\n")


class LocalCard:
    """`apf` as a person would use it. Every wait has a deadline that fails with what is there."""

    def __init__(
        self, board: str = "local", board_text: str = "", env: Mapping[str, str] | None = None
    ) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="apf-t-"))
        self.run, self.state = self.place / "run", self.place / "state"
        self.env = os.environ | {
            "APF_RUN": str(self.run),
            "APF_STATE": str(self.state),
            "NO_COLOR": "1",
        }
        self.env |= env or {}
        self.board = board
        self.python = sys.executable
        self.user: dict[str, Any] = {}  # subprocess's `user`, `group`, `extra_groups`
        self._client: Client | None = None
        self._keeper: KeeperControl | None = None
        if board_text:
            file = self.place / "board.toml"
            file.write_text(board_text)
            self.board = str(file)

    @classmethod
    def of(cls, card: Self) -> Self:
        """Another user of the same card, with a connection of its own, for another thread."""
        other = copy.copy(card)
        other._client = other._keeper = None
        return other

    # --- the command ---

    def apf(self, *words: str, code: int | None = 0, timeout_s: float = 60) -> Any:
        """Run `apf WORDS --json`; its data. The exit code must be `code` (None: any)."""
        done = subprocess.run(
            [self.python, "-m", "tools", *words, "--json"],
            cwd=ROOT,
            env=self.env,
            **self.user,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if code is not None and done.returncode != code:
            raise AssertionError(
                f"apf {' '.join(words)}: exit {done.returncode}, wanted {code}\n{done.stdout}\n"
                f"{done.stderr}\n{self.log_tail()}"
            )
        document = json.loads(done.stdout) if done.stdout.strip() else {}
        return document.get("data", document) if done.returncode == 0 else document

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """`apf WORDS` in the background, stdout as text; the caller ends it."""
        return subprocess.Popen(
            [self.python, "-m", "tools", *words],
            cwd=ROOT,
            env=self.env | {"PYTHONUNBUFFERED": "1"},
            **self.user,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def up(self) -> Self:
        self.run.mkdir(exist_ok=True)
        self.state.mkdir(exist_ok=True)
        self.apf("up", "--board", self.board)
        return self

    def close(self) -> None:
        """Stop everything, judge that nothing is left, remove the places."""
        root = self.cgroup_root()
        left: list[str] = []
        try:
            self.hang_up()
            self.apf("down", code=None)
            left = self.leftovers(root)
        finally:
            for name in ("supervisor", "daemon", "keeper"):
                self._kill_leftover(name)
            self._kill_cgroup(root)
            shutil.rmtree(self.place, ignore_errors=True)
        assert not left, f"after `apf down` there is left: {left}"

    def leftovers(self, root: str = "") -> list[str]:
        """What a card that is down must not leave: processes, cgroups, mounts, in words."""
        root = root or self.cgroup_root()
        found = [f"process {seen}" for seen in observe.processes(root)]
        found += [f"cgroup {path}" for path in observe.cgroup_dirs(root)]
        return found + [f"mount {point}" for point in self.mounts()]

    def mounts(self, below: str = "") -> list[str]:
        """Mount points in this card's places that the host sees."""
        place = f"{self.place}/{below}"
        points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
        return [point for point in points if point.startswith(place)]

    def left_in_modules(self) -> list[str]:
        """Containers and cgroups of instances in any module that runs, in words."""
        found = []
        for cnm in self.cnms().values():
            states = observe.runc_states(cnm["init_pid"], cnm["runc_root"])
            found += [f"{cnm['id']}: container {state['id']} {state['status']}" for state in states]
            below = {path for top in observe.cgroup_dirs(cnm["cgroup"]) for path in top.iterdir()}
            names = {path.name for path in below if path.is_dir()}
            found += [f"{cnm['id']}: cgroup {name}" for name in names - {"init", "agent"}]
        return found

    def _kill_cgroup(self, root: str) -> None:
        for directory in observe.cgroup_dirs(root):
            if (directory / "cgroup.kill").exists():
                (directory / "cgroup.kill").write_text("1")

    def _kill_leftover(self, name: str) -> None:
        try:
            pid = int((self.run / f"{name}.pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_text()
        except (OSError, ValueError):
            return
        if str(self.run) in words:
            os.kill(pid, signal.SIGKILL)

    # --- asking ---

    def call(self, method: str, *, fds: Sequence[int] = (), **params: object) -> Any:
        """One request over the socket. Raises ToolError; a dead connection is not kept."""
        if self._client is None:
            self._client = Client(self.run / "apf.sock", timeout_ms=30_000)
        try:
            return self._client.call(method, params, fds=fds)
        except ToolError as exc:
            if exc.exit_code != 3:  # not a refusal: what comes next may be a late answer
                self.hang_up()
            raise

    def hang_up(self) -> None:
        """Close the connections; the next question opens another."""
        if self._client is not None:
            self._client.close()
        if self._keeper is not None:
            self._keeper.close()
        self._client = self._keeper = None

    def status(self) -> dict[str, Any] | None:
        """What `apf status` shows, or None when no daemon answers."""
        try:
            found: dict[str, Any] = self.call("status")
        except ToolError:
            return None
        return found

    def managing(self) -> dict[str, Any] | None:
        """The status of a daemon that is ready and leases every module, else None."""
        status = self.status()
        good = status and status["ready"] and status["leased"] == sum(status["cnms"].values())
        return status if good else None

    def keeper(self) -> KeeperControl:
        """The keeper's own socket, where faults are armed."""
        if self._keeper is None:
            self._keeper = KeeperControl(self.run)
        return self._keeper

    def events(self, *codes: str) -> list[dict[str, Any]]:
        """Events so far, those with one of `codes`."""
        with Client(self.run / "apf.sock") as client:
            last = client.call("events.subscribe", {"since_seq": 0})["next_seq"] - 1
            found: list[dict[str, Any]] = []
            for note in client.notifications(timeout_ms=2_000) if last else ():
                found.append(note["params"])
                if note["params"]["seq"] >= last:
                    break
        return [event for event in found if not codes or event["code"] in codes]

    # --- looking ---

    def ps(self, workload: str | None = None) -> dict[str, dict[str, Any]]:
        rows = self.call("workload.ps", **({"workload": workload} if workload else {}))
        return {row["instance"]: row for row in rows}

    def cnms(self) -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in self.call("cnm.list")}

    def cgroup_root(self) -> str:
        """`/apf/RUN_ID`, the part that all cgroups of this card share."""
        try:
            keeper = json.loads((self.run / "keeper.json").read_text())
        except OSError:
            return "/apf/none"
        return f"/apf/{keeper['run_id']}"

    def mine(self) -> list[observe.Seen]:
        """Processes of instances of this very card, from /proc."""
        return observe.processes(self.cgroup_root())

    def first_processes(self) -> dict[str, tuple[int, int]]:
        """The first process of every instance: host pid and start ticks, from /proc."""
        first: dict[str, tuple[int, int]] = {}
        for seen in sorted(self.mine(), key=lambda seen: (seen.start_ticks, seen.pid)):
            first.setdefault(seen.instance, (seen.pid, seen.start_ticks))
        return first

    def log_tail(self) -> str:
        """The last lines of every log, for a failure's message."""
        parts = []
        for path in [*self.run.glob("*.log"), *self.run.glob("cnm/*/*.log")]:
            text = path.read_text(errors="replace").splitlines()[-8:]
            parts.append(f"--- {path.relative_to(self.place)}\n" + "\n".join(text))
        return "\n".join(parts)

    def wait(
        self, what: str, check: Callable[[], object], timeout_s: float = 30, every_s: float = 0.05
    ) -> Any:
        """Poll until `check()` is truthy, and return that."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = check()
            if found:
                return found
            if time.monotonic() > deadline:
                try:
                    state = json.dumps({"ps": self.ps(), "cnms": self.cnms()}, indent=1)
                except ToolError as exc:
                    state = str(exc)
                raise AssertionError(
                    f"{what}: not so after {timeout_s} s\n{state}\n{self.log_tail()}"
                )
            time.sleep(every_s)

    def wait_leased(self, count: int = 4) -> None:
        self.wait(
            f"{count} modules LEASED",
            lambda: sum(c["state"] == "LEASED" for c in self.cnms().values()) == count,
        )

    def wait_running(self, *instances: str, timeout_s: float = 30) -> dict[str, dict[str, Any]]:
        """All of them RUNNING, each with a live process that /proc shows."""

        def check() -> Mapping[str, Any] | None:
            rows = self.ps()
            wanted = instances or tuple(rows)
            good = wanted and all(
                rows.get(name, {}).get("phase") == "RUNNING" and rows[name]["pid"]
                for name in wanted
            )
            return {name: rows[name] for name in wanted} if good else None

        rows: dict[str, dict[str, Any]] = self.wait("instances RUNNING", check, timeout_s)
        for name, row in rows.items():
            assert observe.start_ticks(row["pid"]) == row["start_ticks"], (
                f"{row}\n{self.log_tail()}"
            )
            assert observe.environment(row["pid"]).get("APF_INSTANCE") == name
        return rows

    # --- things to run ---

    def rootfs(self) -> Path:
        """A small real root filesystem: busybox and its applets."""
        root = self.place / "rootfs"
        if not root.exists():
            for name in ("bin", "etc", "proc", "dev", "sys", "tmp", "data"):
                (root / name).mkdir(parents=True)
            shutil.copy(BUSYBOX, root / "bin/busybox")
            for applet in (*APPLETS, "date", "ls", "true", "kill", "seq"):
                os.link(root / "bin/busybox", root / "bin" / applet)
            (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
        return root

    def import_busybox(self) -> None:
        self.apf("image", "import", "busybox", str(self.rootfs()))

    def submit(self, text: str, name: str = "shop", code: int = 0, *words: str) -> Any:
        """Submit a Compose file given as text."""
        file = self.place / f"{name}.yaml"
        file.write_text(text)
        return self.apf("submit", str(file), "--name", name, *words, code=code)

    def run_compose(self, text: str, name: str, *, timeout_s: float = 60) -> dict[str, Any]:
        """Submit it and wait until all of it was seen to run, by /proc."""
        self.submit(text, name)
        return self.wait_running(*self.ps(name), timeout_s=timeout_s)

    def remove(self, *names: str) -> None:
        """Remove these workloads, all if none is named, and wait until nothing is left."""
        wanted = set(names or {row["workload"] for row in self.ps().values()})
        for name in wanted:
            self.call("workload.remove", name=name)
        self.wait(
            f"{', '.join(wanted)} gone",
            lambda: not wanted & {row["workload"] for row in self.ps().values()},
        )


@contextmanager
def a_card(
    *, board_text: str = "", env: Mapping[str, str] | None = None, modules: int = 4
) -> Iterator[LocalCard]:
    """A card that is up, its modules LEASED; down again whatever happens."""
    card = LocalCard(board_text=board_text, env=env)
    try:
        card.up()
        card.wait_leased(modules)
        yield card
    finally:
        card.close()
