"""PCI from files laid out as Linux 6.1 lays them out (values of a QEMU machine)."""

from pathlib import Path

import pytest

from hal.errors import Absent, Refused, Unavailable
from hal.linux import pci_sysfs
from hal.linux.pci_bind import Before, PciBinder
from hal.pci_ports import AerCounts, PciAddress, PciLink

PORT, NVME = "0000:00:1c.3", "0000:04:00.0"
AER = """RxErr 1
BadTLP 2
TOTAL_ERR_COR 3
"""
RESOURCE = """0x00000000fe200000 0x00000000fe203fff 0x0000000000140204
0x0000000000000000 0x0000000000000000 0x0000000000000000
0x0000000000004000 0x000000000000401f 0x0000000000040101
"""


@pytest.fixture
def sys(tmp_path: Path) -> Path:
    root = tmp_path / "sys"
    port = function(root, f"devices/pci0000:00/{PORT}", "0x1b36", "0x000c", "0x060400", "pcieport")
    put(port, current_link_speed="2.5 GT/s PCIe", current_link_width="1")
    put(port, max_link_speed="16.0 GT/s PCIe", max_link_width="32", numa_node="-1")
    drive = function(
        root, f"devices/pci0000:00/{PORT}/{NVME}", "0x1b36", "0x0010", "0x010802", "nvme"
    )
    put(drive, current_link_speed="2.5 GT/s PCIe", current_link_width="1", resource=RESOURCE)
    put(drive, max_link_speed="2.5 GT/s PCIe", max_link_width="1", numa_node="1", revision="0x02")
    put(drive, subsystem_vendor="0x1af4", subsystem_device="0x1100", aer_dev_correctable=AER)
    put(drive, aer_dev_nonfatal="DLP 0\nTOTAL_ERR_NONFATAL 4\n")
    put(drive, aer_dev_fatal="TOTAL_ERR_FATAL 5\n")
    groups = root / "kernel/iommu_groups/5"
    groups.mkdir(parents=True)
    (drive / "iommu_group").symlink_to(groups)
    slot = root / "bus/pci/slots/4"
    slot.mkdir(parents=True)
    put(slot, address="0000:04:00", power="1", adapter="1", cur_bus_speed="2.5 GT/s PCIe")
    (root / "bus/pci/drivers_probe").write_text("")
    return root


def put(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / name).write_text(text if text.endswith("\n") else text + "\n")


def function(root: Path, path: str, vendor: str, device: str, kind: str, driver: str) -> Path:
    folder = root / path
    folder.mkdir(parents=True)
    put(folder, vendor=vendor, device=device, driver_override="(null)")
    (folder / "class").write_text(kind + "\n")
    drivers = root / "bus/pci/drivers" / driver
    drivers.mkdir(parents=True, exist_ok=True)
    (folder / "driver").symlink_to(drivers)
    devices = root / "bus/pci/devices"
    devices.mkdir(parents=True, exist_ok=True)
    (devices / folder.name).symlink_to(folder)
    return folder


def test_a_function_is_read_with_all_its_numbers(sys: Path) -> None:
    port, drive = pci_sysfs.scan(sys)
    assert (str(port.address), port.parent, port.driver) == (PORT, None, "pcieport")
    assert port.link == PciLink(speed_mts=2500, width=1, max_speed_mts=16000, max_width=32)
    assert (port.numa_node, port.iommu_group, port.aer) == (None, None, None)
    assert str(drive.parent) == PORT
    assert (drive.vendor_id, drive.device_id, drive.class_code) == (0x1B36, 0x0010, 0x010802)
    assert (drive.subsystem_vendor_id, drive.subsystem_device_id) == (0x1AF4, 0x1100)
    assert (drive.revision, drive.driver, drive.iommu_group, drive.numa_node) == (2, "nvme", 5, 1)
    assert drive.bar_bytes == (0x4000, 0, 0x20)
    assert drive.slot == "4"
    assert drive.aer == AerCounts(correctable=3, nonfatal=4, fatal=5)


def test_a_link_without_a_partner_has_no_speed(sys: Path) -> None:
    put(sys / "bus/pci/devices" / PORT, current_link_speed="Unknown", current_link_width="255")
    [port, _] = pci_sysfs.scan(sys)
    assert port.link == PciLink(speed_mts=0, width=0, max_speed_mts=16000, max_width=32)


def test_a_function_that_goes_while_it_is_read_is_not_in_the_scan(sys: Path) -> None:
    (sys / "bus/pci/devices" / NVME / "class").unlink()
    (sys / "bus/pci/devices/not-an-address").symlink_to(sys)
    assert [str(device.address) for device in pci_sysfs.scan(sys)] == [PORT]


