"""The tenants of a simulated card: workloads that come, load up, write, move, change and go.

What was acknowledged is remembered: a workload that was accepted and not removed since must be
there at rest, one whose removal was accepted and that nobody submitted since must not. Data
follows its component, or the card says from when it is.
"""

import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from hal.errors import HalError
from hal.mock.instance import Behaviour
from hal.ports import ExitReason, InstanceExit
from tools.sim.documents import component, image, layer, volume, workload
from tools.sim.judge import Started
from tools.sim.world import DAEMON, SECOND, World

APP: Final = layer({"bin/app": bytes(150_000)})
BIG: Final = layer({"bin/big": bytes(range(256)) * 4_000})
BEHAVIOURS: Final = {
    "job": Behaviour(runs_ns=3 * SECOND),
    "bad": Behaviour(runs_ns=SECOND, exit_status=1),
    "flaky": Behaviour(runs_ns=45 * SECOND, exit_status=1),
    "stubborn": Behaviour(ignores_term=True),
    "slow": Behaviour(start_ns=SECOND, stop_ns=SECOND // 2),
    "db": Behaviour(stop_ns=SECOND // 5),
    "leaky": Behaviour(memory_growth_bytes_per_s=1 << 20),
}
STATEFUL_SHARE: Final = 0.4  # of the workloads that would have no data, and of the moves
LARGE_SHARE: Final = 0.8  # of the components of a card whose workloads have priorities
SMALL: Final = {"cpu_milli": 100, "memory_bytes": 32 << 20}
ENDS_BY_ITSELF: Final = frozenset({"job", "bad", "flaky", "leaky"})  # component names
MAY_HAVE_ENDED: Final = frozenset({"job", "bad"})


class Tenants:
    """Who uses the card. Each action takes its own draws; what the card refuses is no failure."""

    def __init__(
        self, world: World, names: tuple[str, ...], most_replicas: int, *, ranked: bool = False
    ) -> None:
        """`ranked`: they have priorities, and tenants."""
        self.world = world
        self._ranked = ranked
        self.names = names
        self.most_replicas = most_replicas
        self.actions: Mapping[str, Callable[[random.Random], None]] = {
            "submit": self.submit,
            "remove": self.remove,
            "migrate": self.migrate,
            "drain": self.drain,
            "undrain": self.undrain,
            "flush": self.flush,
            "write": self.write,
            "load": self.load,
            "end": self.end,
            "off": lambda rng: self.switch(rng.choice(list(self.world.modules)), on=False),
            "on": lambda rng: self.switch(rng.choice(list(self.world.modules)), on=True),
        }
        self._asked: list[tuple[str, str, list[Any]]] = []  # (method, workload, its answers)
        self._writes = 0
        self._written: dict[str, bytes] = {}  # volume -> what its component wrote last
        self._said = 0  # events looked at for stale volumes
        for pattern, behaviour in BEHAVIOURS.items():
            world.kernel.behaviours.add(pattern, behaviour)
        world.judge.on_start.append(self._check_data)

    def settle_in(self) -> None:
        """Images, and a first workload; the card is up."""
        self.world.import_image(image("app:latest", APP), [APP])
        self.world.import_image(image("big:latest", APP, BIG), [APP, BIG])
        self.submit(self.world.kernel.rng("first workload"))

    # --- what they do ---

    def submit(self, rng: random.Random) -> None:
        """A workload of some name, unless that name is taken."""
        name = rng.choice(self.names)
        document = self._document(name, rng)
        if self._ranked:
            _rank(document, rng, min(s.module.cores_milli for s in self.world.board.slots))
        if self._answers and not self._known(name):
            self.world.know(document)
            self._ask("workload.submit", name, workload=document)

    def remove(self, rng: random.Random) -> None:
        name = rng.choice(self.names)
        self._ask("workload.remove", name, name=name)

    def migrate(self, rng: random.Random) -> None:
        running = sorted(self.world.running())
        stateful = [name for name in running if "/db/" in name]
        if stateful and rng.random() < STATEFUL_SHARE:
            running = stateful  # to go on with the data is the harder part
        if running:
            to = rng.choice((None, None, rng.choice(list(self.world.modules))))
            self._ask("instance.migrate", "", instance=rng.choice(running), to=to)

    def drain(self, rng: random.Random) -> None:
        self._ask("cnm.drain", "", id=rng.choice(list(self.world.modules)))

    def undrain(self, rng: random.Random) -> None:
        self._ask("cnm.undrain", "", id=rng.choice(list(self.world.modules)))

    def switch(self, name: str, *, on: bool) -> None:
        """A person wants a module to be off, or on again."""
        if self._answers:
            slot = self.world.modules[name].slot.slot
            self.world.judge.spread.switched(name)
            self._ask("cnm.power", "", slot=slot, action="on" if on else "off")

    def flush(self, rng: random.Random) -> None:
        self._ask("volume.flush", "", name=f"{rng.choice(self.names)}-data")

    def load(self, rng: random.Random) -> None:
        """A module gets busy, or idle again."""
        module = self.world.modules[rng.choice(list(self.world.modules))]
        share = rng.choice((0, 0, 50, 90, 100))
        module.load(module.config.module.cores_milli * share // 100)

    def end(self, rng: random.Random) -> None:
        """An instance ends by itself: a crash, or out of memory."""
        live = [
            one
            for _, slot in sorted(self.world.kernel.slots.items())
            for _, one in sorted(slot.instances.items())
            if one.alive
        ]
        if live:
            ends = (
                InstanceExit(reason=ExitReason.EXITED, status=0),
                InstanceExit(reason=ExitReason.EXITED, status=1),
                InstanceExit(reason=ExitReason.SIGNALED, status=11),
                InstanceExit(reason=ExitReason.OOM_KILLED, status=9),
            )
            rng.choice(live).end(rng.choice(ends))

    def write(self, rng: random.Random) -> None:
        """The databases commit something, all but one."""
        running = sorted(name for name in self.world.running() if "/db/" in name)
        for name in rng.sample(running, max(1, len(running) - 1)) if running else ():
            where = self.world.where(name)
            assert where is not None
            self._writes += 1
            data = b"%d" % self._writes
            with suppress(HalError):  # the disk is full, or broken: the tenant knows
                self.world.modules[where].write_volume(_volume_of(name), "table", data)
                self._written[_volume_of(name)] = data

    def _document(self, name: str, rng: random.Random) -> dict[str, Any]:
        few = self.most_replicas
        kinds = [
            component("web", replicas=rng.randint(1, few)),
            component("app", image="app", replicas=rng.randint(1, min(2, few))),
            component("big", image="big"),
            component("db", volumes=[volume(f"{name}-data")]),
            component("stubborn", stop_grace_ms=300),
            component("slow", replicas=min(2, few)),
            component("job", restart={"policy": "on-failure"}),
            component("bad", restart={"policy": "on-failure", "max_attempts": 2}),
            component("flaky", restart={"policy": "unless-stopped"}),
            component("spread", replicas=min(3, few), placement={"spread": True}),
            component("wide", resources={"cpu_milli": 3000, "memory_bytes": 4 << 30}),
            component(
                "roomy",
                replicas=rng.randint(1, few),
                resources={"cpu_milli": 200, "memory_bytes": 7 << 30},
            ),
            component(
                "disk", replicas=rng.randint(1, few), resources={**SMALL, "nvme_bytes": 100 << 30}
            ),
            component("chatty", resources={**SMALL, "link_mbit": 12_000}),
            component(
                "leaky",
                resources={
                    "cpu_milli": 100,
                    "memory_bytes": 32 << 20,
                    "memory_limit_bytes": 64 << 20,
                },
            ),
        ]
        if any(slot.module.accelerators for slot in self.world.board.slots):
            gpus = [{"kind": "gpu", "count": rng.choice((1, 2))}]
            wants = {**SMALL, "accelerators": gpus}
            kinds.append(component("gpu", replicas=min(2, few), resources=wants))
        chosen = rng.sample(kinds, rng.randint(1, 4))
        if all(one["name"] != "db" for one in chosen) and rng.random() < STATEFUL_SHARE:
            chosen.append(component("db", volumes=[volume(f"{name}-data")]))
        if len(chosen) > 1 and rng.random() < 0.3 and chosen[1]["name"] not in MAY_HAVE_ENDED:
            chosen[0]["depends_on"] = [{"component": chosen[1]["name"], "condition": "started"}]
        return workload(name, *chosen)

    def _known(self, name: str) -> bool:
        """The card has it, or is asked for it and has not answered."""
        card = self.world.card
        return name in card.decisions.workloads or name in card.submitting

    @property
    def _answers(self) -> bool:
        """The daemon is up, and runs: what is stopped takes no request."""
        card = self.world.card_or_none
        return card is not None and card.ready and not self.world.kernel.nodes[DAEMON].paused

    def _ask(self, method: str, name: str, /, **params: Any) -> None:
        if self._answers:
            answers = self.world.begin(method, **params)
            if name:
                self._asked.append((method, name, answers))

    # --- what must be so ---

    def acknowledged(self) -> dict[str, bool]:
        """By workload: whether it must be there, as far as the card's answers say."""
        must: dict[str, bool] = {}
        for method, name, answers in self._asked:
            accepted = bool(answers) and "result" in answers[0]
            if accepted:
                must[name] = method == "workload.submit"
            elif not answers or _unknown(answers[0]):  # it may have done it or not
                must.pop(name, None)
        return must

    def check_acknowledged(self) -> None:
        """Nothing that the card said yes to is forgotten. At rest only. Raises Violation."""
        present = {
            name
            for name, record in self.world.card.decisions.workloads.items()
            if not record.deleted
        }
        for name, wanted in self.acknowledged().items():
            if wanted and name not in present:
                self.world.judge.fail("a workload was lost", f"{name} was accepted, and is gone")
            if not wanted and name in present:
                self.world.judge.fail("a removal was lost", f"{name} was removed, and is there")

    def _check_data(self, start: Started) -> None:
        """At each start of a database: it finds what was written last, unless that was said."""
        for event in self.world.events[self._said :]:
            if event.code == "volume.stale":
                self._written.pop(event.data["volume"], None)
        self._said = len(self.world.events)
        if "/db/" not in start.instance:
            return
        wanted = self._written.get(_volume_of(start.instance))
        if wanted is None:
            return
        found = self.world.modules[start.cnm].volume_file(_volume_of(start.instance), "table")
        if found != wanted:
            self.world.judge.fail(
                "data was lost in silence", f"{start}: {found!r}, wrote {wanted!r}"
            )


def _unknown(answer: Mapping[str, Any]) -> bool:
    """A sync failed under it: what was written may be there after a restart."""
    error = answer.get("error", {})
    return bool(error.get("data", {}).get("code") == "journal_failed")


def _rank(document: dict[str, Any], rng: random.Random, cores_milli: int) -> None:
    """Give it a tenant and its components priorities, and make some of them so large that they are
    in each other's way on modules of `cores_milli`: the last that is drawn, so that the rest is as
    it would be without."""
    document["tenant"] = rng.choice(("", "acme", "zoo"))
    usual = rng.choice((10, 50, 90))
    for part in document["components"]:
        part["priority"] = rng.choice((usual, usual, rng.randint(0, 100)))
        if rng.random() < LARGE_SHARE:
            quarters = rng.choice((1, 2, 3, 3))
            wants = {**part["resources"], "cpu_milli": cores_milli * quarters // 4}
            part["resources"] = wants


def kind_of(instance: str) -> str:
    """The component of "workload/component/index"."""
    return instance.split("/")[1]


def _volume_of(instance: str) -> str:
    return f"{instance.split('/')[0]}-data"
