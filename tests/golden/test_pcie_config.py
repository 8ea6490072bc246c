"""Config spaces as a kernel reads them from QEMU 7.2's devices, and what pciutils 3.9 says of them.

The bytes are QEMU's, in the form of `lspci -xxxx` (lines of zeros left out); the values are those
that `lspci -vvv` prints for them. Where QEMU has no such thing (an error that was seen, a port
that has contained one) the bytes are set out by hand from the specification's layout.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from protocol.pcie import PortType, parse_function
from protocol.pcie.bits import register
from protocol.pcie.config import CONFIG_BYTES, CONVENTIONAL_BYTES, HEADER_BYTES
from protocol.pcie.extended import CxlDvsec

NVME = """
000: 36 1b 10 00 07 01 10 00 02 02 08 01 00 00 00 00
010: 04 00 00 fe 00 00 00 00 00 00 00 00 00 00 00 00
020: 00 00 00 00 00 00 00 00 00 00 00 00 f4 1a 00 11
030: 00 00 00 00 40 00 00 00 00 00 00 00 0a 01 00 00
040: 11 80 0b 00 00 20 00 00 00 30 00 00 00 00 00 00
060: 01 00 03 00 08 00 00 00 00 00 00 00 00 00 00 00
080: 10 60 02 00 00 80 00 10 00 00 00 00 11 04 00 00
090: 00 00 11 00 00 00 00 00 00 00 00 00 00 00 00 00
0a0: 00 00 00 00 00 00 30 00 00 00 00 00 00 00 00 00
100: 0e 00 01 12 00 01 00 00 00 00 00 00 00 00 00 00
120: 10 00 01 00 00 00 00 00 10 00 00 00 04 00 04 00
130: 00 00 00 00 01 00 01 00 00 00 10 00 53 05 00 00
140: 01 00 00 00 04 40 00 fe 00 00 00 00 00 00 00 00
"""
CXL_MEMORY = """
000: 86 80 93 0d 03 01 10 00 01 10 02 05 00 00 00 00
010: 04 00 a0 fd 00 00 00 00 04 00 a1 fd 00 00 00 00
020: 00 10 a1 fd 00 00 00 00 00 00 00 00 f4 1a 00 11
030: 00 00 00 00 40 00 00 00 00 00 00 00 00 00 00 00
040: 11 80 00 00 04 00 00 00 04 08 00 00 00 00 00 00
080: 10 00 02 00 00 80 00 00 00 00 00 00 11 04 00 00
090: 00 00 11 00 00 00 00 00 00 00 00 00 00 00 00 00
0a0: 00 00 00 00 00 00 30 00 00 00 00 00 00 00 00 00
100: 23 00 81 13 98 1e 81 03 00 00 1e 00 02 00 00 00
110: 00 00 02 00 00 00 00 00 00 00 00 00 4b 00 00 10
130: 00 00 00 00 00 00 00 00 23 00 c1 15 98 1e 40 02
140: 08 00 00 00 00 01 00 00 00 00 00 00 02 03 00 00
150: 00 00 00 00 00 00 00 00 00 00 00 00 23 00 01 19
160: 98 1e 00 01 05 00 03 06 33 00 00 00 00 00 00 00
190: 2e 00 01 00 01 00 00 00 00 00 00 00 00 00 00 00
"""
ROOT_PORT = """
000: 36 1b 0c 00 07 05 10 00 00 00 04 06 00 00 81 00
010: 00 70 b9 fe 00 00 00 00 00 04 04 00 40 40 00 00
020: 20 fe 30 fe 41 fd 51 fd 00 00 00 00 00 00 00 00
030: 00 00 00 00 54 00 00 00 00 00 00 00 0a 01 02 00
040: 0d 00 00 00 36 1b 00 00 11 40 00 80 00 00 00 00
050: 00 08 00 00 10 48 42 01 00 80 00 00 0f 00 00 00
060: 04 06 30 00 00 00 11 20 7b 00 22 00 f1 01 40 00
070: 00 00 00 00 00 00 00 00 20 00 30 00 00 00 00 00
080: 1e 00 00 00 04 00 00 00 00 00 00 00 00 00 00 00
100: 01 00 82 14 00 00 00 00 00 00 00 00 30 20 46 00
110: 00 00 00 00 00 e0 00 00 a0 02 00 00 00 00 00 00
120: 00 00 00 00 00 00 00 00 00 00 00 00 07 00 00 00
140: 00 00 00 00 00 00 00 00 0d 00 01 00 5f 00 1d 00
"""
EDU = """
000: 34 12 e8 11 03 01 10 00 10 00 ff 00 00 00 00 00
010: 00 00 a0 fe 00 00 00 00 00 00 00 00 00 00 00 00
020: 00 00 00 00 00 00 00 00 00 00 00 00 f4 1a 00 11
030: 00 00 00 00 40 00 00 00 00 00 00 00 0b 01 00 00
040: 05 00 80 00 00 00 00 00 00 00 00 00 00 00 00 00
"""


def config(text: str, size: int) -> bytes:
    """From lines of `lspci -xxxx`."""
    found = bytearray(size)
    for line in text.split("\n"):
        at, mark, data = line.partition(": ")
        if mark:
            found[int(at, 16) : int(at, 16) + 16] = bytes.fromhex(data)
    return bytes(found)


def test_an_endpoint_with_msix_and_sriov_reads_as_lspci_reads_it() -> None:
    found = parse_function(config(NVME, CONFIG_BYTES))
    head = found.header
    assert (head.vendor_id, head.device_id, head.class_code) == (0x1B36, 0x0010, 0x010802)
    assert (head.subsystem_vendor_id, head.subsystem_id, head.revision) == (0x1AF4, 0x1100, 2)
    assert (head.interrupt_pin, head.multifunction, head.secondary_bus) == (1, False, None)
    assert head.bars[0] & ~0xF == 0xFE000000
    assert [(c.id, c.offset) for c in found.capabilities] == [
        (0x11, 0x40), (0x10, 0x80), (0x01, 0x60), (0x0E, 0x100), (0x10, 0x120)
    ]  # fmt: skip
    msix = found.msix
    assert msix is not None
    assert (msix.vectors, msix.enabled, msix.masked) == (12, False, False)
    assert (msix.table_bar, msix.table_offset) == (0, 0x2000)
    assert (msix.pending_bar, msix.pending_offset) == (0, 0x3000)
    express = found.express
    assert express is not None
    assert express.link is not None
    assert (express.version, express.port_type) == (2, PortType.ENDPOINT)
    assert (express.flr, express.max_payload_bytes, express.slot) == (True, 128, None)
    assert (express.link.speed_mts, express.link.width) == (2500, 1)
    assert express.link.active is None  # LLActRep-
    sriov = found.sriov
    assert sriov is not None
    assert (sriov.enabled, sriov.initial_vfs, sriov.total_vfs, sriov.num_vfs) == (False, 4, 4, 0)
    assert (sriov.vf_offset, sriov.vf_stride, sriov.vf_device_id) == (1, 1, 0x0010)
    assert (found.aer, found.msi, found.cxl, found.does) == (None, None, None, ())


def test_a_cxl_memory_device_reads_as_lspci_reads_it() -> None:
    found = parse_function(config(CXL_MEMORY, CONFIG_BYTES))
    assert found.header.class_code == 0x050210
    assert [(d.cxl, d.revision, d.length) for d in found.dvsecs] == [
        (CxlDvsec.DEVICE, 1, 56),
        (CxlDvsec.REGISTER_LOCATOR, 0, 36),
        (CxlDvsec.DEVICE_GPF, 0, 16),
    ]
    # behind the header of 10 B, each to its own end and no further (PCIe Base 5.0, 7.9.6.2)
    assert [len(d.data) for d in found.dvsecs] == [46, 26, 6]
    cxl = found.cxl
    assert cxl is not None
    assert (cxl.cache, cxl.io, cxl.mem, cxl.hdm_ranges) == (False, True, True, 1)
    assert (cxl.cache_enabled, cxl.mem_enabled) == (False, False)
    [doe] = found.does
    assert (doe.interrupt, doe.vector) == (True, 0)
    assert (doe.busy, doe.error, doe.ready) == (False, False, False)
    assert found.msix is not None
    assert (found.msix.vectors, found.msix.table_bar, found.msix.pending_offset) == (1, 4, 0x800)


def test_a_root_port_reads_as_lspci_reads_it() -> None:
    found = parse_function(config(ROOT_PORT, CONFIG_BYTES))
    head = found.header
    assert (head.header_type, head.multifunction) == (1, True)
    assert (head.primary_bus, head.secondary_bus, head.subordinate_bus) == (0, 4, 4)
    express = found.express
    assert express is not None
    assert express.port_type == PortType.ROOT_PORT
    link, slot = express.link, express.slot
    assert link is not None
    assert (link.max_speed_mts, link.max_width, link.speed_mts, link.width) == (16000, 32, 2500, 1)
    assert (link.active, link.training, link.surprise_down_reporting) == (True, False, False)
    assert slot is not None
    assert (slot.number, slot.hotplug, slot.surprise, slot.present) == (4, True, True, True)
    assert (slot.power_controller, slot.power_fault, slot.attention_button) == (True, False, True)
    assert found.aer is not None
    assert (found.aer.fatal, found.aer.nonfatal, found.aer.correctable) == ((), (), ())
    assert found.aer.first == ""
    assert found.msix is not None
    assert found.msix.enabled


def test_a_conventional_function_reads_as_lspci_reads_it() -> None:
    found = parse_function(config(EDU, CONVENTIONAL_BYTES))
    assert (found.header.vendor_id, found.header.device_id) == (0x1234, 0x11E8)
    assert found.express is None
    msi = found.msi
    assert msi is not None
    assert (msi.enabled, msi.vectors, msi.wide, msi.maskable) == (False, 1, True, False)


def with_extended(body: bytes) -> bytes:
    """The NVMe device's config space, with another first extended capability and no more."""
    base = bytearray(config(NVME, CONFIG_BYTES))
    base[0x100:] = body.ljust(CONFIG_BYTES - 0x100, b"\0")
    return bytes(base)


