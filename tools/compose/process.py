"""What runs: command, environment, healthcheck, restart policy, signals."""

import re
import shlex
from typing import Any, Final

from firmware.workload import MAX_MS
from tools.compose.cursor import Cursor
from tools.compose.envfile import EnvFileError, parse_env_file
from tools.compose.project import Project
from tools.signals import signal_number

_RESTART: Final = re.compile(r"(no|always|unless-stopped|on-failure)(?::([0-9]{1,6}))?")
_NOT_OF_RESTART: Final = {
    "delay": "the card has its own back-off",
    "window": "each start again counts for max_attempts, however long it lasts",
}
_DEPLOY_RESTART: Final = {"none": "no", "on-failure": "on-failure", "any": "always"}


def read_command(service: Cursor) -> dict[str, Any]:
    """entrypoint and argv. A string is split as a shell would, without running one (compose-spec,
    "command"); an entrypoint of the file's own drops the image's arguments ("entrypoint")."""
    entrypoint = _words(service.get("entrypoint"))
    argv = _words(service.get("command"))
    if entrypoint is not None and argv is None:
        argv = []
    return {"entrypoint": entrypoint, "argv": argv}


def _words(at: Cursor | None) -> list[str] | None:
    if at is None:
        return None
    if isinstance(at.value, list):
        return [item.text for item in at.items()]
    try:
        return shlex.split(at.text)
    except ValueError as exc:
        at.problem(f"can't be split into words: {str(exc).lower()}: {at.shown()}")
        return None


def read_env(service: Cursor, project: Project) -> dict[str, str]:
    """env_file first, then environment. `KEY` without a value is taken from outside."""
    env: dict[str, str] = {}
    files = service.get("env_file")
    for item in files.one_or_many() if files is not None else ():
        env.update(_env_file(item, project))
    pairs = service.get("environment")
    if pairs is None:
        return env
    entries: list[tuple[str, str | None, Cursor]] = []
    for key, at in pairs.entries():
        entries.append((key, None if at.value is None else at.text, at))
    for at in pairs.items():
        key, equals, value = at.text.partition("=")
        entries.append((key, value if equals else None, at))
    for key, given, at in entries:
        if not key or "\0" in key:
            at.problem(f"wanted KEY or KEY=VALUE, found {at.shown()}")
        elif given is not None:
            env[key] = given
        elif key in project.env:
            env[key] = project.env[key]
        else:
            env.pop(key, None)  # not set outside: not set inside (compose-spec, "environment")
    return env


def _env_file(at: Cursor, project: Project) -> dict[str, str]:
    place = at.get("path") or at
    required = at.get("required")
    kind = at.get("format")
    if kind is not None and kind.text != "raw":
        kind.problem(f"wanted the format raw, or none, found {kind.shown()}")
    try:
        text = project.read_text(place.text)
        if kind is not None:
            lines = (line for line in text.splitlines() if line and not line.startswith("#"))
            return dict(line.partition("=")[::2] for line in lines)
        return parse_env_file(text, project.env)
    except EnvFileError as exc:
        place.problem(f"{place.text}:{exc.line}: {exc}")
    except FileNotFoundError:
        if required is None or required.boolean():
            place.problem(f"the file {place.text} is not there")
    except (OSError, ValueError) as exc:
        place.problem(f"the file {place.text} can't be read: {exc}")
    return {}


def read_healthcheck(service: Cursor) -> dict[str, Any] | None:
    """The check as a plain argv; CMD-SHELL becomes `/bin/sh -c`."""
    at = service.get("healthcheck")
    if at is None:
        return None
    disable = at.get("disable")
    if disable is not None and disable.boolean():
        return None
    test = at.get("test")
    if test is None:
        at.warn("healthcheck_without_test", "images on a card bring no check; this is left out")
        return None
    argv = _test(test)
    if argv is None:
        return None
    interval = at.get("start_interval")
    if interval is not None:
        interval.warn("unsupported_start_interval", "the interval is used from the start")
    retries = at.get("retries")
    return {
        "test": argv,
        "interval_ms": _time(at, "interval", 30_000),
        "timeout_ms": _time(at, "timeout", 30_000),
        "retries": (retries.integer(low=0, high=1000) or 3) if retries is not None else 3,
        "start_period_ms": _time(at, "start_period", 0),
    }


def _test(at: Cursor) -> list[str] | None:
    if not isinstance(at.value, list):
        return ["/bin/sh", "-c", at.text] if at.text else None
    words = [item.text for item in at.items()]
    kind, rest = (words[0], words[1:]) if words else ("NONE", [])
    if kind == "NONE":
        return None
    if kind == "CMD" and rest:
        return rest
    if kind == "CMD-SHELL" and len(rest) == 1:
        return ["/bin/sh", "-c", rest[0]]
    at.problem("wanted [NONE], [CMD, program, ...] or [CMD-SHELL, one line], found " + kind[:40])
    return None


def _time(at: Cursor, key: str, usual_ms: int) -> int:
    below = at.get(key)
    if below is None:
        return usual_ms
    value = below.duration_ms()
    if value > MAX_MS:
        below.problem(f"wanted at most a day, found {below.shown()}")
        return usual_ms
    return value or usual_ms  # 0 means the usual one, as it does for Docker


def read_restart(service: Cursor) -> dict[str, Any]:
    """restart, or deploy.restart_policy, which wins."""
    deploy = service.get("deploy")
    policy = deploy.get("restart_policy") if deploy is not None else None
    if policy is not None:
        return _deploy_restart(policy)
    at = service.get("restart")
    if at is None or at.text == "":
        return {"policy": "no", "max_attempts": 0}
    match = _RESTART.fullmatch(at.text)
    if match is None or (match[2] and match[1] != "on-failure"):
        at.problem(f"wanted no, always, on-failure[:N] or unless-stopped, found {at.shown()}")
        return {"policy": "no", "max_attempts": 0}
    return {"policy": match[1], "max_attempts": int(match[2] or 0)}


def _deploy_restart(at: Cursor) -> dict[str, Any]:
    for key, words in _NOT_OF_RESTART.items():
        below = at.get(key)
        if below is not None:
            below.duration_ms()
            below.warn(f"unsupported_restart_{key}", words)
    condition, attempts = at.get("condition"), at.get("max_attempts")
    word = condition.text if condition is not None else "any"
    if condition is not None and word not in _DEPLOY_RESTART:
        condition.problem(f"wanted none, on-failure or any, found {condition.shown()}")
    return {
        "policy": _DEPLOY_RESTART.get(word, "no"),
        "max_attempts": attempts.integer(low=0, high=1_000_000) if attempts is not None else 0,
    }


def read_stop(service: Cursor) -> dict[str, int]:
    """stop_signal and stop_grace_period."""
    number, grace_ms = 15, 10_000
    at = service.get("stop_signal")
    if at is not None:
        found = signal_number(at.text)
        if found is None:
            at.problem(f"wanted a signal such as SIGINT, found {at.shown()}")
        else:
            number = found
    at = service.get("stop_grace_period")
    if at is not None:
        grace_ms = at.duration_ms()
        if grace_ms > 3_600_000:
            at.problem(f"wanted at most an hour, found {at.shown()}")
    return {"stop_signal": number, "stop_grace_ms": grace_ms}
