"""A real card on this machine for one test: `apf up` in places of its own, watched from outside."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tools.demo import observe

ROOT = Path(__file__).parents[2]
BUSYBOX = next((path for path in ("/bin/busybox", "/usr/bin/busybox") if os.path.exists(path)), "")


class LocalCard:
    """`apf` as a person would use it. Every wait has a deadline that fails with what is there."""

    def __init__(self, board: str = "local", board_text: str = "") -> None:
        self.place = Path(tempfile.mkdtemp(prefix="apf-t-"))
        self.run, self.state = self.place / "run", self.place / "state"
        self.env = os.environ | {
            "APF_RUN": str(self.run),
            "APF_STATE": str(self.state),
            "NO_COLOR": "1",
        }
        self.board = board
        if board_text:
            file = self.place / "board.toml"
            file.write_text(board_text)
            self.board = str(file)

    # --- the command ---

    def apf(self, *words: str, code: int | None = 0, timeout_s: float = 60) -> Any:
        """Run `apf WORDS --json`; its data. The exit code must be `code` (None: any)."""
        done = subprocess.run(
            [sys.executable, "-m", "tools", *words, "--json"],
            cwd=ROOT,
            env=self.env,
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

    def up(self) -> "LocalCard":
        self.run.mkdir(exist_ok=True)
        self.state.mkdir(exist_ok=True)
        self.apf("up", "--board", self.board)
        return self

    def close(self) -> None:
        """Stop everything, judge that nothing is left, remove the places."""
        try:
            self.apf("down", code=None)
        finally:
            for name in ("supervisor", "daemon", "keeper"):
                self._kill_leftover(name)
            shutil.rmtree(self.place, ignore_errors=True)

    def _kill_leftover(self, name: str) -> None:
        try:
            pid = int((self.run / f"{name}.pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_text()
        except (OSError, ValueError):
            return
        if str(self.run) in words:
            os.kill(pid, signal.SIGKILL)

    # --- looking ---

    def ps(self, workload: str | None = None) -> dict[str, dict[str, Any]]:
        rows = self.apf("ps", *([workload] if workload else []))
        return {row["instance"]: row for row in rows}

    def cnms(self) -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in self.apf("cnm", "ls")}

    def cgroup_root(self) -> str:
        """`/apf/RUN_ID`, the part that all cgroups of this card share."""
        for cnm in self.cnms().values():
            if cnm["cgroup"]:
                return str(cnm["cgroup"]).rpartition("/")[0]
        return "/apf/none"

    def mine(self) -> list[observe.Seen]:
        """Processes of instances of this very card, from /proc."""
        return observe.processes(self.cgroup_root())

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
                except AssertionError as exc:
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
            assert observe.start_ticks(row["pid"]) == row["start_ticks"], name
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
            for applet in ("sh", "sleep", "echo", "cat", "date", "ls", "true", "kill", "seq"):
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
