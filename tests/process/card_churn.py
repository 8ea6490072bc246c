"""Somebody who works with a card all the time, whether its daemon lives or not."""

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from tests.process.local_card import LocalCard
from tools.compose import load_compose
from tools.errors import ToolError

EXTRA = """
services:
  one:
    image: busybox
    command: ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.2; done"]
    stop_grace_period: 1s
    deploy: {replicas: 2}
"""
EXTRA_INSTANCES = {"extra/one/0", "extra/one/1"}

Rows = dict[str, dict[str, Any]]


class Churn:
    """Submits, removes and migrates from a thread; use as a context manager.

    A process of what it has asked to change may be another one afterwards: `touched_since` tells
    which those are. `error` is what ended it, if anything did.
    """

    def __init__(self, card: LocalCard, seed: int, moved: Sequence[str]) -> None:
        self.done: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._card = LocalCard.of(card)
        self._rng = random.Random(seed)
        self._moved = moved
        self._touched: Counter[str] = Counter()
        self._under_way: set[str] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="churn", daemon=True)
        file = card.place / "extra.yaml"
        file.write_text(EXTRA)
        found = load_compose(str(file), name="extra", env={}, profiles=())
        self._extra = found.workload.to_json()

    def __enter__(self) -> "Churn":
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._card.hang_up()

    def mark(self) -> tuple[Counter[str], set[str]]:
        return Counter(self._touched), set(self._under_way)

    def touched_since(self, mark: tuple[Counter[str], set[str]]) -> set[str]:
        """Instances that were being changed at the mark, or are since."""
        counts, under_way = mark
        return under_way | {name for name in self._touched if self._touched[name] != counts[name]}

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._rng.choice((self._move, self._move, self._come_and_go))()
        except BaseException as exc:  # noqa: BLE001  told to the test's own thread
            self.error = exc

    def _come_and_go(self) -> None:
        self._begin(EXTRA_INSTANCES)
        self._ask("workload.submit", workload=self._extra)
        self._stop.wait(self._rng.uniform(0, 1))
        self._ask("workload.remove", name="extra")
        if self._wait_until(lambda rows: not EXTRA_INSTANCES & rows.keys()):
            self._under_way -= EXTRA_INSTANCES
            self.done["submitted and removed"] += 1

    def _move(self) -> None:
        name = self._rng.choice(self._moved)
        self._begin({name})
        self._ask("instance.migrate", instance=name)
        if self._wait_until(lambda rows: rows[name]["phase"] == "RUNNING" and rows[name]["pid"]):
            self._under_way.discard(name)
            self.done["moved"] += 1

    def _begin(self, names: set[str]) -> None:
        self._under_way |= names
        self._touched.update(names)

    def _wait_until(self, check: Callable[[Rows], object]) -> bool:
        while not self._stop.is_set():
            rows = self._ask("workload.ps")
            if rows is not None and check({row["instance"]: row for row in rows}):
                return True
            self._stop.wait(0.05)
        return False

    def _ask(self, method: str, **params: object) -> Any:
        """Again and again until the daemon answers. A refusal of what was asked twice means that
        the first time had come through: None, as when the test is over."""
        while True:
            try:
                return self._card.call(method, **params)
            except ToolError as exc:
                if exc.exit_code == 3 or self._stop.wait(0.02):
                    return None
