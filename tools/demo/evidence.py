"""When a step did not hold: what else is wrong on this card, in a few words.

The keeper is asked for what is cut (it holds the lines), the daemon for what it complains about.
Whoever does not answer is named: that is evidence too.
"""

from typing import Any, Final

from hal.errors import HalError
from hal.local.client import KeeperControl
from tools.demo.context import Context
from tools.errors import ToolError

KEEPER_TIMEOUT_S: Final = 3.0
TEXT_LIMIT: Final = 1200


def evidence(context: Context) -> str:
    """ "" when nothing else is wrong."""
    found = [*_keeper(context), *_modules(context)]
    return "; ".join(found)[:TEXT_LIMIT]


def _keeper(context: Context) -> list[str]:
    try:
        control = KeeperControl(context.demo.run, timeout_s=KEEPER_TIMEOUT_S)
    except HalError as exc:
        return [f"keeper: {exc}"]
    try:
        return cuts(control.call("status"))
    except HalError as exc:
        return [f"keeper: {exc}"]
    finally:
        control.close()


def cuts(status: dict[str, Any]) -> list[str]:
    """What the keeper has cut or switched off, one phrase a CNM."""
    found = []
    for slot in status["slots"]:
        links = [link["name"] for link in slot["links"] if link["cut"]]
        if links:
            found.append(f"the relay of {slot['id']} is cut (control links {', '.join(links)})")
        if slot["window_cut"]:
            found.append(f"the window of {slot['id']} is cut")
        if slot["phase"] != "on":
            found.append(f"{slot['id']} has no power ({slot['phase']})")
    return found


def _modules(context: Context) -> list[str]:
    try:
        cnms = context.apf.cnms()
    except ToolError as exc:
        return [f"daemon: {exc.text}"]
    return [
        f"{name} is {row['state']}" + (f": {row['reason']}" if row["reason"] else "")
        for name, row in cnms.items()
        if row["state"] != "LEASED"
    ]
