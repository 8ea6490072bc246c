"""What the whole-system case does inside its machines: functions of (ctx, ...) for `Guest.call`.

The card's machine runs the supervisor, keeper and daemon as `apf up` starts them; a module's runs
cnm-init and its agent. Everything is the product's own, started as a person would.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.hil.case import PCI, Context
from tools.client import Client
from tools.demo.rootfs import build_rootfs

CARD_BOARD: Final = "qemu_q35"
MODULE_BOARD: Final = "qemu_cnm"
IMAGE: Final = "parts:1"
WINDOW_IDS: Final = "1af4:1110"  # QEMU, docs/specs/ivshmem-spec
_RUN: Final = Path("/run/apf")
_STATE: Final = Path("/run/apf-state")  # in memory: the root is an overlay, which can't carry one
_MODULE_RUN: Final = Path("/run/apf-cnm")
_MODULE_STATE: Final = Path("/run/apf-cnm-state")
_MODULE_LOG: Final = Path("/run/cnm-init.log")
_LOG_BYTES: Final = 6_000
_CALL_MS: Final = 60_000


def start_card(_ctx: Context) -> dict[str, Any]:
    """`apf up`; its status."""
    found: dict[str, Any] = _apf("up", "--board", CARD_BOARD, "--timeout", "170", timeout_s=180)
    return found


def start_module(ctx: Context, slot: int) -> dict[str, str]:
    """cnm-init of that slot, which goes on when the call has ended; what its window goes by."""
    with _MODULE_LOG.open("ab") as log:
        argv = [sys.executable, "-m", "firmware.cnm.init", "--board", MODULE_BOARD]
        argv += ["--slot", str(slot), "--run", str(_MODULE_RUN), "--state", str(_MODULE_STATE)]
        child = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    window = ctx.pci(WINDOW_IDS)
    tty = Path("/sys/class/tty/ttyS4/device")
    return {
        "pid": str(child.pid),
        "window": window,
        "tty": tty.resolve().name,
        "tty_driver": (tty / "driver").resolve().name,
    }


def modules(_ctx: Context) -> list[dict[str, Any]]:
    """As `apf cnm ls`."""
    rows: list[dict[str, Any]] = _call("cnm.list")
    return rows


def instances(_ctx: Context) -> list[dict[str, Any]]:
    """As `apf ps`."""
    rows: list[dict[str, Any]] = _call("workload.ps")
    return rows


def import_image(_ctx: Context) -> dict[str, Any]:
    """A root filesystem of one busybox; what was sent."""
    root = Path("/run/parts")
    build_rootfs("/usr/bin/busybox", root)
    found: dict[str, Any] = _apf("image", "import", IMAGE, str(root), timeout_s=120)
    return found


def submit(_ctx: Context, compose: str, timeout_s: int) -> list[dict[str, Any]]:
    """`apf submit --wait`; the instances, all running."""
    path = Path("/run/compose.yaml")
    path.write_text(compose)
    found = _apf("submit", str(path), "--wait", "--timeout", f"{timeout_s}", timeout_s=timeout_s)
    rows: list[dict[str, Any]] = found["instances"]
    return rows


def drain(_ctx: Context, cnm: str) -> Any:
    """As `apf drain`."""
    return _call("cnm.drain", {"id": cnm})


def log_of(_ctx: Context, instance: str) -> str:
    """What an instance has printed, read by its agent and carried through the window."""
    return str(_apf("logs", instance, timeout_s=60)["text"])


def status(_ctx: Context) -> dict[str, Any]:
    """As `apf status`."""
    found: dict[str, Any] = _call("status")
    return found


def port_driver(ctx: Context) -> str:
    """Which driver has the port that a window is behind; the BAR itself is mapped by sysfs."""
    return ctx.driver((PCI / ctx.pci(WINDOW_IDS)).resolve().parent.name)


def containers(_ctx: Context) -> dict[str, list[str]]:
    """In a module: pid namespace -> command lines of its processes, but for the module's own."""
    found: dict[str, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            space = os.readlink(entry / "ns/pid")
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        found.setdefault(space, []).append(b" ".join(words).decode(errors="replace").strip())
    del found[os.readlink("/proc/self/ns/pid")]
    return found


def module_log(_ctx: Context) -> str:
    """The end of what cnm-init has said."""
    return _tail(_MODULE_LOG)


def card_log(_ctx: Context) -> str:
    """The end of what the supervisor and the daemon have said."""
    return _tail(_RUN / "supervisor.log")


def _call(method: str, params: Mapping[str, object] | None = None) -> Any:
    with Client(_RUN / "apf.sock", timeout_ms=_CALL_MS) as client:
        return client.call(method, params)


def _apf(*words: str, timeout_s: float) -> Any:
    """The command as a person gives it. AssertionError with its words."""
    argv: Sequence[str] = [sys.executable, "-m", "tools", "--json", *words]
    env = {**os.environ, "APF_RUN": str(_RUN), "APF_STATE": str(_STATE)}
    done = subprocess.run(
        argv, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"apf {words}: {done.returncode}: {done.stdout} {done.stderr}"
    return json.loads(done.stdout)["data"]


def _tail(path: Path) -> str:
    try:
        return path.read_bytes()[-_LOG_BYTES:].decode(errors="replace")
    except OSError as exc:
        return f"(no {path}: {exc.strerror})"
