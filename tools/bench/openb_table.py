"""`apf bench openb`: placement quality on a production trace, beside the published policies.

The traces and the yardstick that replays them are data outside this project: $APF_SHARED/openb,
by default ../shared/openb. First-fit, BestFit and FGD run in the same process on the same stream;
upper bounds and goals are of the README there.
"""

import importlib.util
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Final

from tools.bench.figures import Better, Figure, Goal
from tools.bench.measure import ROOT, Bench, cpu_ns

PLUGIN: Final = "tools.bench.openb:Policy"
BASELINES: Final = {"firstfit": "first-fit", "bestfit": "BestFit", "fgd_repo": "FGD"}
# trace: (upper bound, must, aim) of GPU allocated in %, at 100 % arrived
TRACES: Final = {
    "default": (96.9, 95.8, 96.2),
    "cpu100": (96.9, 95.6, 95.6),
    "gpushare40": (95.6, 94.5, 94.5),
    "gpuspec20": (96.9, 95.2, 95.2),
    "multigpu30": (97.7, 96.8, 96.8),
}
DEFAULT_AT_130: Final = (99.9, 95.9, 96.4)
SEEDS: Final = range(42, 52)
LOADS: Final = {0.95: Goal(must=1.5, aim=1.2), 1.0: Goal(must=5.3, aim=5.0)}  # lost, %
CHURN_SEEDS: Final = 2
NODES_FOR_SPEED: Final = 4096
RATE: Final = Goal(must=3750, aim=20_000, better=Better.HIGHER)
P99_US: Final = Goal(must=2000, aim=250)


def run(bench: Bench) -> list[Figure]:
    """All rows; quick: one seed of the default trace."""
    folder = Path(os.environ.get("APF_SHARED", ROOT.parent / "shared")) / "openb"
    try:
        yardstick = _load(folder)
    except (OSError, ImportError) as exc:
        return [Figure(name="openb", unit="%", error=f"{folder}: {exc}; wanted the yardstick")]
    seeds = SEEDS if not bench.quick else SEEDS[:1]
    traces = list(TRACES) if not bench.quick else ["default"]
    figures: list[Figure] = []
    for trace in traces:
        bench.say(f"openb {trace}: {len(seeds)} seeds, 4 policies")
        ours = [yardstick.run(trace, PLUGIN, seed) for seed in seeds]
        others = {name: [yardstick.run(trace, name, seed) for seed in seeds] for name in BASELINES}
        figures += _rows(trace, "a100", TRACES[trace], ours, others)
        if trace == "default":
            figures += _rows(f"{trace}.130", "a130", DEFAULT_AT_130, ours, others)
    if not bench.quick:
        for load, goal in LOADS.items():
            figures.append(_churn(bench, yardstick, load, goal))
        figures += _speed(yardstick)
    return figures


def _load(folder: Path) -> ModuleType:
    """The yardstick, which needs numpy (extra `bench`). Raises OSError, ImportError."""
    path = folder / "yardstick.py"
    if not path.is_file():
        raise FileNotFoundError("there is no yardstick.py; set APF_SHARED to the folder above it")
    spec = importlib.util.spec_from_file_location("openb_yardstick", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    # CPU time instead of its wall clock: what others do on this host does not count.
    vars(module)["time"] = SimpleNamespace(perf_counter=lambda: cpu_ns() / 1e9)
    return module


def _rows(
    name: str,
    column: str,
    limits: tuple[float, float, float],
    ours: Sequence[dict[str, Any]],
    others: dict[str, list[dict[str, Any]]],
) -> list[Figure]:
    """One row a policy that is published, ours beside it; and the upper bound."""
    bound, must, aim = limits
    value = statistics.fmean(run[column] for run in ours)
    goal = Goal(must=must, aim=aim, better=Better.HIGHER)
    rows = [
        Figure(
            name=f"openb.{name}",
            unit="%",
            value=value,
            baseline=statistics.fmean(run[column] for run in others[policy]),
            baseline_name=words,
            goal=goal,
        )
        for policy, words in BASELINES.items()
    ]
    rows.append(
        Figure(
            name=f"openb.{name}", unit="%", value=value, baseline=bound, baseline_name="upper bound"
        )
    )
    return rows


def _churn(bench: Bench, yardstick: ModuleType, load: float, goal: Goal) -> Figure:
    """Lost share of the demand with arrivals and departures and a move in 200 arrivals."""
    bench.say(f"openb churn {load:g}: {CHURN_SEEDS} seeds")
    seeds = SEEDS[:CHURN_SEEDS]
    ours = [
        yardstick.churn("default", PLUGIN, seed, load, 3.0, 3.0, 200, 1)["lost_gpu_pct"]
        for seed in seeds
    ]
    fgd = [yardstick.churn("default", "fgd_repo", seed, load)["lost_gpu_pct"] for seed in seeds]
    return Figure(
        name=f"openb.churn.{round(100 * load)}",
        unit="% lost",
        value=statistics.fmean(ours),
        baseline=statistics.fmean(fgd),
        baseline_name="FGD",
        goal=goal,
    )


def _speed(yardstick: ModuleType) -> list[Figure]:
    """Decisions with their commit on a cluster of NODES_FOR_SPEED."""
    found = yardstick.run("default", PLUGIN, SEEDS[0], nodes=NODES_FOR_SPEED)
    return [
        Figure(
            name=f"openb.{NODES_FOR_SPEED}.rate",
            unit="1/s",
            value=1e6 / found["us_mean"],
            goal=RATE,
        ),
        Figure(name=f"openb.{NODES_FOR_SPEED}.p99", unit="us", value=found["us_p99"], goal=P99_US),
    ]
