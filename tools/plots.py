"""Drawing with matplotlib, which only `apf heatmap` needs (extra `plot`).

The map is cividis: its lightness grows evenly, so it reads the same to people who see no red or no
green, and in grey (Nunez, Anderton, Renslow, "Optimizing colormaps with consideration for color
vision deficiency", PLoS ONE 13(7), 2018). What is not known is white and hatched, not a colour.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from tools.errors import CheckFailed

FORMATS: Final = (".png", ".svg")
NAMES_SHOWN: Final = 64  # on one axis; of more every n-th
ROW_INCHES: Final = 0.22
MOST_INCHES: Final = 40.0
DPI: Final = 120
HELP: Final = "pip install 'adaptive-peripheral-fabric[plot]'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One resource: a row of thousandths for each module, None where nothing is known."""

    title: str
    rows: Sequence[Sequence[int | None]]


def load_library() -> Any:
    """matplotlib, set up for files. Raises CheckFailed with what to install."""
    try:
        import matplotlib as library
    except ImportError as exc:
        raise CheckFailed(
            "plot_library_missing",
            f"pictures are drawn by matplotlib, which is not installed here ({exc}): {HELP}; "
            "--json gives the numbers without it",
        ) from exc
    library.use("agg")
    return library


def draw_heatmap(
    path: Path,
    names: Sequence[str],
    panels: Sequence[Panel],
    *,
    title: str,
    newest: datetime,
    step_ms: int,
) -> None:
    """One panel below the other, modules from top to bottom, time to the right, ending with the
    step that began at `newest`. Raises CheckFailed without the library, OSError."""
    library = load_library()
    from matplotlib import dates
    from matplotlib.figure import Figure

    columns = len(panels[0].rows[0])
    step = timedelta(milliseconds=step_ms)
    first, end = newest - step * (columns - 1), newest + step
    height = min(MOST_INCHES, 1.2 + len(panels) * (0.7 + ROW_INCHES * min(len(names), NAMES_SHOWN)))
    settings = {"svg.fonttype": "none", "svg.hashsalt": "apf", "font.size": 9}
    with library.rc_context(settings):
        figure = Figure(figsize=(10, height), layout="constrained")
        figure.suptitle(title)
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        span = (dates.date2num(first), dates.date2num(end))
        images = [_panel(ax, panel, names, span) for ax, panel in zip(axes, panels, strict=True)]
        axes[-1].xaxis_date()
        locator = dates.AutoDateLocator()
        axes[-1].xaxis.set_major_locator(locator)
        axes[-1].xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))
        axes[-1].set_xlabel(f"time (UTC), one column is {step_words(step_ms)}")
        bar = figure.colorbar(images[-1], ax=list(axes), extend="max", pad=0.01, aspect=40)
        bar.set_label("% of what the module has; white and hatched: not known, or none of it")
        figure.savefig(path, dpi=DPI, metadata=_metadata(path, title))


def _panel(ax: Any, panel: Panel, names: Sequence[str], span: tuple[float, float]) -> Any:
    percent = [[float("nan") if v is None else v / 10 for v in row] for row in panel.rows]
    ax.add_patch(_unknown(ax))
    image = ax.imshow(
        percent,
        aspect="auto",
        interpolation="nearest",
        origin="upper",
        cmap="cividis",
        vmin=0,
        vmax=100,
        extent=(span[0], span[1], len(names) - 0.5, -0.5),
    )
    every = -(-len(names) // NAMES_SHOWN)
    ax.set_yticks(range(0, len(names), every), labels=names[::every])
    ax.set_title(panel.title, loc="left")
    return image


def _unknown(ax: Any) -> Any:
    """What shows through where nothing is known."""
    from matplotlib.patches import Rectangle

    return Rectangle(
        (0, 0), 1, 1, transform=ax.transAxes, facecolor="white", edgecolor="0.8", hatch="////",
        linewidth=0, zorder=-1,
    )  # fmt: skip


def _metadata(path: Path, title: str) -> Mapping[str, Any]:
    """No date: equal data gives equal files."""
    return {"Title": title, "Date": None} if path.suffix == ".svg" else {"Title": title}


def step_words(step_ms: int) -> str:
    """10 s, 1 min, 15 min."""
    return f"{step_ms // 1000} s" if step_ms < 60_000 else f"{step_ms // 60_000} min"