def test_errors_that_were_seen_are_named_by_their_severity() -> None:
    # 7.8.4: header 00010001h; status: bits 14 and 18; severity: bit 18 is fatal; correctable:
    # bits 0 and 6; First Error Pointer 18; the log is of the malformed TLP
    body = bytes.fromhex(
        "01 00 01 00  00 40 04 00  00 00 00 00  30 20 06 00  41 00 00 00  00 00 00 00"
        "12 00 00 00  01 00 00 60 0f 00 00 01 00 00 00 02 78 56 34 12"
    )
    aer = parse_function(with_extended(body)).aer
    assert aer is not None
    assert aer.fatal == ("malformed_tlp",)
    assert aer.nonfatal == ("completion_timeout",)
    assert aer.correctable == ("receiver", "bad_tlp")
    assert aer.first == "malformed_tlp"
    assert aer.header_log[:4] == bytes.fromhex("01 00 00 60")


def test_an_error_that_no_specification_of_ours_names_stays_visible() -> None:
    body = bytes.fromhex("01 00 02 00  00 00 00 80  00 00 00 00  00 00 00 00".replace(" ", ""))
    aer = parse_function(with_extended(body)).aer
    assert aer is not None
    assert aer.nonfatal == ("bit_31",)


def test_a_port_that_has_contained_an_error_says_which() -> None:
    # 7.9.15: header 0001001Dh; capability 0; control: enabled for ERR_FATAL (01b);
    # status: triggered, reason 10b (ERR_FATAL), interrupt; source 3:00.0 = 0300h
    dpc = parse_function(with_extended(bytes.fromhex("1d000100 0000 0100 0d00 0003"))).dpc
    assert dpc is not None
    assert (dpc.enabled, dpc.triggered, dpc.reason) == (True, True, "err_fatal")
    assert dpc.source_id == 0x0300


