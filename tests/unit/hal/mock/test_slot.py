"""Slots and power: what dies with the power, what survives it, and a supply that misbehaves."""

from typing import Any

import pytest

from firmware.loop import MS, Loop
from hal.errors import DeadlinePassed, HalError, Refused, Unavailable
from hal.mock.instance import Behaviour, MockInstance
from hal.mock.kernel import VirtualKernel
from hal.mock.power import PENDING_LIMIT, MockPower
from hal.mock.program import Launch
from hal.mock.runtime import MockHostView, MockRuntime
from hal.mock.slot import ON_NS, Slot
from hal.mock.spawner import MockSpawner
from hal.ports import (
    InstanceExit,
    InstanceHandle,
    InstanceSpec,
    PowerAction,
    PowerRequest,
    ProcessSpec,
    SlotState,
)

SECOND = 1000 * MS


class Card:
    """A card node with power, and CNMs whose init starts an agent and one instance."""

    def __init__(self, slots: int = 2) -> None:
        self.kernel = VirtualKernel(1)
        self.loop = Loop(self.kernel.node("card").clock)
        self.kernel.attach("card", self.loop)
        self.boots: list[tuple[str, int]] = []
        self.agent_exits: list[int] = []
        self.instance_exits: list[InstanceExit] = []
        self.kernel.register_program("cnm-init", self._init)
        self.kernel.register_program("agent", self._agent)
        for number in range(slots):
            self.kernel.add_slot(Slot(self.kernel, slot=number, cnm_id=f"cnm{number}"))
        self.power = MockPower(self.kernel.node("card"))
        self.changes: list[SlotState] = []
        self.power.on_change(self.changes.append)

    def _init(self, launch: Launch) -> None:
        assert launch.slot is not None
        loop = Loop(launch.node.clock)
        self.kernel.attach(launch.node.name, loop)
        self.boots.append((launch.slot.id, launch.boot))
        MockSpawner(launch.node, launch.slot).spawn(
            ProcessSpec(argv=["python", "-m", "agent"]), self.agent_exits.append
        )
        MockRuntime(launch.node, launch.slot).submit_start(
            InstanceSpec(key="work", argv=["work"], env={}),
            loop.now_ns() + SECOND,
            lambda result: None,
            self.instance_exits.append,
        )

    def _agent(self, launch: Launch) -> None:
        self.kernel.attach(launch.node.name, Loop(launch.node.clock))

    def ask(
        self, action: PowerAction, slot: int = 0, *, within_ns: int = SECOND
    ) -> list[SlotState | HalError]:
        out: list[SlotState | HalError] = []
        request = PowerRequest(slot=slot, action=action)
        self.power.submit(request, self.loop.now_ns() + within_ns, out.append)
        return out

    def on(self) -> None:
        self.ask(PowerAction.ON)
        self.kernel.run_for(100 * MS)


def test_on_takes_its_time_and_boots_the_registered_program() -> None:
    card = Card()
    out = card.ask(PowerAction.ON)
    card.kernel.run_for(ON_NS - 1)
    assert out == []
    card.kernel.run_for(1)
    assert isinstance(out[0], SlotState)
    assert out[0].init_pid is not None
    assert card.boots == [("cnm0", 1)]
    card.kernel.run_for(100 * MS)
    assert sorted(card.kernel.programs.running) == ["cnm0/agent", "cnm0/init"]
    assert card.kernel.running() == [("cnm0", "work")]


def test_off_ends_everything_on_that_cnm_and_nothing_elsewhere() -> None:
    card = Card()
    card.on()
    card.ask(PowerAction.ON, 1)
    card.kernel.run_for(100 * MS)
    out = card.ask(PowerAction.OFF)
    card.kernel.run_for(100 * MS)
    assert isinstance(out[0], SlotState)
    assert not out[0].power_good
    assert sorted(card.kernel.programs.running) == ["cnm1/agent", "cnm1/init"]
    assert card.kernel.running() == [("cnm1", "work")]
    assert card.agent_exits == []
    assert card.instance_exits == [], "nobody is left to be told"


