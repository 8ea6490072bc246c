"""How often how much was used, against what is reserved: a small plot in plain text.

The columns are equal steps from 0 to the largest value that matters, their heights the share of the
samples that fell there (a bin of the histogram that is wider than a column is spread over those
that it covers), and the line below carries a letter for each reservation. No colours; where the
terminal's encoding has no blocks, ASCII.
"""

from collections.abc import Mapping, Sequence
from typing import Final

COLUMNS: Final = 60
ROWS: Final = 4
BLOCKS: Final = " ▁▂▃▄▅▆▇█"
ASCII: Final = " .:-=+*#"
AXES: Final = {True: ("└", "─", "┘"), False: ("+", "-", "+")}
MANY: Final = "*"  # more than one letter in one place

Bins = Sequence[tuple[int, int, int]]  # lowest and highest value, share in millionths


def plot(
    bins: Bins, marks: Mapping[str, int], *, blocks: bool, columns: int = COLUMNS
) -> list[str]:
    """Lines from top to bottom, the last one the axis; [] when there is nothing to show. `marks`:
    letter -> value."""
    top = max([high for _low, high, _ppm in bins] + list(marks.values()), default=0)
    if top <= 0:
        return []
    heights = _heights(bins, top, columns)
    glyphs = BLOCKS if blocks else ASCII
    steps = len(glyphs) - 1
    most = max(heights)
    lines: list[str] = []
    for row in range(ROWS - 1, -1, -1):
        cells = []
        for height in heights:
            level = -(-height * ROWS * steps // most) if most else 0  # what is there is seen
            cells.append(glyphs[min(max(level - row * steps, 0), steps)])
        lines.append(" " + "".join(cells).rstrip())
    left, line, right = AXES[blocks]
    axis = [line] * columns
    for letter, value in marks.items():
        place = _column(value, top, columns)
        axis[place] = letter if axis[place] == line else MANY
    return [*lines, left + "".join(axis) + right]


def can_show_blocks(encoding: str | None) -> bool:
    """Whether a stream of this encoding has the characters that are used here."""
    try:
        "".join((BLOCKS, *AXES[True])).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _column(value: int, top: int, columns: int) -> int:
    return min(max(value, 0) * columns // top, columns - 1)


def _heights(bins: Bins, top: int, columns: int) -> list[int]:
    heights = [0] * columns
    for low, high, ppm in bins:
        first, last = _column(low, top, columns), _column(high, top, columns)
        for column in range(first, last + 1):
            heights[column] += max(ppm, 1) * 1000 // (last - first + 1)
    return heights
