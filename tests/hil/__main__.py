"""Cases in virtual machines.

python -m tests.hil run [--smoke] [--case NAME]... [--json FILE]
python -m tests.hil list

Ends 0 when every required case has passed, 1 when one has not, 2 for a name that is not known or
when what virtual machines need is missing.
"""

import argparse
import compileall
import contextlib
import io
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.hil.case import Case
from tests.hil.report import as_json, as_table, summary
from tests.hil.rig import ROOT, to_stderr
from tests.hil.runner import Run, all_cases
from tools.rig.qemu_guest import GuestMissing, find_kernel


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.hil", description="Cases in virtual machines.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="run cases")
    run.add_argument("--smoke", action="store_true", help="only the quick ones: one machine")
    run.add_argument("--case", action="append", default=[], metavar="NAME")
    run.add_argument("--json", type=Path, metavar="FILE", help="write the report there")
    verbs.add_parser("list", help="name the cases")
    options = parser.parse_args(argv)
    cases = all_cases()
    if options.verb == "list":
        for case in cases:
            marks = [case.machine, *(["smoke"] if case.smoke else [])]
            print(f"{case.name}  [{', '.join(marks)}]")
        return 0
    unknown = [name for name in options.case if name not in {case.name for case in cases}]
    if unknown:
        to_stderr(f"no such case: {', '.join(unknown)}; `python -m tests.hil list` names them")
        return 2
    chosen = [
        case
        for case in cases
        if (not options.case or case.name in options.case) and (not options.smoke or case.smoke)
    ]
    return _run(chosen, options.json)


def _run(cases: Sequence[Case], report: Path | None) -> int:
    try:
        find_kernel()
    except GuestMissing as exc:
        to_stderr(str(exc))
        return 2
    with contextlib.redirect_stdout(io.StringIO()):  # guests compile slowly
        for room in ("protocol", "hal", "firmware", "tools", "tests/hil"):
            compileall.compile_dir(ROOT / room, quiet=2)
    run = Run(cases, to_stderr)
    # so that machines and their folders go when we are ended from outside
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    try:
        run.run()
    except GuestMissing as exc:
        to_stderr(str(exc))
        return 2
    finally:
        if report is not None:
            report.write_text(
                json.dumps(as_json(run.rows, run.boots, run.time_ms), indent=2) + "\n"
            )
    print(as_table(run.rows))
    print(f"\n{summary(run.rows)} in {run.time_ms / 1000:.0f} s")
    return 0 if all(row.good for row in run.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
