"""What a Compose file has wrong, and what a card cannot honour, each with file, line and key."""

from dataclasses import asdict, dataclass
from typing import Final

from tools.errors import BadUsage

MAX_FINDINGS: Final = 1000  # of each kind; then one more that says so
SHOWN_PROBLEMS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A warning or a problem. `line` is 1-based, 0 when there is none."""

    code: str  # stable snake_case
    file: str
    line: int
    key: str  # services.web.ports[0]
    text: str

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.key}: {self.text}" if self.key else f"{place}: {self.text}"


class ComposeError(BadUsage):
    """The file is refused whole; `problems` says all that was found wrong."""

    def __init__(self, problems: list[Finding], warnings: list[Finding] | None = None) -> None:
        lines = [str(problem) for problem in problems[:SHOWN_PROBLEMS]]
        if len(problems) > SHOWN_PROBLEMS:
            lines.append(f"... and {len(problems) - SHOWN_PROBLEMS} more")
        data = {
            "problems": [problem.to_json() for problem in problems],
            "warnings": [warning.to_json() for warning in warnings or []],
        }
        super().__init__("bad_compose", "\n".join(lines), data)
        self.problems = problems
        self.warnings = warnings or []


class Report:
    """Collects findings while a file is read."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Finding] = []
        self.warnings: list[Finding] = []

    def problem(self, line: int, key: str, text: str, code: str = "invalid") -> None:
        self._add(self.problems, Finding(code=code, file=self.file, line=line, key=key, text=text))

    def warn(self, line: int, key: str, text: str, code: str) -> None:
        finding = Finding(code=code, file=self.file, line=line, key=key, text=text)
        if finding not in self.warnings[-50:]:
            self._add(self.warnings, finding)

    def raise_problems(self) -> None:
        if self.problems:
            raise ComposeError(self.problems, self.warnings)

    def _add(self, findings: list[Finding], finding: Finding) -> None:
        if len(findings) < MAX_FINDINGS:
            findings.append(finding)
        elif len(findings) == MAX_FINDINGS:
            text = f"more than {MAX_FINDINGS} findings; the rest is not listed"
            findings.append(Finding(code="more", file=self.file, line=0, key="", text=text))
