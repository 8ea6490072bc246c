"""A small busy world with faults, for the tests of determinism; also a program of its own."""

import sys

from firmware.loop import MS, Loop
from hal.errors import HalError
from hal.mock.disk import Disk
from hal.mock.entropy import MockEntropy
from hal.mock.instance import Behaviour
from hal.mock.journal import MockJournal
from hal.mock.kernel import VirtualKernel
from hal.mock.line import MockLine
from hal.mock.line_faults import LinePlan
from hal.mock.power import MockPower
from hal.mock.program import Launch
from hal.mock.runtime import MockRuntime
from hal.mock.slot import Slot
from hal.ports import Event, InstanceSpec, JournalRecord, PowerAction, PowerRequest

SECOND = 1000 * MS


def run(seed: int, seconds: int = 20) -> str:
    """Four CNMs that talk over bad lines, crash and come back; the hash of the trace."""
    kernel = VirtualKernel(seed)
    lines: dict[str, MockLine] = {}
    card_disk = Disk(kernel, "card disk")

    def init(launch: Launch) -> None:
        assert launch.slot is not None
        loop = Loop(launch.node.clock)
        kernel.attach(launch.node.name, loop)
        launch.node.clock.set_rate(launch.slot.slot * 100 - 150)
        stream = lines[launch.slot.id].open("b", launch.node)
        entropy = MockEntropy(launch.node)
        runtime = MockRuntime(launch.node, launch.slot)
        loop.every(100 * MS, lambda: stream.write(entropy.random_bytes(70)))
        loop.watch(stream.handle, Event.READ, lambda events: stream.read())
        spec = InstanceSpec(key=f"i-{launch.slot.id}", argv=["work"], env={})
        runtime.submit_start(spec, loop.now_ns() + SECOND, lambda _: None, lambda _: None)

    def card(launch: Launch) -> None:
        loop = Loop(launch.node.clock)
        kernel.attach(launch.node.name, loop)
        journal = MockJournal(launch.node, card_disk)
        power = MockPower(launch.node)

        def read(name: str, stream_read: object) -> None:
            data = stream_read()  # type: ignore[operator]
            record = JournalRecord(kind="seen", key=name, value=data[:8])
            journal.submit([record], lambda value: None)

        for name in sorted(lines):
            stream = lines[name].open("a", launch.node)
            loop.watch(stream.handle, Event.READ, lambda e, n=name, s=stream: read(n, s.read))
            loop.every(500 * MS, lambda s=stream: s.write(b"grant" * 10))

        def state(result: object) -> None:
            if isinstance(result, HalError) or not result.power_good:  # type: ignore[attr-defined]
                kernel.note("card", "off", str(result))

        def keep_on() -> None:
            for slot in kernel.slots:
                request = PowerRequest(slot=slot, action=PowerAction.ON)
                power.submit(request, loop.now_ns() + SECOND, state)

        keep_on()
        loop.every(SECOND, keep_on)

    kernel.register_program("cnm-init", init)
    kernel.register_program("card", card)
    kernel.behaviours.add("work", Behaviour(memory_growth_bytes_per_s=1000, output=b"hello"))
    for number in range(4):
        slot = kernel.add_slot(Slot(kernel, slot=number, cnm_id=f"cnm{number}"))
        line = lines[slot.id] = MockLine(kernel, f"{slot.id}-mc", baud=115_200)
        for side in ("a", "b"):
            line.away_from(side).faults.plan = LinePlan(
                drop=0.02, flip=0.02, duplicate=0.02, delay=0.02, reorder=0.01, split=0.02
            )
    kernel.programs.launch("card", node="card")
    chaos = kernel.rng("chaos")

    def crash() -> None:
        match chaos.randrange(3):
            case 0:
                kernel.slots[chaos.randrange(4)].lose_power()
            case 1:
                kernel.slots[chaos.randrange(4)].reboot()
            case _:
                kernel.programs.relaunch("card")
        kernel.after(chaos.randint(SECOND // 2, 2 * SECOND), crash)

    kernel.after(SECOND, crash)
    kernel.run_for(seconds * SECOND)
    return (
        f"{kernel.trace.sha256()} {kernel.trace.count} {kernel.steps} {card_disk.journal.batches}"
    )


if __name__ == "__main__":
    sys.stdout.write(run(int(sys.argv[1])))
