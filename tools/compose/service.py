"""One service of a Compose file as a component of the normal form."""

import posixpath
from typing import Any, Final

from firmware.workload import (
    MAX_MBIT,
    MAX_REPLICAS,
    MAX_WINDOW_SLOTS,
    NAME,
    RuntimeChoice,
    canonical_arch,
)
from tools.compose import unsupported
from tools.compose.cursor import Cursor
from tools.compose.mounts import read_mounts
from tools.compose.process import (
    read_command,
    read_env,
    read_healthcheck,
    read_restart,
    read_stop,
)
from tools.compose.project import Project, read_priority
from tools.compose.resources import read_placement, read_resources
from tools.compose.shape import BOOL_TEXT, INTEGER_TEXT, TEXT, TEXTS, Named, Table, check

_CONDITIONS: Final = {
    "service_started": "started",
    "service_healthy": "healthy",
    "service_completed_successfully": "completed",
}
_X_APF: Final = Table(
    known={
        "runtime": TEXT,
        "together": TEXTS,
        "labels": Named(item=TEXT),
        "spread": BOOL_TEXT,
        "max_per_cnm": INTEGER_TEXT,
        "nvme": INTEGER_TEXT,
        "nvme_mbit": INTEGER_TEXT,
        "link_mbit": INTEGER_TEXT,
        "window_slots": INTEGER_TEXT,
        "profile": TEXT,
        "priority": INTEGER_TEXT,
    },
    extensions=False,
)
_AMOUNTS: Final = {
    "max_per_cnm": MAX_REPLICAS,
    "nvme_mbit": MAX_MBIT,
    "link_mbit": MAX_MBIT,
    "window_slots": MAX_WINDOW_SLOTS,
}


def read_service(name: str, service: Cursor, project: Project) -> dict[str, Any]:
    """The component; what is wrong goes to the project's report."""
    unsupported.warn_unsupported(service, unsupported.SERVICE)
    deploy = service.get("deploy")
    if deploy is not None:
        unsupported.warn_unsupported(deploy, unsupported.DEPLOY)
    extra = _x_apf(service)
    placement = read_placement(service)
    arch = _platform(service) or placement.pop("arch", None)
    read_only = service.get("read_only")
    return {
        "name": project.components[name],
        "image": _image(name, service, project),
        "runtime": extra["runtime"],
        **read_command(service),
        "env": read_env(service, project),
        "cwd": _cwd(service),
        "user": _text(service, "user"),
        "hostname": _text(service, "hostname"),
        "resources": read_resources(service, {**extra, "arch": arch}),
        "replicas": _replicas(service),
        "placement": {
            "labels": {**placement["labels"], **extra["labels"]},
            "spread": placement["spread"] or extra["spread"],
            "together": _together(service, project),
            "max_per_cnm": extra["max_per_cnm"] or placement["max_per_cnm"],
        },
        **read_mounts(service, project),
        "depends_on": _depends_on(service, project),
        "restart": read_restart(service),
        "healthcheck": read_healthcheck(service),
        **read_stop(service),
        "read_only": read_only is not None and read_only.boolean(),
        "profile": extra["profile"],
        "priority": project.priority if extra["priority"] is None else extra["priority"],
    }


def _image(name: str, service: Cursor, project: Project) -> str:
    image, build = service.get("image"), service.get("build")
    provider = service.get("provider")
    if provider is not None:
        provider.problem("a provider runs outside of the card: leave this service out")
        return "none"
    if build is not None:
        used = image.text if image is not None else f"{project.name}-{name}".lower()
        build.warn("unsupported_build", f"nothing is built here; the image {used!r} is used")
        if image is None:
            return used
    if image is None or not image.text:
        (image or service).problem("wanted an image (or a build, which names one)")
        return "none"
    return image.text


def _platform(service: Cursor) -> str | None:
    at = service.get("platform")
    if at is None or not at.text:
        return None
    system, slash, rest = at.text.partition("/")
    arch = canonical_arch(rest.partition("/")[0] if slash else system)
    if (slash and system != "linux") or NAME.fullmatch(arch) is None or arch in ("linux", "wasi"):
        at.warn("unsupported_platform", "a card runs linux/ARCH; this is left out")
        return None
    return arch


def _text(service: Cursor, key: str) -> str | None:
    at = service.get(key)
    return at.text or None if at is not None else None