def test_a_supply_that_is_stuck_on_never_gives_its_proof() -> None:
    card = Card()
    card.on()
    card.kernel.slots[0].stuck_on = True
    out = card.ask(PowerAction.OFF)
    card.kernel.run_for(SECOND // 2)
    assert out == []
    card.kernel.run_for(SECOND)
    assert isinstance(out[0], DeadlinePassed)
    assert card.kernel.running() == [("cnm0", "work")]
    read = card.ask(PowerAction.READ)
    card.kernel.run_for(MS)
    assert isinstance(read[0], SlotState)
    assert read[0].power_good


def test_a_supply_that_is_stuck_off_never_comes_up() -> None:
    card = Card()
    card.kernel.slots[0].stuck_off = True
    out = card.ask(PowerAction.ON)
    card.kernel.run_for(2 * SECOND)
    assert isinstance(out[0], DeadlinePassed)
    assert card.boots == []


def test_a_slow_supply_passes_the_deadline_and_takes_effect_later() -> None:
    card = Card()
    card.kernel.slots[0].on_ns = 3 * SECOND
    out = card.ask(PowerAction.ON)
    card.kernel.run_for(2 * SECOND)
    assert isinstance(out[0], DeadlinePassed)
    assert not card.kernel.slots[0].power_good
    card.kernel.run_for(2 * SECOND)
    assert card.kernel.slots[0].power_good
    assert len(out) == 1


def test_a_command_takes_effect_though_its_giver_died() -> None:
    card = Card()
    out = card.ask(PowerAction.ON)
    card.kernel.kill("card")
    card.kernel.run_for(SECOND)
    assert card.kernel.slots[0].power_good
    assert out == []


def test_a_pulled_module_is_reported_dark_and_absent_and_cannot_be_switched_on() -> None:
    card = Card()
    card.on()
    card.kernel.slots[0].pull()
    card.kernel.run_for(MS)
    assert [(s.slot, s.present, s.power_good, s.text) for s in card.changes] == [
        (0, False, False, "pulled")
    ]
    assert card.kernel.running() == []
    out = card.ask(PowerAction.ON)
    card.kernel.run_for(SECOND)
    assert isinstance(out[0], Unavailable)
    card.kernel.slots[0].insert()
    card.on()
    assert card.boots[-1] == ("cnm0", 2)


def test_the_death_of_the_init_takes_the_cnm_down_and_is_reported() -> None:
    card = Card()
    card.on()
    card.kernel.kill("cnm0/init")
    card.kernel.run_for(MS)
    assert not card.kernel.slots[0].power_good
    assert card.kernel.running() == []
    assert card.kernel.programs.running == {}
    assert [state.power_good for state in card.changes] == [False]


def test_the_death_of_the_agent_leaves_the_instances_alone_and_is_told_to_the_init() -> None:
    card = Card()
    card.on()
    card.kernel.kill("cnm0/agent")
    card.kernel.run_for(MS)
    assert card.agent_exits == [-9]
    assert card.kernel.running() == [("cnm0", "work")]
    assert card.kernel.slots[0].power_good


def test_a_reboot_is_a_new_boot_without_a_report_of_power() -> None:
    card = Card()
    card.on()
    card.kernel.slots[0].reboot()
    card.kernel.run_for(100 * MS)
    assert card.boots == [("cnm0", 1), ("cnm0", 2)]
    assert card.changes == []


def test_the_disk_survives_and_the_instances_do_not() -> None:
    card = Card()
    card.on()
    slot = card.kernel.slots[0]
    slot.disk.blobs[b"d" * 32] = b"data"
    slot.lose_power()
    assert slot.instances == {}
    card.on()
    assert slot.disk.blobs == {b"d" * 32: b"data"}


def test_a_restarted_daemon_hears_changes_once() -> None:
    card = Card()
    card.on()
    for _ in range(5):
        card.kernel.kill("card")
        card.kernel.attach("card", Loop(card.kernel.node("card").clock))
        power = MockPower(card.kernel.node("card"))
        heard: list[SlotState] = []
        power.on_change(heard.append)
    card.kernel.slots[0].lose_power()
    card.kernel.run_for(MS)
    assert len(heard) == 1
    assert card.changes == []


def test_waiting_requests_are_bounded() -> None:
    card = Card()
    outs = [card.ask(PowerAction.READ) for _ in range(PENDING_LIMIT + 1)]
    card.kernel.run_for(SECOND)
    assert isinstance(outs[-1][0], Refused)
    assert all(isinstance(out[0], SlotState) for out in outs[:-1])


def test_a_slot_number_is_given_once() -> None:
    card = Card()
    with pytest.raises(Refused, match="cnm0"):
        card.kernel.add_slot(Slot(card.kernel, slot=0, cnm_id="other"))


# --- programs ---


def test_a_relaunch_keeps_the_node_and_its_program() -> None:
    kernel = VirtualKernel(1)
    starts: list[int] = []
    kernel.register_program("card", lambda launch: starts.append(launch.pid))
    first = kernel.programs.launch("card", node="card", argv=["card", "--x"])
    second = kernel.programs.relaunch("card")
    assert first.exited == -9
    assert second.launch.argv == ("card", "--x")
    assert len(set(starts)) == 2


def test_signals_stop_continue_and_reach_a_handler() -> None:
    kernel = VirtualKernel(1)
    got: list[int] = []
    ran: list[int] = []

    def program(launch: Launch) -> None:
        loop = Loop(launch.node.clock)
        kernel.attach(launch.node.name, loop)
        loop.every(MS, lambda: ran.append(1))
        launch.on_signal = got.append

    kernel.register_program("p", program)
    handle = kernel.programs.launch("p", node="p")
    kernel.programs.signal("p", 15)
    kernel.run_for(MS)
    assert (got, handle.exited) == ([15], None)
    kernel.programs.signal("p", 19)
    before = len(ran)
    kernel.run_for(10 * MS)
    assert len(ran) == before
    kernel.programs.signal("p", 18)
    kernel.run_for(10 * MS)
    assert len(ran) > before
    kernel.programs.signal("p", 9)
    assert handle.exited == -9


def test_an_unregistered_program_is_named_with_the_known_ones() -> None:
    kernel = VirtualKernel(1)
    kernel.register_program("known", lambda launch: None)
    spawner = MockSpawner(kernel.node("n"))
    with pytest.raises(Unavailable, match="known"):
        spawner.spawn(ProcessSpec(argv=["other"]), lambda status: None)
    spawner.refuse = "no memory"
    with pytest.raises(Unavailable, match="no memory"):
        spawner.spawn(ProcessSpec(argv=["known"]), lambda status: None)


# --- instances ---


def start(
    kernel: VirtualKernel, behaviour: Behaviour, **spec: Any
) -> tuple[list[object], list[InstanceExit], MockRuntime, Slot]:
    if not kernel.slots:
        kernel.add_slot(Slot(kernel, slot=0, cnm_id="cnm0"))
    name = f"init{len(kernel.nodes)}"
    loop = Loop(kernel.node(name).clock)
    kernel.attach(name, loop)
    kernel.behaviours.default = behaviour
    runtime = MockRuntime(kernel.node(name), kernel.slots[0])
    out: list[object] = []
    exits: list[InstanceExit] = []
    made = InstanceSpec(**{"key": "i", "argv": ["x"], "env": {}, **spec})
    runtime.submit_start(made, loop.now_ns() + SECOND, out.append, exits.append)
    return out, exits, runtime, kernel.slots[0]


def only(slot: Slot) -> MockInstance:
    (found,) = slot.instances.values()
    return found


def test_a_leak_ends_in_an_oom_kill_at_the_limit() -> None:
    from hal.ports import InstanceLimits

    kernel = VirtualKernel(1)
    behaviour = Behaviour(memory_bytes=1000, memory_growth_bytes_per_s=100)
    _, exits, runtime, _ = start(kernel, behaviour, limits=InstanceLimits(memory_bytes=2000))
    kernel.run_for(10 * SECOND)
    assert exits == []
    assert 1900 < (runtime.usage("i").memory_bytes or 0) <= 2000
    kernel.run_for(SECOND)
    assert exits[0].reason.value == "oom_killed"
    assert runtime.usage("i").memory_peak_bytes == 2000


def test_cpu_time_follows_the_behaviour_and_its_limit() -> None:
    from hal.ports import InstanceLimits

    kernel = VirtualKernel(1)
    _, _, runtime, _ = start(
        kernel, Behaviour(cpu_milli=2000, start_ns=0), limits=InstanceLimits(cpu_milli=500)
    )
    kernel.run_for(2 * SECOND)
    assert runtime.usage("i").cpu_us == 1_000_000


def test_an_unkillable_process_keeps_running_after_kill_all() -> None:
    kernel = VirtualKernel(1)
    _, exits, runtime, _ = start(kernel, Behaviour(kill_ns=5 * SECOND))
    kernel.run_for(100 * MS)
    runtime.kill_all("i")
    kernel.run_for(4 * SECOND)
    assert kernel.running() == [("cnm0", "i")]
    kernel.run_for(2 * SECOND)
    assert kernel.running() == []
    assert len(exits) == 1


def test_a_slow_start_passes_its_deadline_and_starts_nothing() -> None:
    kernel = VirtualKernel(1)
    out, exits, _, _ = start(kernel, Behaviour(start_ns=10 * SECOND))
    kernel.run_for(20 * SECOND)
    assert isinstance(out[0], DeadlinePassed)
    assert (kernel.running(), exits) == ([], [])


def test_instances_outlive_the_node_that_started_them_and_a_new_view_finds_them() -> None:
    kernel = VirtualKernel(1)
    _, exits, _, slot = start(kernel, Behaviour())
    kernel.run_for(100 * MS)
    kernel.kill("init0")
    assert kernel.running() == [("cnm0", "i")]
    kernel.attach("init1", Loop(kernel.node("init1").clock))
    again = MockRuntime(kernel.node("init1"), slot)
    assert again.usage("i").memory_bytes
    again.kill_all("i")
    kernel.run_for(100 * MS)
    assert kernel.running() == []
    assert exits == []


def test_output_comes_through_the_handle_and_ends_with_the_instance() -> None:
    kernel = VirtualKernel(1)
    out, _, runtime, slot = start(kernel, Behaviour(output=b"hello\n"))
    kernel.run_for(100 * MS)
    handle = out[0]
    assert isinstance(handle, InstanceHandle)
    assert only(slot).write(b"more\n") == 5
    kernel.run_for(MS)
    runtime.kill_all("i")
    kernel.run_for(100 * MS)
    assert kernel.read_all(handle.output_fd, 1000) == b"hello\nmore\n"


def test_a_fault_can_end_an_instance_by_itself() -> None:
    from hal.ports import ExitReason

    kernel = VirtualKernel(1)
    _, exits, _, slot = start(kernel, Behaviour())
    kernel.run_for(100 * MS)
    only(slot).end(InstanceExit(reason=ExitReason.SIGNALED, status=11))
    kernel.run_for(MS)
    assert [(end.reason, end.status) for end in exits] == [(ExitReason.SIGNALED, 11)]
    only(slot).end(InstanceExit(reason=ExitReason.EXITED, status=0))
    kernel.run_for(MS)
    assert len(exits) == 1


def test_what_the_power_ended_does_not_end_again() -> None:
    kernel = VirtualKernel(1)
    _, exits, _, slot = start(kernel, Behaviour(runs_ns=SECOND))
    slot.power_good = True
    kernel.run_for(SECOND // 2)
    slot.lose_power()
    kernel.run_for(2 * SECOND)
    assert kernel.trace.entries(what="instance_dark")
    assert kernel.trace.entries(what="instance_end") == []
    assert exits == []


def test_of_two_ends_on_their_way_the_earlier_one_comes() -> None:
    kernel = VirtualKernel(1)
    _, exits, runtime, _ = start(kernel, Behaviour(stop_ns=MS, kill_ns=5 * MS))
    kernel.run_for(100 * MS)
    runtime.signal("i", 15)
    runtime.kill_all("i")
    kernel.run_for(100 * MS)
    assert [end.status for end in exits] == [15]
    kernel = VirtualKernel(1)
    _, exits, runtime, _ = start(kernel, Behaviour(stop_ns=SECOND, kill_ns=5 * MS))
    kernel.run_for(100 * MS)
    runtime.signal("i", 15)
    runtime.kill_all("i")
    kernel.run_for(100 * MS)
    assert [end.status for end in exits] == [9]


def test_the_latest_rule_that_matches_an_argv_is_taken() -> None:
    kernel = VirtualKernel(1)
    kernel.behaviours.add("sleep *", Behaviour(exit_status=1))
    kernel.behaviours.add("sleep 5", Behaviour(exit_status=2))
    assert kernel.behaviours.of(["sleep", "9"]).exit_status == 1
    assert kernel.behaviours.of(["sleep", "5"]).exit_status == 2
    assert kernel.behaviours.of(["other"]) == Behaviour()


def test_the_host_sees_what_lives_and_nothing_else() -> None:
    kernel = VirtualKernel(1)
    out, _, runtime, _ = start(kernel, Behaviour())
    kernel.run_for(100 * MS)
    handle = out[0]
    assert isinstance(handle, InstanceHandle)
    view = MockHostView(kernel.node("init0"))
    seen: list[Any] = []
    view.submit_lookup(0, [handle.pid, 99_999], kernel.now_ns + SECOND, seen.append)
    kernel.run_for(MS)
    assert {pid: host.cgroup for pid, host in seen[0].items()} == {handle.pid: handle.cgroup}
    runtime.kill_all("i")
    kernel.run_for(100 * MS)
    view.submit_lookup(0, [handle.pid], kernel.now_ns + SECOND, seen.append)
    view.submit_lookup(7, [handle.pid], kernel.now_ns + SECOND, seen.append)
    kernel.run_for(MS)
    assert seen[1] == {}
    assert isinstance(seen[2], Refused)
