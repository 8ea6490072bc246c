"""From a Compose file to a checked workload, or to the list of what is wrong with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from firmware.fields import path_text
from firmware.workload import SCHEMA, Workload, WorkloadError
from tools.compose import unsupported
from tools.compose.cursor import Cursor
from tools.compose.document import MAX_FILE_BYTES, Node, read_document
from tools.compose.envfile import EnvFileError, parse_env_file
from tools.compose.extends import resolve_extends
from tools.compose.grammar import DOCUMENT
from tools.compose.interpolate import interpolate
from tools.compose.project import Project, file_wide, name_components, project_name
from tools.compose.report import Finding, Report
from tools.compose.service import read_service
from tools.compose.shape import check

MAX_DOTENV_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalised:
    workload: Workload
    warnings: tuple[Finding, ...]


def load_compose(
    file: str | Path,
    *,
    name: str | None = None,
    env: Mapping[str, str] | None = None,
    profiles: Sequence[str] = (),
) -> Normalised:
    """Read, interpolate with `env` (above the `.env` beside the file), check, normalise. Raises
    ComposeError."""
    path = Path(file)
    report = Report(str(file))
    text = _read(path, report)
    root = Cursor(read_document(text, str(file)), "", report)
    outer = {**_dotenv(path.parent / ".env", env or {}, report), **(env or {})}
    root = Cursor(interpolate(root.node, "", outer, report), "", report)
    report.raise_problems()
    check(DOCUMENT, root)
    report.raise_problems()
    project = _project(root, path, name, outer, profiles)
    report.raise_problems()
    components = [read_service(key, at, project) for key, at in project.services.items()]
    if not components:
        root.problem("no services" if not project.switched_off else "all services are switched off")
    report.raise_problems()
    document = {
        "schema": SCHEMA,
        "name": project.name,
        "components": components,
        "tenant": project.tenant,
    }
    workload = _checked(document, project)
    return Normalised(workload=workload, warnings=tuple(report.warnings))


def _read(path: Path, report: Report) -> str:
    text = ""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            report.problem(0, "", f"the file is larger than {MAX_FILE_BYTES} bytes")
        text = data.decode("utf-8-sig")
    except OSError as exc:
        report.problem(0, "", f"the file can't be read: {exc.strerror}")
    except UnicodeDecodeError as exc:
        report.problem(0, "", f"the file is not UTF-8 (byte {exc.start})")
    report.raise_problems()
    return text


def _dotenv(path: Path, env: Mapping[str, str], report: Report) -> dict[str, str]:
    """Compose reads `.env` beside the file (compose-spec, "interpolation")."""
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            return parse_env_file(file.read(MAX_DOTENV_BYTES).decode(), env)
    except EnvFileError as exc:
        report.problem(0, "", f"{path}:{exc.line}: {exc}")
    except (OSError, UnicodeDecodeError) as exc:
        report.problem(0, "", f"{path} can't be read: {exc}")
    return {}


def _project(
    root: Cursor, path: Path, name: str | None, env: Mapping[str, str], profiles: Sequence[str]
) -> Project:
    unsupported.warn_unsupported(root, unsupported.DOCUMENT)
    include = root.get("include")
    if include is not None:
        include.problem("other files are not read here: flatten it with `docker compose config`")
    declared = root.get("services")
    every = dict(declared.entries()) if declared is not None else {}
    every = {key: resolve_extends(key, every) for key in every}
    on = {*profiles, *filter(None, env.get("COMPOSE_PROFILES", "").split(","))}
    services = {key: at for key, at in every.items() if _is_on(at, on)}
    volumes = root.get("volumes")
    tenant, priority = file_wide(root)
    project = Project(
        name=project_name(name, env, root, path),
        directory=path.parent,
        env=env,
        report=root.report,
        services=services,
        switched_off=frozenset(every.keys() - services.keys()),
        volumes=dict(volumes.entries()) if volumes is not None else {},
        tenant=tenant,
        priority=priority,
    )
    for at in project.volumes.values():
        unsupported.warn_unsupported(at, unsupported.VOLUME)
    name_components(project)
    _check_references(root, services)
    return project


def _is_on(service: Cursor, on: set[str]) -> bool:
    profiles = service.get("profiles")
    own = {item.text for item in profiles.items()} if profiles is not None else set()
    return not own or "*" in on or bool(own & on)


def _check_references(root: Cursor, services: Mapping[str, Cursor]) -> None:
    """Networks, secrets and configs that a service names must be declared."""
    for kind in ("networks", "secrets", "configs"):
        declared = root.get(kind)
        names = {key for key, _ in declared.entries()} if declared is not None else set()
        if kind == "networks":
            names |= {"default", "host", "none"}
        for service in services.values():
            used = service.get(kind)
            if used is None:
                continue
            for at in used.items():
                source = at.get("source") or at
                if isinstance(source.value, str) and source.text not in names:
                    source.problem(f"{source.shown()} is not declared under the top-level {kind!r}")
            for key, at in used.entries():
                if key not in names:
                    at.problem(f"{key!r} is not declared under the top-level {kind!r}")


def _checked(document: dict[str, Any], project: Project) -> Workload:
    """The normal form's own check; its path is turned back into a place in the file."""
    try:
        return Workload.from_json(document)
    except WorkloadError as exc:
        at = None
        if len(exc.path) > 1 and isinstance(exc.path[1], int):
            at = list(project.services.values())[exc.path[1]]
        line = _line(at.node, exc.path[2:]) if at is not None else 0
        key = f"{at.path} ({path_text(exc.path[2:])})" if at is not None else path_text(exc.path)
        project.report.problem(line, key, f"wanted {exc.want}, found {exc.got}")
        project.report.raise_problems()
        raise


_SAME: Final = {"env": "environment", "argv": "command", "cwd": "working_dir"}


def _line(node: Node, path: Sequence[str | int]) -> int:
    """The line of the deepest part of the path that the file has, too."""
    line = node.line
    for part in path:
        value = node.value
        key = _SAME.get(part, part) if isinstance(part, str) else part
        if isinstance(value, dict) and key in value:
            node = value[str(key)]
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            node = value[key]
        else:
            break
        line = node.line
    return line
