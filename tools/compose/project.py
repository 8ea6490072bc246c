"""What all services of one Compose file share while they are normalised."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from firmware.workload import NAME, PRIORITY_MOST, PRIORITY_USUAL
from tools.compose.cursor import Cursor
from tools.compose.report import Report
from tools.compose.shape import INTEGER_TEXT, TEXT, Table, check

MAX_NAME_CHARS: Final = 41  # firmware.workload.NAME
MAX_READ_BYTES: Final = 1 << 20  # of an env_file
_X_APF: Final = Table(known={"tenant": TEXT, "priority": INTEGER_TEXT}, extensions=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """Names, places and the report."""

    name: str
    directory: Path
    env: Mapping[str, str]
    report: Report
    services: Mapping[str, Cursor]  # those that are on
    switched_off: frozenset[str]  # those whose profiles are off
    volumes: Mapping[str, Cursor]  # declared at the top
    components: dict[str, str] = field(default_factory=dict)  # service -> component
    tenant: str = ""
    priority: int = PRIORITY_USUAL  # of services that name none

    def read_text(self, path: str) -> str:
        """A file that the Compose file names. Raises OSError, ValueError."""
        full = self.directory / Path(os.path.expanduser(path))
        with full.open("rb") as file:
            data = file.read(MAX_READ_BYTES + 1)
        if len(data) > MAX_READ_BYTES:
            raise ValueError(f"more than {MAX_READ_BYTES} bytes")
        return data.decode()


def file_wide(root: Cursor) -> tuple[str, int]:
    """The tenant and the usual priority that `x-apf` at the top of the file names."""
    at = root.get("x-apf")
    if at is None:
        return "", PRIORITY_USUAL
    before = len(root.report.problems)
    check(_X_APF, at)
    if len(root.report.problems) > before:
        return "", PRIORITY_USUAL
    tenant = at.get("tenant")
    if tenant is not None and NAME.fullmatch(tenant.text) is None:
        tenant.problem(f"wanted a name like [a-z0-9][a-z0-9_.-]{{0,40}}, found {tenant.shown()}")
    priority = read_priority(at)
    return (
        tenant.text if tenant is not None else "",
        priority if priority is not None else PRIORITY_USUAL,
    )


def read_priority(at: Cursor) -> int | None:
    """The `priority` below `at`, if it names one."""
    priority = at.get("priority")
    return None if priority is None else priority.integer(low=0, high=PRIORITY_MOST)


def card_name(name: str) -> str:
    """The name as the card takes it: lower case, at most 41 characters, beginning with a letter
    or digit. A name that fits stays as it is."""
    lower = re.sub(r"[^a-z0-9_.-]", "-", name.lower())
    if not re.match(r"[a-z0-9]", lower):
        lower = f"x{lower}"
    if len(lower) > MAX_NAME_CHARS:
        lower = f"{lower[:32]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    assert NAME.fullmatch(lower), lower
    return lower


def name_components(project: Project) -> None:
    """Fill `components`: service names are wider than the card's."""
    taken: dict[str, str] = {}
    for service, at in project.services.items():
        name = card_name(service)
        if name in taken:
            at.problem(f"becomes the component {name!r}, as {taken[name]!r} does: rename one")
        if name != service:
            at.warn("name_changed", f"the service is called {name!r} on the card")
        taken[name] = service
        project.components[service] = name


def project_name(given: str | None, env: Mapping[str, str], root: Cursor, file: Path) -> str:
    """--name, COMPOSE_PROJECT_NAME, `name:`, or after the file: its directory when the file has
    one of Compose's own names, else the file itself."""
    top = root.get("name")
    variable = "COMPOSE_PROJECT_NAME"
    for source, value in (("--name", given), (variable, env.get(variable))):
        if value:
            if NAME.fullmatch(value) is None:
                want = "wanted a name like [a-z0-9][a-z0-9_.-]{0,40}"
                root.report.problem(0, source, f"{want}, found {value[:60]!r}")
            return value
    if top is not None:
        if NAME.fullmatch(top.text) is None:
            top.problem(f"wanted a name like [a-z0-9][a-z0-9_.-]{{0,40}}, found {top.shown()}")
        return top.text
    own = re.fullmatch(r"(docker-)?compose(\..*)?\.ya?ml", file.name)
    return card_name((file.absolute().parent.name if own else file.stem) or "compose")
