"""Slots' links against the board, on the virtual host's PCI tree."""

from dataclasses import dataclass, field

import pytest

from firmware.board_hardware import SlotPcie
from firmware.loop import Loop
from firmware.pcie import LinkReport, LinkVerdict, SlotLinks
from hal.mock.kernel import VirtualKernel
from hal.mock.pci_bus import MockPciBus, MockPort
from hal.mock.pci_edu import MockEdu
from hal.pci_ports import PciEventKind, PciLink

MS = 1_000_000
PORTS = {"cnm0": "0000:00:01.0", "cnm1": "0000:00:02.0"}
MODULES = {"cnm0": "0000:01:00.0", "cnm1": "0000:02:00.0"}
GEN5_X16 = PciLink(speed_mts=32_000, width=16, max_speed_mts=32_000, max_width=16)
# PCI Express Base 5.0, 7.9.15, after a header of AER's kind: id 001Dh version 1, triggered (bit 0)
# by ERR_FATAL (10b in bits 2:1)
DPC_TRIGGERED = bytes.fromhex("1d000100 0000 0100 0500 0001")


@dataclass
class Host:
    kernel: VirtualKernel = field(default_factory=lambda: VirtualKernel(1))
    reports: list[LinkReport] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ports, self.modules = {}, {}
        for cnm, at in PORTS.items():
            port = MockPort(self.kernel, f"{cnm}-port", at, link=GEN5_X16)
            module = MockEdu(self.kernel, cnm, MODULES[cnm])
            module.parent, module.slot, module.driver = port.address, f"slot-{cnm}", ""
            self.kernel.pci.add(port)
            self.kernel.pci.add(module)
            self.ports[cnm], self.modules[cnm] = port, module
        loop = Loop(self.kernel.node("card").clock)
        self.kernel.attach("card", loop)
        self.bus = MockPciBus(self.kernel.node("card"), self.kernel.pci)
        want = {cnm: SlotPcie(port=at, speed_mtps=32_000, width=16) for cnm, at in PORTS.items()}
        self.slots = SlotLinks(
            loop, self.bus, want, on_report=self.reports.append, on_gone=self.gone.append
        )
        self.run(100)

    def run(self, ms: int) -> None:
        self.kernel.run_for(ms * MS)

    def verdicts(self) -> dict[str, LinkVerdict]:
        return {cnm: link.verdict for cnm, link in self.slots.links.items()}


def test_a_link_as_the_board_wants_it_is_good_and_told_once() -> None:
    host = Host()
    assert host.verdicts() == {"cnm0": LinkVerdict.GOOD, "cnm1": LinkVerdict.GOOD}
    host.run(60_000)
    assert [(r.cnm, r.verdict) for r in host.reports] == [
        ("cnm0", LinkVerdict.GOOD),
        ("cnm1", LinkVerdict.GOOD),
    ]
    link = host.slots.links["cnm0"].to_json()
    assert (link["speed_mts"], link["width"], link["want_width"]) == (32_000, 16, 16)
    assert link["functions"] == [MODULES["cnm0"]]


@pytest.mark.parametrize(
    ("speed_mts", "width", "verdict"),
    [
        (16_000, 16, LinkVerdict.SLOW),
        (32_000, 8, LinkVerdict.NARROW),
        (2_500, 1, LinkVerdict.SLOW),
        (0, 0, LinkVerdict.DOWN),
    ],
)
def test_a_link_that_trains_to_less_is_told_with_both_numbers(
    speed_mts: int, width: int, verdict: LinkVerdict
) -> None:
    host = Host()
    host.ports["cnm0"].train(speed_mts, width)
    host.run(100)
    assert host.verdicts() == {"cnm0": verdict, "cnm1": LinkVerdict.GOOD}
    assert host.reports[-1].cnm == "cnm0"
    assert "want 32000 MT/s x16" in host.reports[-1].text
    host.ports["cnm0"].train(32_000, 16)
    host.run(100)
    assert host.verdicts()["cnm0"] is LinkVerdict.GOOD
    assert host.gone == (["cnm0"] if verdict is LinkVerdict.DOWN else [])


def test_a_module_that_is_pulled_is_gone_at_once_and_only_it() -> None:
    host = Host()
    host.modules["cnm1"].remove()
    host.run(1)
    assert host.gone == ["cnm1"]
    host.run(20_000)
    assert host.gone == ["cnm1"]
    assert host.verdicts() == {"cnm0": LinkVerdict.GOOD, "cnm1": LinkVerdict.ABSENT}
    host.modules["cnm1"].insert()
    host.run(100)
    assert host.verdicts()["cnm1"] is LinkVerdict.GOOD
    assert host.slots.links["cnm1"].counts[PciEventKind.REMOVED] == 1


def test_a_link_that_stays_down_is_gone_once() -> None:
    host = Host()
    host.ports["cnm0"].train(0, 0)
    host.run(60_000)
    assert host.gone == ["cnm0"]
    assert host.reports[-1].verdict is LinkVerdict.DOWN


def test_what_happens_during_a_look_is_looked_at_again() -> None:
    host = Host()
    host.ports["cnm0"].train(16_000, 16)
    host.run(22)  # the look has begun, and has not ended
    host.ports["cnm0"].train(8_000, 16)
    host.run(100)
    assert host.slots.links["cnm0"].speed_mts == 8_000


