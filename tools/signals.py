"""Signals by the names that Compose files and images use: SIGINT, INT, 2, SIGRTMIN+3."""

import re
import signal


def signal_number(text: str) -> int | None:
    """1..64, or None when there is no such signal."""
    word = text.strip().upper()
    if word.isascii() and word.isdigit():
        number = int(word[:20])  # longer ones are not read: int() refuses 5,000 digits
        return number if 1 <= number <= 64 and len(word) <= 20 else None
    word = word.removeprefix("SIG")
    real_time = re.fullmatch(r"RT(MIN|MAX)(?:([+-])(\d{1,2}))?", word)
    if real_time:
        base = signal.SIGRTMIN if real_time[1] == "MIN" else signal.SIGRTMAX
        shift = int(real_time[3] or 0) * (-1 if real_time[2] == "-" else 1)
        number = int(base) + shift
        return number if signal.SIGRTMIN <= number <= signal.SIGRTMAX else None
    try:
        return int(signal.Signals[f"SIG{word}"])
    except KeyError:
        return None
