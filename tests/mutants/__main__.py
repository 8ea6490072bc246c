"""Does the simulator bite? `python -m tests.mutants [NAME...] [--seeds N] [--jobs N] [--note]`

Each `*.patch` here is a bug on purpose. It is applied to a copy of `firmware/`, `protocol/` and
what they need, and the simulator runs there, seed after seed, until an invariant is broken. A bug
that survives SEEDS seeds is a hole in the invariants or in the faults, and fails the check. So does
a control that is not green: the seed that caught it, in a copy without the patch.

The seed noted in a patch is tried first, so a run of all takes minutes; `--note` writes down anew
which one caught it.
"""

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.mutants.mutant import SEEDS, Caught, copy_tree, mutants, try_one


def main() -> int:
    """0: all were caught, and each control is green."""
    parser = argparse.ArgumentParser(prog="tests.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--note", action="store_true", help="write down which seed caught it")
    args = parser.parse_args()
    known = {mutant.name: mutant for mutant in mutants()}
    unknown = sorted(set(args.names) - known.keys())
    if unknown:
        parser.error(f"no such seeded bug: {', '.join(unknown)}; there are {', '.join(known)}")
    wanted = [known[name] for name in args.names or known]
    began_s, missed = time.monotonic(), []
    with (
        tempfile.TemporaryDirectory(prefix="apf-mutants-") as folder,
        ThreadPoolExecutor(args.jobs) as pool,
    ):
        sound = copy_tree(Path(folder) / "sound")
        runs = {pool.submit(try_one, mutant, sound, args.seeds): mutant for mutant in wanted}
        for done, run in enumerate(as_completed(runs), 1):
            (found, stray), mutant = run.result(), runs[run]
            good = found is not None and stray is None
            if not good:
                missed.append(mutant.name)
            elif args.note and found is not None:
                mutant.note(found)
            word = "ok  " if good else "FAIL"
            print(f"{done:3}/{len(runs)} {word} {mutant.name}: {_words(found, stray)}", flush=True)
    took_s = time.monotonic() - began_s
    print(f"{len(wanted)} seeded bugs in {took_s:.0f} s, {len(missed)} failures {missed or ''}")
    return 1 if missed else 0


def _words(found: Caught | None, stray: Caught | None) -> str:
    if found is None:
        return "no violation"
    if stray is not None:
        return f"{stray} without it too: {stray.text[:300]}"
    return f"{found}: {found.text[:100]}"


if __name__ == "__main__":
    sys.exit(main())
