"""Random schedules: whatever is killed, cut, paused, submitted, removed and moved, in any order,
no invariant breaks, and once everything is mended the card comes to rest.

Each seed is one schedule; a failure names it. Steps of up to a second, then healing.
"""

import pytest

from hal.mock.instance import Behaviour
from hal.mock.line_faults import LinePlan
from hal.ports import FenceKind
from tools.sim.documents import component, image, layer, volume, workload
from tools.sim.judge import Started
from tools.sim.world import SECOND, RpcFailure, World

# the first ones, and those that once found something (seed, steps): moves and removals that waited
# for ever for a report that had come, a dependant that nobody woke, a removal that nobody tried
# again, an answer of the boot before, data that went with its module without a word
SCHEDULES = [(seed, 40) for seed in range(30)] + [
    *((116, 40), (195, 40), (232, 40), (276, 40), (2025, 50), (2051, 50), (3162, 80), (3225, 80))
]
APP = layer({"bin/app": bytes(150_000)})
NOISE = LinePlan(drop=0.01, flip=0.01, truncate=0.01, garbage=0.01, duplicate=0.01)


class Schedule:
    """One run of one seed."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.rng = self.world.kernel.rng("schedule")
        self.names = [f"w{n}" for n in range(4)]
        for number, module in enumerate(self.world.modules.values()):
            if (seed >> number) & 1:
                module.slot.fence = FenceKind.LEASE
        self.done: list[str] = []
        self.writes = 0
        self.written: dict[str, bytes] = {}  # volume -> what its component wrote last
        self.said = 0  # events looked at for stale volumes
        self.world.disk.sync_ns = self.rng.choice((160_000, 160_000, 5_000_000, 40_000_000))
        if seed % 3 == 0:  # oscillators as bad as DESIGN section 4 grants
            for module in self.world.modules.values():
                for node in (module.init_node, module.agent_node):
                    clock = self.world.kernel.node(node).clock
                    clock.set_rate(self.rng.choice((-1000, 0, 1000)))

    def begin(self) -> None:
        world = self.world
        world.kernel.behaviours.add("job", Behaviour(runs_ns=3 * SECOND))
        world.kernel.behaviours.add("bad", Behaviour(runs_ns=SECOND, exit_status=1))
        world.kernel.behaviours.add("stubborn", Behaviour(ignores_term=True))
        world.kernel.behaviours.add("slow", Behaviour(start_ns=SECOND, stop_ns=SECOND // 2))
        world.kernel.behaviours.add("db", Behaviour(stop_ns=SECOND // 5))
        world.judge.on_start.append(self.check_data)
        world.boot()
        world.import_image(image("app:latest", APP), [APP])
        self.submit()

    def document(self, name: str) -> dict:
        rng = self.rng
        kinds = [
            component("web", replicas=rng.randint(1, 4)),
            component("app", image="app", replicas=rng.randint(1, 2)),
            component("db", volumes=[volume(f"{name}-data")]),
            component("stubborn", stop_grace_ms=300),
            component("slow", replicas=2),
            component("job", restart={"policy": "on-failure"}),
            component("bad", restart={"policy": "on-failure", "max_attempts": 2}),
            component("spread", replicas=3, placement={"spread": True}),
        ]
        chosen = rng.sample(kinds, rng.randint(1, 3))
        if len(chosen) > 1 and rng.random() < 0.3 and chosen[1]["name"] not in ("bad", "job"):
            chosen[0]["depends_on"] = [{"component": chosen[1]["name"], "condition": "started"}]
        return workload(name, *chosen)

    def step(self) -> None:
        actions = [
            (6, self.submit),
            (3, self.remove),
            (5, self.migrate),
            (3, self.kill_daemon),
            (3, self.kill_agent),
            (2, self.kill_init),
            (3, self.cut),
            (3, self.mend),
            (2, self.pause),
            (1, self.pull),
            (1, self.reboot),
            (2, self.window),
            (2, self.drain),
            (1, self.flush),
            (1, self.noise),
            (5, self.write),
            (1, self.full_disk),
        ]
        weights = [weight for weight, _ in actions]
        action = self.rng.choices([action for _, action in actions], weights)[0]
        self.done.append(f"{self.world.now_s:.3f} {action.__name__}")
        action()
        self.world.run(self.rng.choice((0.001, 0.005, 0.02, 0.1, 0.3, 1.0)) * self.rng.random())

    def heal(self) -> None:
        world = self.world
        for module in world.modules.values():
            module.cut(False)
            module.window.cut(False)
            for line in module.lines.values():
                line.a_to_b.faults.plan = line.b_to_a.faults.plan = None
            for node in (module.init_node, module.agent_node):
                if node in world.kernel.nodes and world.kernel.nodes[node].paused:
                    world.kernel.resume(node)
            if not module.slot.present:
                module.slot.insert()
        world.disk.full = False
        if world.kernel.nodes["daemon"].paused:
            world.kernel.resume("daemon")
        if world.card_or_none is None:
            world.start_daemon()
        world.wait_leased(limit_s=120)
        for name in world.modules:
            world.call("cnm.undrain", id=name)

    # --- what may happen ---

    def module(self):
        return self.rng.choice(list(self.world.modules.values()))

    def asked(self, method: str, **params: object) -> None:
        if self.world.card_or_none is not None and self.world.card.ready:
            self.world.begin(method, **params)

    def submit(self) -> None:
        name = self.rng.choice(self.names)
        document = self.document(name)
        card = self.world.card_or_none
        if card is not None and name not in card.decisions.workloads | dict.fromkeys(
            card.submitting
        ):
            self.world.know(document)
            self.asked("workload.submit", workload=document)

    def remove(self) -> None:
        self.asked("workload.remove", name=self.rng.choice(self.names))

    def migrate(self) -> None:
        running = sorted(self.world.running())
        if running:
            self.asked("instance.migrate", instance=self.rng.choice(running))

    def kill_daemon(self) -> None:
        if self.world.card_or_none is not None and self.rng.random() < 0.8:
            self.world.restart_daemon(self.rng.random())

    def kill_agent(self) -> None:
        module = self.module()
        if module.agent_node in self.world.kernel.nodes:
            self.world.kernel.kill(module.agent_node)

    def kill_init(self) -> None:
        self.world.kernel.kill(self.module().init_node)

    def cut(self) -> None:
        self.module().cut(links=self.rng.choice((("mc",), ("agent",), ("mc", "agent"))))

    def mend(self) -> None:
        for module in self.world.modules.values():
            module.cut(False)
            module.window.cut(False)

    def pause(self) -> None:
        module = self.module()
        # an init that is paused for longer than its lease guards nothing: rule 13's case
        name = self.rng.choice(("daemon", module.agent_node, module.init_node))
        node = self.world.kernel.nodes.get(name)
        if node is None or node.loop is None:
            return
        power = module.slot.fence is FenceKind.POWER
        span_s = self.rng.random() * (6 if name != module.init_node or power else 2)
        self.world.kernel.pause(name)
        incarnation = node.incarnation

        def resume() -> None:
            if node.incarnation == incarnation and node.paused:
                self.world.kernel.resume(name)

        self.world.kernel.after(int(span_s * SECOND), resume)

    def pull(self) -> None:
        slot = self.module().slot
        slot.pull()
        self.world.kernel.after(self.rng.randrange(3 * SECOND), slot.insert)

    def reboot(self) -> None:
        self.module().slot.reboot()

    def window(self) -> None:
        window = self.module().window
        window.cut()
        self.world.kernel.after(self.rng.randrange(2 * SECOND), lambda: window.cut(False))

    def drain(self) -> None:
        method = self.rng.choice(("cnm.drain", "cnm.undrain"))
        self.asked(method, id=self.module().id)

    def flush(self) -> None:
        self.asked("volume.flush", name=f"{self.rng.choice(self.names)}-data")

    def noise(self) -> None:
        line = self.rng.choice(list(self.module().lines.values()))
        line.a_to_b.faults.plan = line.b_to_a.faults.plan = NOISE

    def full_disk(self) -> None:
        disk = self.world.disk
        disk.full = True
        self.world.kernel.after(self.rng.randrange(SECOND), lambda: setattr(disk, "full", False))

    # --- data: it follows its component, or the card says from when it is ---

    def write(self) -> None:
        """A database commits something."""
        running = [name for name in self.world.running() if "/db/" in name]
        if running:
            name = self.rng.choice(running)
            volume_name = f"{name.split('/')[0]}-data"
            self.writes += 1
            data = b"%d" % self.writes
            self.world.modules[self.world.where(name)].write_volume(volume_name, "table", data)
            self.written[volume_name] = data

    def check_data(self, start: Started) -> None:
        """At each start of a database: it finds what was written last, unless that was said."""
        for event in self.world.events[self.said :]:
            if event.code == "volume.stale":
                self.written.pop(event.data["volume"], None)
        self.said = len(self.world.events)
        volume_name = f"{start.instance.split('/')[0]}-data"
        wanted = self.written.get(volume_name)
        if "/db/" in start.instance and wanted is not None:
            found = self.world.modules[start.cnm].volume_file(volume_name, "table")
            if found != wanted:
                self.world.judge.fail(
                    "data was lost in silence", f"{start}: {found!r}, wrote {wanted!r}"
                )


@pytest.mark.parametrize(("seed", "steps"), SCHEDULES)
def test_any_schedule_keeps_the_invariants_and_comes_to_rest(seed: int, steps: int) -> None:
    run = Schedule(seed)
    try:
        run.begin()
        for _ in range(steps):
            run.step()
        run.heal()
        run.world.settle(limit_s=180)
        check_rest(run.world)
        for name in run.names:
            try:
                run.world.remove(name)
            except RpcFailure as failure:
                assert failure.code == "unknown_workload"  # noqa: PT017
        run.world.settle(limit_s=180)
        check_gone(run.world)
    except Exception as exc:
        exc.add_note(f"seed {seed}\n" + "\n".join(run.done))
        raise


def check_rest(world: World) -> None:
    """What is wanted runs, or has ended by itself, or waits for room; nothing is lost."""
    for name, row in world.ps().items():
        component_name = name.split("/")[1]
        if component_name not in ("job", "bad"):
            assert row["phase"] in ("RUNNING", "PENDING"), f"{name}: {row}"


def check_gone(world: World) -> None:
    """All was removed: nothing runs, and neither disk knows of it."""
    world.run(3)
    assert world.running() == {}
    left = {key for key in world.disk.journal.durable if key[0] in ("workload", "assignment")}
    assert left == set()
    found = {name: module.leftovers() for name, module in world.modules.items()}
    assert found == {name: set() for name in world.modules}
