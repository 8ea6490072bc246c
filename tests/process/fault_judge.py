"""What a card holds on this host, and whether it holds the same after as before.

Descriptors, memory, processes, cgroups and mounts are counted from /proc, never asked for.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.process.local_card import LocalCard
from tools.demo import observe, observe_card

WHOLE_CARD: Final = Counter(
    {
        observe_card.SUPERVISOR: 1,
        observe_card.KEEPER: 1,
        observe_card.DAEMON: 1,
        observe_card.INIT: 4,
        observe_card.AGENT: 4,
    }
)
RSS_GROWTH_BYTES: Final = 12 << 20  # of any process of the stack, over a whole run


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """By one process of the stack."""

    descriptors: Counter[str]  # by what they are
    rss_bytes: int


def held(card: LocalCard) -> dict[str, Held]:
    """By every process of the stack, named `module cnm`."""
    found = {}
    for row in observe_card.card_processes(card.run):
        found[f"{row.module} {row.cnm}".strip()] = Held(
            descriptors=_descriptors(row.pid), rss_bytes=_rss_bytes(row.pid)
        )
    return found


def more_than_before(card: LocalCard, before: Mapping[str, Held]) -> list[str]:
    """Descriptors and memory that are held now and were not, in words."""
    words = []
    for name, now in held(card).items():
        then = before[name]
        words += [
            f"{name}: {count - then.descriptors[what]} more of {what}"
            for what, count in now.descriptors.items()
            if count > then.descriptors[what]
        ]
        grown_bytes = now.rss_bytes - then.rss_bytes
        if grown_bytes > RSS_GROWTH_BYTES:
            words.append(f"{name}: {grown_bytes >> 20} MiB more memory")
    return words


def _descriptors(pid: int) -> Counter[str]:
    """Numbers in the names are left out: `pipe:[]`, `/dev/pts/`."""
    found: Counter[str] = Counter()
    directory = Path(f"/proc/{pid}/fd")
    try:
        for path in directory.iterdir():
            found[re.sub(r"\d+", "", _target(path))] += 1
    except OSError:
        return found
    return found


def _target(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:  # closed since
        return ""


def _rss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    words = next((line.split() for line in lines if line.startswith("VmRSS:")), ["", "0"])
    return 1024 * int(words[1])


def not_whole(card: LocalCard) -> list[str]:
    """All processes of the stack, in words, unless each is there once."""
    rows = observe_card.card_processes(card.run)
    if Counter(row.module for row in rows) == WHOLE_CARD:
        return []
    return [f"{row.module} {row.cnm} is {row.pid}, {_state(row.pid)}" for row in rows]


def _state(pid: int) -> str:
    """Its state and its parent, as /proc/PID/status has them."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return "gone"
    return " ".join(line for line in lines if line.startswith(("State:", "PPid:", "NSpid:")))


def settled(card: LocalCard, names: Collection[str]) -> dict[str, Any] | None:
    """`apf ps` shows these instances, all RUNNING, each with the process that /proc shows."""
    rows = card.ps()
    good = rows.keys() == set(names) and all(
        row["phase"] == "RUNNING"
        and row["pid"]
        and observe.start_ticks(row["pid"]) == row["start_ticks"]
        for row in rows.values()
    )
    return rows if good else None


def differences(card: LocalCard) -> list[str]:
    """Where `apf ps --json` and this host differ, in words: processes, cgroups, containers."""
    rows = {row["instance"]: row for row in card.apf("ps")}
    found = card.first_processes()
    words = [f"{name} runs, and ps does not know it" for name in found.keys() - rows.keys()]
    for name, row in rows.items():
        if found.get(name) != (row["pid"], row["start_ticks"]):
            words.append(f"{name}: ps says {row['pid']}, /proc says {found.get(name)}")
        groups = observe.copies(name, card.cgroup_root())
        if groups != {row["cgroup"]}:
            words.append(f"{name}: ps says {row['cgroup']}, its processes are in {sorted(groups)}")
    wanted = {row["cgroup"] for row in rows.values()}
    for cnm in card.cnms().values():
        below = {path.name for top in observe.cgroup_dirs(cnm["cgroup"]) for path in top.iterdir()}
        known = {Path(group).name for group in wanted if group.startswith(cnm["cgroup"] + "/")}
        instances = {name for name in below if name.startswith("i-")}
        words += [f"{cnm['id']}: cgroup {name} is nobody's" for name in instances - known]
        states = observe.runc_states(cnm["init_pid"], cnm["runc_root"])
        if not {str(state["id"]) for state in states} <= {name[2:] for name in known} | known:
            words.append(f"{cnm['id']}: containers {json.dumps(states)[:300]}")
    return words


def left_behind(card: LocalCard) -> list[str]:
    """What an empty card must not have: processes, cgroups, containers, mounts, in words."""
    words = [f"process {seen}" for seen in card.mine()] + card.left_in_modules()
    words += [f"mount {point}" for point in card.mounts()]
    for cnm in card.cnms().values():
        points = observe_card.mounts_below(card.place, cnm["init_pid"])
        words += [f"{cnm['id']}: mount {p}" for p in points if "/i-" in p or "rootfs" in p]
    return words
