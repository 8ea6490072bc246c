"""The rules of the house: which room imports which, what stands at the top, who waits how."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {  # room -> the rooms of ours that it may import (DESIGN section 2)
    "protocol": {"protocol"},
    "hal": {"hal"},
    "firmware": {"firmware", "hal", "protocol"},
    "tools": {"tools", "firmware", "hal", "protocol"},
    "board_configs": set(),
}
ROOTS = {  # the files that may name concrete backends
    "firmware/app.py",
    "firmware/cnm/app.py",
    "firmware/mover_app.py",
    "firmware/supervisor.py",
}
BACKENDS = ("hal.linux", "hal.local", "hal.mock")
TOP = {
    ".ci", ".gitignore", "Makefile", "README.md", "board_configs", "firmware", "hal",
    "protocol", "pyproject.toml", "setup.py", "tests", "tools",
}  # fmt: skip


def sources(room: str) -> Iterator[Path]:
    yield from (p for p in (ROOT / room).rglob("*.py") if "__pycache__" not in p.parts)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield node.lineno, node.module or ""


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sources(room)
        for line, name in imported(path)
        if name.partition(".")[0] in ROOMS and name.partition(".")[0] not in ROOMS[room]
    ]
    assert wrong == []


def test_only_the_composition_roots_name_concrete_backends() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sources("firmware")
        if str(path.relative_to(ROOT)) not in ROOTS
        for line, name in imported(path)
        if name.startswith(BACKENDS)
    ]
    assert wrong == []


def test_protocol_does_no_input_and_knows_no_time() -> None:
    banned = {"os", "socket", "time", "logging", "select", "threading", "subprocess", "random"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sources("protocol")
        for line, name in imported(path)
        if name.partition(".")[0] in banned
    ]
    assert wrong == []


def test_nothing_of_weight_stands_at_the_top() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    assert {name.partition("/")[0] for name in listed} <= TOP


def test_every_folder_with_python_in_it_is_a_package() -> None:
    """Else the distribution would leave it out without a word."""
    folders = {path.parent for room in ROOMS for path in sources(room)}
    missing = [str(f.relative_to(ROOT)) for f in folders if not (f / "__init__.py").exists()]
    assert missing in ([], ["board_configs"])


def test_every_dependency_says_why() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    inside, wrong = False, []
    for line in lines:
        if line.startswith(("dependencies", "dev =", "plot =", "fuzz =")):
            inside = True
        elif line.startswith("]"):
            inside = False
        elif inside and line.strip() and "#" not in line:
            wrong.append(line)
    assert wrong == []
