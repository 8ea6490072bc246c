"""Slots of the kernel's hot-plug drivers, in a directory that looks like /sys/bus/pci/slots."""

import pytest

from firmware.loop import Loop
from hal.errors import DeadlinePassed, Refused, Unavailable
from hal.linux.clock import LinuxClock
from hal.linux.slot_power import LinuxSlotPower, slot_switch
from hal.linux.workers import Workers
from hal.ports import FenceKind, PowerAction, PowerRequest


@pytest.fixture
def bench(tmp_path):
    clock = LinuxClock()
    loop = Loop(clock)
    workers = Workers(loop)
    for name, present in (("3", "1"), ("4", "0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "power").write_text("0")
        (tmp_path / name / "adapter").write_text(present)
    switches = {
        0: slot_switch("none"),
        1: slot_switch("pci_slot:3?fence=power"),
        2: slot_switch("pci_slot:4?fence=power"),
        3: slot_switch("pci_slot:99"),
    }
    power = LinuxSlotPower(switches, loop, workers, slots_dir=tmp_path)

    def ask(slot, action):
        answers = []

        def done(result):
            answers.append(result)
            loop.stop()

        request = PowerRequest(slot=slot, action=action)
        power.submit(request, loop.now_ns() + 5_000_000_000, done)
        loop.run()
        assert len(answers) == 1
        return answers[0]

    ask.loop, ask.power, ask.dir = loop, power, tmp_path
    yield ask
    workers.close()
    loop.close()
    clock.close()


def test_a_slot_without_a_switch_is_on_and_only_its_lease_is_a_fence(bench):
    state = bench(0, PowerAction.READ)
    assert (state.present, state.power_good, state.fence) == (True, True, FenceKind.LEASE)
    assert bench(0, PowerAction.ON).power_good
    off = bench(0, PowerAction.OFF)
    assert isinstance(off, Unavailable)
    assert "its lease must end" in str(off)


def test_power_is_written_and_read_back(bench):
    assert not bench(1, PowerAction.READ).power_good
    state = bench(1, PowerAction.ON)
    assert (state.power_good, state.fence) == (True, FenceKind.POWER)
    assert (bench.dir / "3" / "power").read_text() == "1"
    assert not bench(1, PowerAction.OFF).power_good


def test_reading_changes_nothing(bench):
    before = (bench.dir / "3" / "power").stat().st_mtime_ns
    bench(1, PowerAction.READ)
    assert (bench.dir / "3" / "power").stat().st_mtime_ns == before


def test_an_empty_slot_and_an_unknown_one_say_what_is_wrong(bench):
    assert not bench(2, PowerAction.READ).present
    assert "is empty" in str(bench(2, PowerAction.ON))
    absent = bench(3, PowerAction.READ)
    assert isinstance(absent, Unavailable)
    assert "no hot-plug slot 99" in str(absent)
    assert isinstance(bench(7, PowerAction.READ), Refused)


def test_a_supply_that_does_not_obey_is_no_success(bench, monkeypatch):
    monkeypatch.setattr(type(bench.dir), "write_text", lambda *_args: 1)
    stuck = bench(1, PowerAction.ON)
    assert isinstance(stuck, DeadlinePassed)
    assert "reads 0 after 1 was written" in str(stuck)


def test_what_changes_by_itself_is_told(bench):
    bench(1, PowerAction.ON)
    told = []

    def changed(state):
        told.append(state)
        bench.loop.stop()

    bench.power.on_change(changed)
    (bench.dir / "3" / "adapter").write_text("0")
    bench.loop.run()
    assert (told[0].slot, told[0].present, told[0].power_good) == (1, False, False)


def test_a_function_that_goes_is_a_detection_and_no_loss_of_power(bench):
    told = []
    bench.power.on_change(told.append)
    bench.power.tell_failing(0, "its function was removed")
    assert (told[0].failing, told[0].power_good) == (True, True)


@pytest.mark.parametrize("spec", ["", "pci_slot:", "pci_slot:3?fence=maybe", "local"])
def test_words_that_name_no_switch_are_refused(spec):
    with pytest.raises(Refused):
        slot_switch(spec)
