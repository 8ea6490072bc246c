"""Volumes and tmpfs. Named volumes live on the card; a CNM has no host directories to bind."""

import posixpath
import re
from dataclasses import dataclass
from typing import Any, Final

from tools.compose.cursor import Cursor
from tools.compose.project import Project, card_name

_MODES: Final = ("rw", "ro")
_WINDOWS_DRIVE: Final = re.compile(r"[A-Za-z]:[\\/]")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mount:
    at: Cursor
    kind: str  # volume, bind, anonymous, tmpfs, or the long syntax's own word
    source: str
    target: str
    read_only: bool


def read_mounts(service: Cursor, project: Project) -> dict[str, Any]:
    """`volumes` and `tmpfs` of the normal form."""
    volumes: list[dict[str, Any]] = []
    tmpfs: list[str] = []
    targets: set[str] = set()
    for mount in _all(service):
        target = _target(mount)
        if not target:
            continue
        if target in targets:
            mount.at.problem(f"{target} is mounted twice")
            continue
        targets.add(target)
        if mount.kind == "tmpfs":
            tmpfs.append(target)
        elif mount.kind == "volume":
            name = _volume_name(mount, project)
            volumes.append({"name": name, "target": target, "read_only": mount.read_only})
        elif mount.kind == "bind":
            text = f"a CNM has no host directory {mount.source!r} to bind; the mount is left out"
            mount.at.warn("unsupported_bind", text)
        elif mount.kind == "anonymous":
            text = "an anonymous volume is left out: what is written there ends with the instance"
            mount.at.warn("unsupported_anonymous_volume", text)
        else:
            mount.at.warn("unsupported_mount", f"{mount.kind} mounts are left out")
    return {"volumes": volumes, "tmpfs": tmpfs}


def _all(service: Cursor) -> list[_Mount]:
    found: list[_Mount] = []
    volumes = service.get("volumes")
    for at in volumes.items() if volumes is not None else ():
        mount = _long(at) if isinstance(at.value, dict) else _short(at)
        if mount is not None:
            found.append(mount)
    tmpfs = service.get("tmpfs")
    for at in tmpfs.one_or_many() if tmpfs is not None else ():
        target, _, options = at.text.partition(":")
        if options:
            at.warn("unsupported_tmpfs_options", f"the options {options!r} are left out")
        found.append(_Mount(at=at, kind="tmpfs", source="", target=target, read_only=False))
    return found


def _short(at: Cursor) -> _Mount | None:
    """[SOURCE:]TARGET[:MODE]"""
    parts = at.text.split(":")
    if _WINDOWS_DRIVE.match(at.text):
        parts = [":".join(parts[:2]), *parts[2:]]
    if any(not part for part in parts):
        at.problem(f"empty section between colons in {at.shown()}")
        return None
    if len(parts) > 3:
        at.problem(f"wanted [SOURCE:]TARGET[:MODE], found {at.shown()}")
        return None
    if len(parts) == 1:
        return _Mount(at=at, kind="anonymous", source="", target=parts[0], read_only=False)
    modes = parts[2].split(",") if len(parts) == 3 else []
    for mode in modes:
        if mode not in _MODES:
            at.warn("unsupported_volume_mode", f"the mode {mode!r} is left out")
    source = parts[0]
    host = source[0] in "./~" or _WINDOWS_DRIVE.match(source) or "\\" in source or "/" in source
    kind = "bind" if host else "volume"
    return _Mount(at=at, kind=kind, source=source, target=parts[1], read_only="ro" in modes)


def _long(at: Cursor) -> _Mount | None:
    kind, source, target = (at.get(key) for key in ("type", "source", "target"))
    assert kind is not None  # the shape demands it
    read_only = at.get("read_only")
    if target is None:
        at.problem("wanted the key 'target'")
        return None
    word = kind.text
    if word == "volume" and source is None:
        word = "anonymous"
    if word == "bind" and source is None:
        at.problem("wanted the key 'source' for a bind mount")
    if word == "tmpfs" and source is not None:
        source.problem("a tmpfs has no source")
    _warn_details(at, word)
    return _Mount(
        at=at,
        kind=word,
        source=source.text if source is not None else "",
        target=target.text,
        read_only=read_only is not None and read_only.boolean(),
    )


def _warn_details(at: Cursor, word: str) -> None:
    details = at.get("tmpfs")
    for key in ("size", "mode"):
        below = details.get(key) if details is not None else None
        if below is not None:
            below.warn("unsupported_tmpfs_options", f"the {key} of a tmpfs is left out")
    volume = at.get("volume")
    for key in ("subpath", "labels"):
        below = volume.get(key) if volume is not None else None
        if below is not None and word == "volume":
            if key == "subpath":
                below.problem("a volume is mounted whole: subpath can't be honoured")
            else:
                below.warn("unsupported_labels", "labels of volumes are not kept")


def _target(mount: _Mount) -> str:
    """The normalised path, or "" with a problem reported."""
    path = mount.target
    if mount.kind == "bind" and _WINDOWS_DRIVE.match(path):
        return path
    if not path.startswith("/") or "\0" in path:
        mount.at.problem(f"wanted an absolute path inside the instance, found {path[:60]!r}")
        return ""
    normal = posixpath.normpath("/" + path.lstrip("/"))
    if normal == "/":
        mount.at.problem("the root of an instance can't be a mount")
        return ""
    return normal


def _volume_name(mount: _Mount, project: Project) -> str:
    """`<project>_<volume>` as Compose does, unless the file gives it a name of its own."""
    declared = project.volumes.get(mount.source)
    if declared is None:
        text = f"the volume {mount.source!r} is not declared under the top-level 'volumes'"
        mount.at.problem(text)
        return "undeclared"
    external, own = declared.get("external"), declared.get("name")
    inner = external.get("name") if external is not None else None
    is_external = external is not None and external.value not in (False, "false")
    if own is not None or inner is not None:
        name = (own or inner or declared).text
    else:
        name = mount.source if is_external else f"{project.name}_{mount.source}"
    good = card_name(name)
    if good != name:
        declared.warn("name_changed", f"the volume {name!r} is called {good!r} on the card")
    return good