def test_an_error_deep_behind_a_port_is_its_slots_without_any_name_of_a_slot() -> None:
    host = Host()
    for module in host.modules.values():
        module.slot = ""
    deep = MockEdu(host.kernel, "deep", "0000:03:00.0")
    deep.parent = host.modules["cnm1"].address  # as behind a switch on the module
    host.kernel.pci.add(deep)
    host.run(20_000)
    deep.error(PciEventKind.AER_NONFATAL)
    host.run(100)
    assert host.slots.links["cnm1"].counts == {PciEventKind.AER_NONFATAL: 1}
    assert host.slots.elsewhere == {}


def test_a_port_that_the_host_does_not_have_is_the_boards_fault() -> None:
    host = Host()
    host.kernel.pci.models.pop("cnm0-port")
    host.run(20_000)
    assert host.verdicts()["cnm0"] is LinkVerdict.NO_PORT
    assert "another card" in host.reports[-1].text


def test_errors_are_counted_for_the_slot_that_they_are_behind() -> None:
    host = Host()
    host.modules["cnm0"].error(PciEventKind.AER_CORRECTABLE, 7)
    host.ports["cnm0"].error(PciEventKind.AER_CORRECTABLE, 2)
    host.modules["cnm1"].error(PciEventKind.AER_NONFATAL)
    host.run(100)
    assert host.slots.links["cnm0"].counts[PciEventKind.AER_CORRECTABLE] == 9
    assert host.slots.links["cnm1"].counts == {PciEventKind.AER_NONFATAL: 1}
    host.run(20_000)
    told = [(r.cnm, r.error, r.count) for r in host.reports if r.error is not None]
    assert told == [
        ("cnm0", PciEventKind.AER_CORRECTABLE, 7),
        ("cnm1", PciEventKind.AER_NONFATAL, 1),
        ("cnm0", PciEventKind.AER_CORRECTABLE, 2),
    ]


def test_a_port_that_contains_an_error_is_seen_to_hold_its_link_down() -> None:
    host = Host()
    port = host.ports["cnm0"]
    port.config[0x100 : 0x100 + len(DPC_TRIGGERED)] = DPC_TRIGGERED
    host.modules["cnm0"].error(PciEventKind.AER_FATAL)
    host.run(100)
    link = host.slots.links["cnm0"]
    assert link.contained
    assert link.counts[PciEventKind.DPC] == 1
    assert "DPC holds the link down (err_fatal)" in host.reports[-1].text
    host.run(20_000)
    assert link.contained, "as long as it is so"
    port.config[0x108] = 0  # the kernel has released it
    host.run(20_000)
    assert not link.contained
    assert link.counts[PciEventKind.DPC] == 1


def test_a_storm_of_errors_that_are_corrected_is_a_few_reports_with_their_sum() -> None:
    host = Host()
    for _ in range(3_000):
        host.modules["cnm0"].error(PciEventKind.AER_CORRECTABLE, 7)
        host.run(10)
    host.modules["cnm1"].error(PciEventKind.AER_CORRECTABLE)
    host.run(20_000)
    told = [(r.cnm, r.count) for r in host.reports if r.error is PciEventKind.AER_CORRECTABLE]
    storm = [count for cnm, count in told if cnm == "cnm0"]
    assert 3 <= len(storm) <= 5
    assert sum(storm) == 21_000
    assert ("cnm1", 1) in told


def test_a_link_that_is_held_down_says_by_what_though_nobody_told_an_error() -> None:
    host = Host()
    port = host.ports["cnm0"]
    port.config[0x100 : 0x100 + len(DPC_TRIGGERED)] = DPC_TRIGGERED
    port.train(0, 0)
    host.run(100)
    assert host.slots.links["cnm0"].contained
    assert host.reports[-1].verdict is LinkVerdict.DOWN
    assert "DPC holds the link down (err_fatal)" in host.reports[-1].text


def test_what_is_behind_no_slot_is_counted_apart() -> None:
    host = Host()
    other = MockEdu(host.kernel, "other", "0000:00:1f.0")
    host.kernel.pci.add(other)
    other.error(PciEventKind.AER_FATAL)
    host.run(100)
    assert host.slots.elsewhere == {PciEventKind.AER_FATAL: 1}
    assert [r for r in host.reports if r.error is not None] == []


def test_a_flood_of_events_is_few_looks_and_the_last_state_is_seen() -> None:
    host = Host()
    before = host.bus.scans
    for _ in range(500):
        host.ports["cnm0"].train(16_000, 16)
        host.run(1)
    host.ports["cnm0"].train(8_000, 16)
    host.run(100)
    assert host.slots.links["cnm0"].speed_mts == 8_000
    assert 10 < host.bus.scans - before < 40


def test_after_close_nothing_is_looked_at_or_told() -> None:
    host = Host()
    host.slots.close()
    told = len(host.reports)
    host.modules["cnm0"].remove()
    host.run(30_000)
    assert len(host.reports) == told
    assert host.gone == []


def test_a_slot_that_saw_events_of_many_kinds_tells_them_all() -> None:
    """The daemon once died of it: kinds have no order of their own."""
    link = Host().slots.links["cnm0"]
    link.counts[PciEventKind.REMOVED] += 2
    link.counts[PciEventKind.ADDED] += 1
    link.counts[PciEventKind.DPC] += 0
    assert link.to_json()["events"] == {"added": 1, "removed": 2}
