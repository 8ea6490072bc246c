"""The child that runs under the coverage-guided engine (libFuzzer through atheris).

The engine counts branches of what it instrumented, so the project is imported under its hook.
"""

import importlib
import sys
import tempfile
from pathlib import Path

import atheris


def main(module: str, name: str, arguments: list[str]) -> None:
    """Does not return: the engine ends the process."""
    with atheris.instrument_imports(include=["firmware", "hal", "protocol", "tools"]):
        targets = importlib.import_module(module).TARGETS
    from tests.fuzz.runs import scratch_dir

    scratch: tempfile.TemporaryDirectory[str] = scratch_dir()
    [target] = [found for found in targets if found.name == name]
    check = target.make(Path(scratch.name))

    def one(data: bytes) -> int:
        check(data)
        return 0

    try:
        atheris.Setup([sys.argv[0], *arguments], one, internal_libfuzzer=True)
        atheris.Fuzz()
    finally:
        scratch.cleanup()