def test_all_ones_are_a_device_that_is_gone() -> None:
    with pytest.raises(ProtocolError, match="no device") as caught:
        parse_function(b"\xff" * CONFIG_BYTES)
    assert caught.value.code == "all_ones"


def test_what_may_be_read_without_privilege_is_the_header_alone() -> None:
    found = parse_function(config(NVME, CONFIG_BYTES)[:HEADER_BYTES])
    assert found.header.device_id == 0x0010
    assert found.capabilities == ()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({0x41: 0x40}, "bad_chain"),  # round in a circle
        ({0x41: 0x10}, "bad_chain"),  # into the header
        ({0x102: 0x41, 0x103: 0x00}, "bad_chain"),  # an extended one into conventional space
        ({0x102: 0x01, 0x103: 0x10}, "bad_chain"),  # and to itself
        ({0x0E: 0x02}, "bad_header_type"),  # CardBus
    ],
)
def test_a_broken_chain_is_told_by_its_place(change: dict[int, int], code: str) -> None:
    broken = bytearray(config(NVME, CONFIG_BYTES))
    for at, value in change.items():
        broken[at] = value
    with pytest.raises(ProtocolError) as caught:
        parse_function(bytes(broken))
    assert caught.value.code == code


def test_a_capability_that_is_cut_off_is_told() -> None:
    whole = bytearray(config(NVME, CONVENTIONAL_BYTES))
    whole[0x34] = 0xFC
    whole[0xFC:] = bytes.fromhex("10 00 02 00")
    with pytest.raises(ProtocolError) as caught:
        parse_function(bytes(whole))
    assert caught.value.code == "short"


def test_a_register_that_is_not_filled_is_a_slip_of_ours() -> None:
    with pytest.raises(ValueError, match="15 bits"):
        register(2, "-:7 a b:7")


@given(st.binary(max_size=300), st.sampled_from([CONFIG_BYTES, CONVENTIONAL_BYTES, HEADER_BYTES]))
def test_any_bytes_parse_or_raise_protocol_error(noise: bytes, size: int) -> None:
    for base in (NVME, CXL_MEMORY, ROOT_PORT):
        mixed = bytearray(config(base, CONFIG_BYTES)[:size])
        for at, byte in enumerate(noise):
            mixed[(0x34 + at * 7) % size] ^= byte
        code = ""
        try:
            parse_function(bytes(mixed))
        except ProtocolError as exc:
            code = exc.code
        assert code in {"", "short", "all_ones", "bad_header_type", "bad_chain"}
