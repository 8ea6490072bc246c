"""`hal.cxl_ports.CxlBus`: what hangs on what, and a region as a window."""

import pytest

from hal.errors import Absent
from tests.contract.results import need
from tests.contract.rigs import CxlBusRig, World

PORT = "cxl_bus"


def test_a_memory_device_is_found_with_what_its_driver_says(rig: CxlBusRig, world: World) -> None:
    [info] = [found for found in rig.bus.scan().memdevs if found.name == rig.memdev]
    assert info.volatile_bytes + info.persistent_bytes > 0
    assert info.payload_max_bytes >= 256
    assert info.driver == "cxl_mem"
    assert info.address.count(":") == 2


def test_every_port_hangs_on_one_that_was_found_up_to_a_root(rig: CxlBusRig, world: World) -> None:
    ports = {port.name: port for port in rig.bus.scan().ports}
    [end] = [port for port in ports.values() if port.uport == rig.memdev]
    depth = 0
    while end.parent:
        end = ports[end.parent]
        depth += 1
    assert depth >= 2, "a device hangs on a host bridge, which hangs on the root"
    assert end.name.startswith("root")


def test_every_decoder_belongs_to_a_port_and_every_region_to_a_decoder(
    rig: CxlBusRig, world: World
) -> None:
    found = rig.bus.scan()
    assert {decoder.port for decoder in found.decoders} <= {port.name for port in found.ports}
    named = {decoder.region for decoder in found.decoders} - {""}
    assert named <= {region.name for region in found.regions}


def test_two_scans_find_the_same(rig: CxlBusRig, world: World) -> None:
    assert rig.bus.scan() == rig.bus.scan()


def test_a_region_that_is_not_there_is_absent(rig: CxlBusRig, world: World) -> None:
    with pytest.raises(Absent, match="region99"):
        rig.bus.map_region("region99", "a")


def test_a_region_carries_bytes_both_ways(rig: CxlBusRig, world: World) -> None:
    name = need(rig.region, "make a region")
    a, b = rig.bus.map_region(name, "a"), rig.bus.map_region(name, "b")
    a.write(64, b"to b")
    b.write(64, b"to a")
    a.publish(0, 7)
    assert (bytes(b.read(64, 4)), bytes(a.read(64, 4))) == (b"to b", b"to a")
    assert b.acquire(0) == 7
    a.close()
    b.close()