def _cwd(service: Cursor) -> str | None:
    at = service.get("working_dir")
    if at is None or not at.text:
        return None
    if not at.text.startswith("/"):
        at.problem(f"wanted an absolute path, found {at.shown()}")
        return None
    return posixpath.normpath("/" + at.text.lstrip("/"))


def _replicas(service: Cursor) -> int:
    deploy, scale = service.get("deploy"), service.get("scale")
    replicas = deploy.get("replicas") if deploy is not None else None
    mode = deploy.get("mode") if deploy is not None else None
    if mode is not None and mode.text != "replicated":
        mode.warn(
            "unsupported_mode", "only 'replicated' is known; x-apf.max_per_cnm and replicas help"
        )
    first = replicas.integer(low=0, high=MAX_REPLICAS, default=1) if replicas is not None else None
    second = scale.integer(low=0, high=MAX_REPLICAS, default=1) if scale is not None else None
    if scale is not None and None not in (first, second) and first != second:
        scale.problem("differs from deploy.replicas: say it once")
    return first if first is not None else second if second is not None else 1


def _depends_on(service: Cursor, project: Project) -> list[dict[str, str]]:
    at = service.get("depends_on")
    if at is None:
        return []
    found: list[dict[str, str]] = []
    wanted = [(item.text, item, item) for item in at.items()]
    wanted += [(key, below, below) for key, below in at.entries()]
    for name, below, details in wanted:
        required, condition = details.get("required"), details.get("condition")
        if name not in project.services:
            if required is None or required.value is not False:
                off = (
                    "is switched off by its profiles"
                    if name in project.switched_off
                    else "is not there"
                )
                below.problem(f"the service {name!r} {off}")
            continue
        restart = details.get("restart")
        if restart is not None and restart.boolean():
            restart.warn("unsupported_restart", "an instance is not restarted with its dependency")
        word = _CONDITIONS[condition.text] if condition is not None else "started"
        if word == "healthy" and not _has_check(project.services[name]):
            text = f"{name!r} has no healthcheck in this file; 'started' is waited for"
            (condition or below).warn("healthy_without_healthcheck", text)
            word = "started"
        found.append({"component": project.components[name], "condition": word})
    return found


def _has_check(service: Cursor) -> bool:
    quiet = Cursor(service.node, service.path, type(service.report)(service.report.file))
    return read_healthcheck(quiet) is not None


def _x_apf(service: Cursor) -> dict[str, Any]:
    found: dict[str, Any] = {
        "runtime": "auto",
        "labels": {},
        "spread": False,
        "max_per_cnm": 0,
        "nvme_bytes": 0,
        "nvme_mbit": 0,
        "link_mbit": 0,
        "window_slots": 0,
        "profile": "auto",
        "priority": None,
    }
    at = service.get("x-apf")
    if at is None:
        return found
    before = len(service.report.problems)
    check(_X_APF, at)
    if len(service.report.problems) > before:
        return found
    runtime, spread, nvme = at.get("runtime"), at.get("spread"), at.get("nvme")
    if runtime is not None:
        if runtime.text not in list(RuntimeChoice):
            runtime.problem(f"wanted one of {', '.join(RuntimeChoice)}, found {runtime.shown()}")
        else:
            found["runtime"] = runtime.text
    profile = at.get("profile")
    if profile is not None:
        if profile.text not in ("on", "off"):
            profile.problem(f"wanted on or off, found {profile.shown()}")
        else:
            found["profile"] = profile.text
    labels = at.get("labels")
    found["labels"] = (
        {key: item.text for key, item in labels.entries()} if labels is not None else {}
    )
    found["spread"] = spread is not None and spread.boolean()
    found["nvme_bytes"] = nvme.size_bytes() if nvme is not None else 0
    for key, high in _AMOUNTS.items():
        below = at.get(key)
        found[key] = below.integer(low=0, high=high) if below is not None else 0
    found["priority"] = read_priority(at)
    return found


def _together(service: Cursor, project: Project) -> list[str]:
    at = service.get("x-apf")
    names = at.get("together") if at is not None else None
    found: list[str] = []
    for item in names.items() if names is not None else ():
        if item.text not in project.components:
            item.problem(f"the service {item.shown()} is not there")
        elif project.components[item.text] not in found:
            found.append(project.components[item.text])
    return found
