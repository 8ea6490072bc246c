"""Where the card keeps its things (INTERFACES.md, "Places")."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tools.errors import BadUsage

SUN_PATH_BYTES: Final = 107  # of a UNIX socket's name; Ref: unix(7), sun_path[108]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """`run` is gone after a reboot, `state` is not."""

    run: Path
    state: Path

    @property
    def socket(self) -> Path:
        return self.run / "apf.sock"

    @property
    def supervisor_log(self) -> Path:
        return self.run / "supervisor.log"


def find_places(
    *,
    run: str | None = None,
    state: str | None = None,
    env: Mapping[str, str] | None = None,
    uid: int | None = None,
) -> Places:
    """The option, else the variable, else the default. Raises BadUsage."""
    env = os.environ if env is None else env
    uid = os.geteuid() if uid is None else uid
    places = Places(
        run=Path(run or env.get("APF_RUN") or _default_run(env, uid)).absolute(),
        state=Path(state or env.get("APF_STATE") or _default_state(env, uid)).absolute(),
    )
    if len(os.fsencode(places.socket)) > SUN_PATH_BYTES:
        raise BadUsage(
            "run_path_too_long",
            f"the socket's path {places.socket} is longer than the {SUN_PATH_BYTES} bytes that "
            "the kernel takes: choose a shorter --run (APF_RUN)",
        )
    return places


def _default_run(env: Mapping[str, str], uid: int) -> str:
    if uid == 0:
        return "/run/apf"
    runtime = env.get("XDG_RUNTIME_DIR")
    if not runtime:
        raise BadUsage(
            "no_run_dir",
            "no place for the socket: XDG_RUNTIME_DIR is not set; set APF_RUN or give --run DIR",
        )
    return f"{runtime}/apf"


def _default_state(env: Mapping[str, str], uid: int) -> str:
    if uid == 0:
        return "/var/lib/apf"
    home = env.get("XDG_STATE_HOME") or f"{env.get('HOME') or '.'}/.local/state"
    return f"{home}/apf"  # the default of the XDG base directory specification