def test_values_that_make_no_sense_are_absent(sys: Path) -> None:
    put(sys / "bus/pci/devices" / NVME, resource="x y\n1\n", numa_node="n", max_link_speed="fast")
    [_, drive] = pci_sysfs.scan(sys)
    assert (drive.bar_bytes, drive.numa_node, drive.link) == ((0, 0), None, None)


@pytest.mark.parametrize("odd", ["-1", "1_0", "0x", "٣", "f" * 17])
def test_numbers_that_no_kernel_writes_are_absent(sys: Path, odd: str) -> None:
    folder = sys / "bus/pci/devices" / NVME
    put(folder, revision=odd, subsystem_vendor=odd, current_link_width="-4", max_link_width="-4")
    put(folder, resource=f"{odd} 0x10 0x0")
    [_, drive] = pci_sysfs.scan(sys)
    assert (drive.revision, drive.subsystem_vendor_id, drive.bar_bytes) == (0, 0, (0,))
    assert drive.link == PciLink(speed_mts=2500, width=0, max_speed_mts=2500, max_width=0)


def test_a_host_without_pci_says_so(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no PCI"):
        pci_sysfs.scan(tmp_path)
    assert pci_sysfs.slots_of(tmp_path) == []


def test_slots_are_read_and_asked(sys: Path) -> None:
    [slot] = pci_sysfs.slots_of(sys)
    assert (slot.name, slot.bus, slot.device, slot.powered, slot.present) == ("4", 4, 0, True, True)
    pci_sysfs.power_slot(sys, "4", on=False)
    [slot] = pci_sysfs.slots_of(sys)
    assert slot.powered is False
    with pytest.raises(Absent, match="known: 4"):
        pci_sysfs.power_slot(sys, "5", on=True)
    with pytest.raises(Refused):
        pci_sysfs.power_slot(sys, "../../etc", on=True)


def test_config_space_is_as_long_as_we_may_read_it(sys: Path) -> None:
    (sys / "bus/pci/devices" / NVME / "config").write_bytes(bytes(range(64)))
    assert pci_sysfs.config(sys, PciAddress.parse(NVME)) == bytes(range(64))
    with pytest.raises(Absent):
        pci_sysfs.config(sys, PciAddress.parse("0000:ff:00.0"))


# --- binding: these files don't act as the kernel's do, so what is written to them is judged ---


def test_a_driver_that_does_not_take_it_leaves_it_as_it_was(
    sys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hal.linux.pci_bind.PROBE_WAIT_S", 0)
    (sys / "bus/pci/drivers/vfio-pci").mkdir()
    binder = PciBinder(sys)
    with pytest.raises(Unavailable, match="nvme again"):
        binder.bind(PciAddress.parse(NVME), "vfio-pci")
    assert (sys / "bus/pci/devices" / NVME / "driver_override").read_text() == "\n"
    assert (sys / "bus/pci/drivers/nvme/unbind").read_text() == NVME
    assert (sys / "bus/pci/drivers_probe").read_text() == NVME
    assert binder.taken == {}


def test_an_override_that_was_there_before_is_put_back(
    sys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sys / "bus/pci/devices" / NVME
    put(folder, driver_override="nvme")
    vfio = sys / "bus/pci/drivers/vfio-pci"
    vfio.mkdir()
    binder = PciBinder(sys)
    monkeypatch.setattr("hal.linux.pci_bind.PROBE_WAIT_S", 0)

    def write(_self: PciBinder, address: PciAddress, path: str, text: str) -> None:
        """As the kernel: an unbound function goes to the driver that its override names."""
        (sys / path).write_text(text)
        if path.endswith("drivers_probe"):
            (folder / "driver").unlink(missing_ok=True)
            name = (folder / "driver_override").read_text().strip()
            (folder / "driver").symlink_to(sys / "bus/pci/drivers" / name)

    monkeypatch.setattr(PciBinder, "_write", write)
    binder.bind(PciAddress.parse(NVME), "vfio-pci")
    assert binder.taken == {PciAddress.parse(NVME): Before(driver="nvme", override="nvme")}
    assert (folder / "driver_override").read_text() == "vfio-pci"
    binder.restore()
    assert (folder / "driver_override").read_text() == "nvme"
    assert (folder / "driver").resolve().name == "nvme"
    assert binder.taken == {}


def test_a_name_that_is_no_drivers_is_refused(sys: Path) -> None:
    with pytest.raises(Refused):
        PciBinder(sys).bind(PciAddress.parse(NVME), "../nvme")


def test_a_function_that_was_pulled_meanwhile_is_forgotten_by_restore(
    sys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binder = PciBinder(sys)
    address = PciAddress.parse(NVME)
    binder._before[address] = Before(driver="nvme", override="")
    (sys / "bus/pci/devices" / NVME).unlink()
    binder.restore()
    assert binder.taken == {}
