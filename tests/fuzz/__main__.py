"""Fuzzing from a command line (`make fuzz SECONDS=n [TARGET=name]`).

    python -m tests.fuzz run [--seconds N] [--inputs N] [--plain] [--json FILE] [TARGET...]
    python -m tests.fuzz replay TARGET FILE...
    python -m tests.fuzz minimise [--found DIR] [TARGET...]
    python -m tests.fuzz resync
    python -m tests.fuzz list

`run` takes all targets in turn, N seconds each; it ends 1 when an input made one misbehave, and
keeps that input. Without the engine (`pip install -e '.[fuzz]'`) inputs are made by plain chance.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Final

WORK: Final = Path(__file__).resolve().parents[2] / "build" / "fuzz"
CORPUS_LIMIT_BYTES: Final = 6 << 10  # of one target


def main(argv: list[str]) -> int:
    if argv[:1] == ["engine"]:
        from tests.fuzz.engine import main as engine

        engine(argv[1], argv[2], argv[3:])
        return 0
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="look for inputs that make a target misbehave")
    run.add_argument("--seconds", type=int, help="for each target")
    run.add_argument("--inputs", type=int, help="for each target")
    run.add_argument("--plain", action="store_true", help="by chance, without the engine")
    run.add_argument("--seed", type=int, default=0, help="of the plain mutations")
    run.add_argument("--json", type=Path, help="the results, written after each target")
    run.add_argument("--work", type=Path, default=WORK, help="crashes and what was found")
    replay = commands.add_parser("replay", help="one input, with its trace")
    replay.add_argument("target")
    replay.add_argument("files", nargs="+", type=Path)
    minimise = commands.add_parser("minimise", help="what was found becomes the corpus")
    minimise.add_argument("--work", type=Path, default=WORK)
    for command in (run, minimise):
        command.add_argument("targets", nargs="*", metavar="TARGET")
    resync = commands.add_parser("resync", help="what damage on a serial line costs")
    resync.add_argument("--rounds", type=int, default=2000, help="of each kind")
    commands.add_parser("list", help="the targets")
    return _dispatch(parser, parser.parse_args(argv))


def _dispatch(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from tests.fuzz import runs
    from tests.fuzz.table import TARGETS

    if options.command == "list":
        for target in TARGETS.values():
            print(f"{target.name:16} {target.text}")
        return 0
    if options.command == "resync":
        from tests.fuzz.resync import measure

        for cost in measure(options.rounds):
            print(
                f"{cost.damage:12} {cost.rounds:>7,} times  {cost.mean_frames:.3f} frames lost, "
                f"at most {cost.most_frames}; {cost.ghosts} packets that nobody sent"
            )
        return 0
    names = [options.target] if options.command == "replay" else options.targets
    unknown = [name for name in names if name not in TARGETS]
    if unknown:
        parser.error(f"no target {unknown[0]!r}; there are: {', '.join(TARGETS)}")
    if options.command == "replay":
        for file in options.files:
            accepted = runs.replay(TARGETS[options.target], file.read_bytes())
            print(f"{file}: {'accepted' if accepted else 'refused'}")
        return 0
    if options.command == "minimise":
        for name in names or TARGETS:
            found = options.work / "found" / name
            found.mkdir(parents=True, exist_ok=True)
            count = runs.minimise(TARGETS[name], found, limit_bytes=CORPUS_LIMIT_BYTES)
            print(f"{name:16} {count} inputs kept", flush=True)
        return 0
    return _run(options, names or list(TARGETS))


def _run(options: argparse.Namespace, names: list[str]) -> int:
    from tests.fuzz import runs
    from tests.fuzz.table import TARGETS

    guided = not options.plain and runs.engine_is_here()
    if not guided and not options.plain:
        sys.stderr.write(
            "fuzz: no coverage-guided engine here, inputs are made by chance; "
            "`pip install -e '.[fuzz]'` in the virtual environment installs it\n"
        )
    crashes = options.work / "crashes"
    results: list[runs.Result] = []
    for number, name in enumerate(names, 1):
        sys.stderr.write(f"[{number}/{len(names)}] {name}\r")
        if guided:
            result = runs.run_guided(
                TARGETS[name],
                seconds=options.seconds,
                inputs=options.inputs,
                crashes=crashes,
                found=options.work / "found" / name,
            )
        else:
            result = runs.run_plain(
                TARGETS[name],
                seconds=options.seconds,
                inputs=options.inputs,
                seed=options.seed,
                crashes=crashes,
            )
        print(result.line(), flush=True)
        for file in result.crashes or ():
            print(f"  {file}\n  replay: python -m tests.fuzz replay {name} {file}", flush=True)
        results.append(result)
        if options.json:
            options.json.write_text(json.dumps([item.to_json() for item in results], indent=1))
    total = sum(result.inputs for result in results)
    bad = sum(len(result.crashes or ()) for result in results)
    print(f"{'total':16} {total:>10,} inputs, {len(results)} targets, {bad} crashes")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
