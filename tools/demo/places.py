"""Places of the demo's own, and nothing left in them afterwards."""

import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hal.errors import HalError
from hal.local.libc import detach_mount
from hal.ports import Clock
from tools.demo import observe_card
from tools.demo.errors import StepFailed
from tools.demo.waits import wait_for
from tools.paths import Places

ROOT: Final = Path(__file__).resolve().parents[2]  # where `python -m tools` works
GONE_TIMEOUT_MS: Final = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoPlaces:
    """Short: a UNIX socket's name has 107 bytes."""

    top: Path
    places: Places

    @property
    def run(self) -> Path:
        return self.places.run

    @property
    def state(self) -> Path:
        return self.places.state

    def cnm_state(self, cnm: str) -> Path:
        """The CNM's hot tier: blobs, images, volumes."""
        return self.state / "cnm" / cnm

    def env(self, more: Mapping[str, str]) -> dict[str, str]:
        """For every `apf` that the demo calls."""
        rest = os.environ.get("PYTHONPATH")
        return {
            **os.environ,
            "APF_RUN": str(self.run),
            "APF_STATE": str(self.state),
            "NO_COLOR": "1",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{rest}" if rest else str(ROOT),
            **more,
        }


def make_places() -> DemoPlaces:
    """Fresh ones below /tmp."""
    top = Path(tempfile.mkdtemp(prefix="apf-", dir="/tmp"))
    places = Places(run=top / "run", state=top / "state")
    places.run.mkdir()
    places.state.mkdir()
    return DemoPlaces(top=top, places=places)


def card_cgroup(run: Path) -> str | None:
    """`/apf/RUN_ID` of the card that was started here, as its keeper was told; None when none
    was."""
    try:
        return "/apf/" + str(json.loads((run / "keeper.json").read_text())["run_id"])
    except OSError:
        return None


def leftovers(demo: DemoPlaces, cgroup: str) -> list[str]:
    """What of the card is still there, in words; [] after a good `apf down`."""
    found = [
        f"process {item.pid} ({item.module} {item.cnm})".replace(" )", ")")
        for item in observe_card.card_processes(demo.run)
    ]
    if cgroup:
        strangers = observe_card.pids_in(cgroup) - {
            item.pid for item in observe_card.card_processes(demo.run)
        }
        found += [f"process {pid} in {cgroup}" for pid in sorted(strangers)]
        found += [f"cgroup {path}" for path in observe_card.cgroups_below(cgroup)]
    found += [f"mount {point}" for point in observe_card.mounts_below(demo.top)]
    ttys = demo.run / "tty"
    found += [f"tty {path}" for path in sorted(ttys.iterdir())] if ttys.is_dir() else []
    return found


def clear(demo: DemoPlaces, cgroup: str, clock: Clock) -> list[str]:
    """Kill and remove what is left; what resists. The supervisor goes first: it restarts others."""
    owned = sorted(
        observe_card.card_processes(demo.run), key=lambda p: p.module != observe_card.SUPERVISOR
    )
    for item in owned:
        _kill(item.pid)
    if cgroup:
        for directory in observe_card.cgroups_below(cgroup):
            with contextlib.suppress(OSError):
                (directory / "freezer.state").write_text("THAWED")
        for pid in observe_card.pids_in(cgroup):
            _kill(pid)
        with contextlib.suppress(StepFailed):
            wait_for(
                clock,
                "all killed",
                lambda: not observe_card.pids_in(cgroup),
                timeout_ms=GONE_TIMEOUT_MS,
            )
        for directory in observe_card.cgroups_below(cgroup):
            with contextlib.suppress(OSError):
                directory.rmdir()
    for point in sorted(observe_card.mounts_below(demo.top), key=len, reverse=True):
        with contextlib.suppress(HalError, OSError):
            detach_mount(point)
    return [word for word in leftovers(demo, cgroup) if not word.startswith("tty ")]


def remove(demo: DemoPlaces) -> None:
    """The directories themselves. Never through a mount."""
    if not observe_card.mounts_below(demo.top):
        shutil.rmtree(demo.top, ignore_errors=True)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
