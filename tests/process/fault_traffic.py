"""Tenants of a card under fire: workloads that come, move, change their load and go, all the time.

Whatever is refused is asked again: a full disk, a busy socket, a dead daemon are what this is
about. What stays the whole time is `STEADY`; what is asked of the rest is undone in the end.
"""

import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from tests.process.local_card import LocalCard
from tools.client import Client
from tools.compose import load_compose
from tools.errors import ToolError

STEADY: Final = """
x-loop: &loop
  image: busybox
  command: ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.3; done"]
  cpus: 0.05
  mem_limit: 24m
  restart: always
  stop_grace_period: 1s
services:
  web:
    <<: *loop
    deploy: {replicas: 4}
  db:
    <<: *loop
    command:
      - /bin/sh
      - -c
      - |
        trap 'exit 0' TERM
        n=1000000
        test -f /data/log && while read x; do n=$$x; done < /data/log
        while true; do echo $$((n+1)) >> /data/log && n=$$((n+1)); sleep 0.3; done
    volumes: ["data:/data"]
  plain:
    <<: *loop
    image: host
    deploy: {replicas: 2}
  hungry:
    <<: *loop
    command:
      - /bin/sh
      - -c
      - |
        trap 'exit 0' TERM
        while true; do
          if test -f /tmp/eat; then
            rm /tmp/eat
            exec dd if=/dev/zero of=/dev/null bs=64M count=1
          fi
          sleep 0.2
        done
volumes: {data: {}}
"""
EXTRA: Final = """
services:
  one:
    image: busybox
    command: ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.3; done"]
    cpus: 0.05
    mem_limit: 24m
    stop_grace_period: 1s
    deploy: {replicas: 2}
  ends:
    image: host
    command: ["/bin/sh", "-c", "sleep 0.3; exit 3"]
    cpus: 0.05
    mem_limit: 24m
    restart: on-failure
"""
STEADY_NAME: Final = "steady"
EXTRA_NAMES: Final = ("guest0", "guest1")
HUNGRY: Final = f"{STEADY_NAME}/hungry/0"
DB: Final = f"{STEADY_NAME}/db/0"
STEADY_INSTANCES: Final = frozenset(
    [f"{STEADY_NAME}/web/{index}" for index in range(4)]
    + [f"{STEADY_NAME}/plain/{index}" for index in range(2)]
    + [DB, HUNGRY]
)
PATIENCE_MS: Final = 3_000  # for one answer; a daemon that is stopped does not answer
REFUSED: Final = 3  # exit code of a refusal in words


class Traffic:
    """Works in a thread of its own while it is entered; `done` counts what came through, `refused`
    the daemon's words for what did not, `error` is what ended it, if anything did."""

    def __init__(self, card: LocalCard, seed: int) -> None:
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._socket = card.run / "apf.sock"
        self._client: Client | None = None
        self._volume = next(row["name"] for row in card.call("volume.list"))
        self._rng = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        file = card.place / "guest.yaml"
        file.write_text(EXTRA)
        self._guests = {
            name: load_compose(str(file), name=name, env={}, profiles=()).workload.to_json()
            for name in EXTRA_NAMES
        }

    def __enter__(self) -> "Traffic":
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._hang_up()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self._rng.choice(
                    (self._move, self._move, self._come, self._go, self._flush, self._drain)
                )()
                self._stop.wait(self._rng.uniform(0, 0.4))
        except BaseException as exc:  # noqa: BLE001  told to the test's own thread
            self.error = exc

    def _come(self) -> None:
        name = self._rng.choice(EXTRA_NAMES)
        if self._ask("workload.submit", workload=self._guests[name]) is not None:
            self.done["submitted"] += 1

    def _go(self) -> None:
        if self._ask("workload.remove", name=self._rng.choice(EXTRA_NAMES)) is not None:
            self.done["removed"] += 1

    def _move(self) -> None:
        name = self._rng.choice(sorted(STEADY_INSTANCES))
        if self._ask("instance.migrate", instance=name) is not None:
            self.done["moved"] += 1

    def _flush(self) -> None:
        if self._ask("volume.flush", name=self._volume) is not None:
            self.done["flushed"] += 1

    def _drain(self) -> None:
        cnm = f"cnm{self._rng.randrange(4)}"
        if self._ask("cnm.drain", id=cnm) is not None:
            self.done["drained"] += 1
        self._until(lambda: self._ask("cnm.undrain", id=cnm))

    def _until(self, ask: Callable[[], Any]) -> None:
        """What must be undone is asked for until it is; a test that ends does it itself."""
        while not self._stop.is_set() and ask() is None:
            self._stop.wait(0.2)

    def _ask(self, method: str, **params: object) -> Any:
        """Once; None when it was refused, or nobody answered."""
        try:
            if self._client is None:
                self._client = Client(self._socket, timeout_ms=PATIENCE_MS)
            return self._client.call(method, params)
        except ToolError as exc:
            self.refused[exc.code] += 1
            if exc.exit_code != REFUSED:  # what comes next may be a late answer
                self._hang_up()
            self._stop.wait(0.05)
            return None

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None


def settle(card: LocalCard, patience_s: float) -> None:
    """After a run: guests go, modules that were drained come back, whoever still holds what."""
    asks = [("cnm.undrain", {"id": cnm}) for cnm in card.cnms()]
    asks += [("workload.remove", {"name": name}) for name in EXTRA_NAMES]
    for method, params in asks:
        card.wait(
            f"{method} {params}",
            lambda method=method, params=params: accepted(card, method, **params),
            patience_s,
        )
    card.wait("guests gone", lambda: not {*EXTRA_NAMES} & _workloads(card), patience_s)


def accepted(card: LocalCard, method: str, **params: object) -> bool:
    """It was done, or there is nothing to do."""
    try:
        card.call(method, **params)
    except ToolError as exc:
        return exc.code == "unknown_workload"
    return True


def _workloads(card: LocalCard) -> set[str]:
    return {row["workload"] for row in card.ps().values()}
