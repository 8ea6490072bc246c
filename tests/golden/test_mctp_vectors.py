"""Every public MCTP vector of the layers that we speak. Source and origin stand in the file.

The file names its layers in its own way: `LAYERS` maps them to ours, so that a layer that the
file gains makes a test fail until somebody decides about it.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from protocol.crc import crc32c, fcs16, fcs16_x25
from protocol.cxl.generic import Identify
from protocol.cxl.message import from_mctp, to_mctp
from protocol.decode import all_ok, decode, decode_packets
from protocol.errors import ProtocolError
from protocol.mctp.control import (
    AllocateEidsResponse,
    ControlMessage,
    GetEidResponse,
    GetTypesResponse,
    GetVdmResponse,
    GetVersionRequest,
    GetVersionResponse,
    SetEidRequest,
    SetEidResponse,
    match_response,
)
from protocol.mctp.fragment import fragment
from protocol.mctp.packet import build_packet, parse_packet
from protocol.mctp.reassembly import Reassembler
from protocol.mctp.serial import SerialDeframer, frame_serial
from protocol.mctp.serial_frame import Dialect, framer

SHARED = Path(os.environ.get("APF_SHARED") or Path(__file__).parents[3] / "shared")
FILE = SHARED / "vectors" / "mctp_vectors.json"

LATER = "later"
LAYERS = {
    "crc": "crc",
    "mctp": "mctp",
    "mctp-control": "control",  # from the control header on, without the type byte
    "mctp-fragmentation": "fragmentation",
    "mctp-reassembly": "reassembly",  # packets separated by "|"
    "serial-dsp0253": "serial",
    "vdm-pci": "vendor",
    "cxl-cci": "cci",
    "i3c-dsp0233": LATER,
    "nvme-basic-smbus": "nvme_basic",
    "nvme-mi": "nvme_mi",
    "oxide-mgs": LATER,
    "pldm": LATER,
    "pldm-fw": LATER,
    "smbus-dsp0237": "smbus",
    "usb-dsp0283": LATER,
}
COUNTS = {
    "crc": 3,
    "mctp": 5,
    "control": 13,
    "fragmentation": 6,
    "reassembly": 8,
    "serial": 24,
    "vendor": 3,
    "smbus": 8,  # test_smbus_vectors
    "nvme_basic": 1,
    "nvme_mi": 4,
    "cci": 6,
}

VECTORS: list[dict[str, Any]] = json.loads(FILE.read_text()) if FILE.is_file() else []


def of(layer: str, **fields: str) -> Any:
    """The vectors of one of our layers (with these fields), as the parameters of a test."""
    found = [
        vector
        for vector in VECTORS
        if LAYERS.get(vector["layer"]) == layer and fields.items() <= vector["fields"].items()
    ]
    if not found:
        reason = f"{FILE} is absent: set APF_SHARED"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]
    return [pytest.param(vector, id=vector["name"]) for vector in found]


def data_of(vector: dict[str, Any]) -> bytes:
    return bytes.fromhex(vector["hex"])


@pytest.mark.skipif(not VECTORS, reason=f"{FILE} is absent: set APF_SHARED")
def test_every_layer_of_the_file_is_known_and_none_of_ours_has_lost_vectors() -> None:
    assert {vector["layer"] for vector in VECTORS} <= LAYERS.keys()
    for layer, count in COUNTS.items():
        assert sum(LAYERS[vector["layer"]] == layer for vector in VECTORS) >= count


@pytest.mark.parametrize("vector", of("crc"))
def test_sum(vector: dict[str, Any]) -> None:
    sums = {"crc16_mcrf4xx": fcs16, "crc16_x25": fcs16_x25, "crc32c_nvme_mic": crc32c}
    sum_of = sums[vector["name"].removesuffix("_check")]
    assert sum_of(data_of(vector)) == int(vector["fields"]["value"], 16)


# --- serial ---

DIALECTS = {"mcrf4xx": "A", "x25": "B"}  # B and C are the same bytes in all of them
NEGATIVE = {  # drop reason of the deframer, error code of the decoder
    "serial_neg_bad_fcs": ("bad_fcs", "bad_fcs"),
    "serial_neg_bad_revision": ("bad_revision", "bad_revision"),
    "serial_neg_flag_in_body": ("flag_in_body", "flag_in_body"),
    "serial_neg_invalid_escape": ("bad_escape", "bad_escape"),
    "serial_neg_zero_length": ("dialect_b", "empty"),  # its FCS is that of dialect B
}
RESYNC_PACKET = "010908e8008002"


@pytest.mark.parametrize("vector", of("serial"))
def test_serial_frame_is_deframed_or_dropped_by_its_reason(vector: dict[str, Any]) -> None:
    deframer = SerialDeframer()
    got = [packet.hex() for packet in deframer.feed(data_of(vector))]
    name, fields = vector["name"], vector["fields"]
    if name in NEGATIVE:
        assert (got, dict(deframer.drops)) == ([], {NEGATIVE[name][0]: 1})
    elif vector["check"] == "resync":
        assert (got, dict(deframer.drops)) == ([RESYNC_PACKET], {})
    elif fields["fcs_variant"] == "mcrf4xx":
        assert (got, dict(deframer.drops)) == ([fields["packet"]], {})
    else:
        assert (got, dict(deframer.drops)) == ([], {"dialect_b": 1})


@pytest.mark.parametrize("vector", of("serial"))
def test_serial_frame_is_explained(vector: dict[str, Any]) -> None:
    found = decode(data_of(vector), "serial")
    assert isinstance(found, dict)
    fields = vector["fields"]
    if vector["name"] in NEGATIVE:
        assert not found["ok"]
        assert found["error"]["code"] == NEGATIVE[vector["name"]][1]
        return
    assert found["ok"]
    if vector["check"] == "resync":
        assert found["fields"]["packet"] == RESYNC_PACKET
        return
    assert found["fields"]["packet"] == fields["packet"]
    assert found["fields"]["fcs"] == int(fields["fcs"], 16)
    assert found["fields"]["dialect"] == DIALECTS[fields["fcs_variant"]]
    names = ("dest_eid", "src_eid", "som", "eom", "seq", "to", "tag", "type")
    for name in names:
        if name in fields:
            assert found["inner"]["fields"][name] == fields[name]
    if found["inner"]["inner"] is not None:
        control = found["inner"]["inner"]["fields"]
        for name in ("iid", "cmd", "cc", "op", "eid", "medium"):
            if name in fields:
                assert control[name] == fields[name]


@pytest.mark.parametrize("vector", of("serial", fcs_variant="mcrf4xx"))
def test_serial_frame_of_our_dialect_is_built_byte_for_byte(vector: dict[str, Any]) -> None:
    assert frame_serial(bytes.fromhex(vector["fields"]["packet"])) == data_of(vector)


SPOKEN = {"mcrf4xx": {Dialect.A}, "x25": {Dialect.B, Dialect.C}}  # no vector tells B from C


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("vector", of("serial"))
def test_serial_frame_is_taken_on_a_line_of_its_own_dialect_only(
    vector: dict[str, Any], dialect: Dialect
) -> None:
    name, fields = vector["name"], vector["fields"]
    deframer = SerialDeframer(dialect=dialect)
    got = [packet.hex() for packet in deframer.feed(data_of(vector))]
    assert deframer.dialect is dialect
    if name in NEGATIVE:
        own = name == "serial_neg_zero_length" and dialect in SPOKEN["x25"]
        assert (got, dict(deframer.drops)) == ([], {"empty" if own else NEGATIVE[name][0]: 1})
        return
    spoken = SPOKEN[fields.get("fcs_variant", "mcrf4xx")]  # the resync vector has no variant
    packet = fields.get("packet", RESYNC_PACKET)
    if dialect in spoken:
        assert (got, dict(deframer.drops)) == ([packet], {})
        if vector["check"] != "resync":
            assert framer(dialect)(bytes.fromhex(packet)) == data_of(vector)
    else:
        reason = "dialect_a" if Dialect.A in spoken else "dialect_b"
        assert (got, dict(deframer.drops)) == ([], {reason: 1})


@pytest.mark.parametrize("dialect", Dialect)
@pytest.mark.parametrize("vector", of("serial"))
def test_serial_frame_that_comes_twice_moves_the_line_if_and_only_if_it_is_a_good_one(
    vector: dict[str, Any], dialect: Dialect
) -> None:
    fields = vector["fields"]
    deframer = SerialDeframer(dialect=dialect, adopt=lambda _dialect, _frames: True)
    got = [packet.hex() for packet in deframer.feed(data_of(vector) * 3)]
    if vector["name"] in NEGATIVE:
        assert (got, deframer.dialect) == ([], dialect)
        return
    spoken = SPOKEN[fields.get("fcs_variant", "mcrf4xx")]
    packet = fields.get("packet", RESYNC_PACKET)
    taken = 3 if dialect in spoken else 2  # the second one moves the line and is taken
    assert got == [packet] * taken
    assert deframer.dialect in spoken


# --- packets and messages ---


@pytest.mark.parametrize("vector", of("mctp"))
def test_packet_header(vector: dict[str, Any]) -> None:
    data, fields = data_of(vector), vector["fields"]
    if fields.get("accept") is False:
        with pytest.raises(ProtocolError) as info:
            parse_packet(data)
        assert info.value.code == "bad_version"
        found = decode(data, "mctp")
        assert isinstance(found, dict)
        assert (found["ok"], found["error"]["code"]) == (False, "bad_version")
        return
    packet = parse_packet(data)
    assert build_packet(packet) == data
    found = decode(data, "mctp")
    assert isinstance(found, dict)
    assert all_ok(found)
    if "expect" in fields:  # not delivered where the only local EID is 8
        reassembler = Reassembler(local_eid=8)
        assert reassembler.feed(data + b"\0", link="x", now_ns=0) is None
        assert reassembler.drops == {"not_local": 1}
    if "ver" in fields:
        names = {"dest": "dest_eid", "src": "src_eid", "ver": "version"}
        shown = found["fields"] | found["inner"]["fields"]
        assert {name: shown[names.get(name, name)] for name in fields} == fields


@pytest.mark.parametrize("vector", of("fragmentation"))
def test_fragment_count(vector: dict[str, Any]) -> None:
    fields = vector["fields"]
    packets = fragment(
        bytes(fields["message_len_incl_type"]),
        dest_eid=8,
        src_eid=9,
        tag=0,
        to=True,
        unit_bytes=fields["link_mtu_incl_header"] - 4,
    )
    assert len(packets) == fields["packets"]
    assert max(len(packet) for packet in packets) == fields["link_mtu_incl_header"]


@pytest.mark.parametrize("vector", of("reassembly"))
def test_reassembly(vector: dict[str, Any]) -> None:
    fields = vector["fields"]
    packets = [bytes.fromhex(part) for part in vector["hex"].split("|")]
    assert len(packets) == fields["packets"]
    reassembler = Reassembler(local_eid=fields["dest"])
    got = [reassembler.feed(packet, link="x", now_ns=0) for packet in packets]
    messages = [message for message in got if message is not None]
    shown = decode_packets(packets)
    if fields["expect_message_len"] == 0:
        assert messages == []
        wanted = {"bad_seq": 1} if packets[0][3] & 0x80 else {"no_start": 1}
        assert dict(reassembler.drops) == wanted
        assert all_ok(shown) is ("no_start" in wanted)
        return
    assert [len(message.data) for message in messages] == [fields["expect_message_len"]]
    assert messages[0].src_eid == fields["src"]
    assert not reassembler.drops
    assert all(node["ok"] for node in shown)


# --- control ---

CONTROL: dict[str, tuple[type[Any], dict[str, Any]]] = {  # what each body says, by hand
    "ctrl_allocate_eids_resp": (AllocateEidsResponse, {"status": 0, "pool": 4, "first": 9}),
    "ctrl_get_eid_resp": (GetEidResponse, {"eid": 187, "type_byte": 0x9C, "medium": 204}),
    "ctrl_get_types_resp": (GetTypesResponse, {"types": (170, 187)}),
    "ctrl_get_vdm_iana_resp": (
        GetVdmResponse,
        {"next_selector": 0x22, "format": 1, "vendor": 0xAABB4455, "cmd_set": 0x6677},
    ),
    "ctrl_get_vdm_pci_resp": (
        GetVdmResponse,
        {"next_selector": 0x22, "format": 0, "vendor": 0x4455, "cmd_set": 0x6677},
    ),
    "ctrl_get_version_req": (GetVersionRequest, {"type_queried": 1}),
    "ctrl_get_version_resp": (
        GetVersionResponse,
        {"entries": (b"\xdd\xcc\xbb\xaa", b"\xff\xee\x22\x11")},
    ),
    "ctrl_set_eid_req": (SetEidRequest, {"op": 2, "eid": 52}),
    "ctrl_set_eid_resp": (
        SetEidResponse,
        {"assignment_status": 2, "allocation_status": 1, "eid": 51, "pool": 68},
    ),
    "ctrl_vdm_iana_be": (
        GetVdmResponse,
        {"next_selector": 255, "format": 1, "vendor": 0xABCDEF12, "cmd_set": 13398},
    ),
    "ctrl_vdm_pci_be": (
        GetVdmResponse,
        {"next_selector": 255, "format": 0, "vendor": 4660, "cmd_set": 22136},
    ),
}


@pytest.mark.parametrize("vector", of("control"))
def test_control_message(vector: dict[str, Any]) -> None:
    data, fields, name = data_of(vector), vector["fields"], vector["name"]
    message = ControlMessage.from_bytes(b"\0" + data)
    assert not message.rq  # even in the two that Cerberus calls requests
    assert message.to_bytes() == b"\0" + data
    for key in ("iid", "cmd", "cc"):
        if key in fields:
            assert getattr(message, key) == fields[key]
    if name == "ctrl_stale_wrong_cmd":
        assert match_response(bytes.fromhex("00 85 02"), b"\0" + data) is None
        assert match_response(bytes.fromhex("00 85 05"), b"\0" + data) is not None
    elif name == "ctrl_unsupported_cc_only":
        assert message.body == b""
    else:
        kind, values = CONTROL[name]
        body = kind.from_body(data[2:] if name.endswith("_req") else message.body)
        assert body == kind(**values)


@pytest.mark.parametrize("vector", of("control"))
def test_control_message_is_explained(vector: dict[str, Any]) -> None:
    found = decode(data_of(vector), "control")
    assert isinstance(found, dict)
    assert all_ok(found)
    shown, name = found["fields"], vector["name"]
    if name in CONTROL:
        if name.endswith("_req"):
            shown = shown["as_request"]
        for key, value in CONTROL[name][1].items():
            wanted = list(value) if isinstance(value, tuple) else value
            if key == "entries":
                wanted = [entry.hex() for entry in value]
            assert shown[key] == wanted


@pytest.mark.parametrize("vector", of("vendor"))
def test_vendor_defined_message(vector: dict[str, Any]) -> None:
    found = decode(data_of(vector))
    assert isinstance(found, dict)
    assert (found["layer"], found["ok"], found["fields"]["type"]) == ("vendor", True, 0x7E)
    fields = vector["fields"]
    vendor = fields.get("vendor") or "0x" + fields["vendor_wire"].replace(" ", "")
    assert found["fields"]["vendor"] == int(vendor, 16)
    assert found["fields"]["payload"] == vector["hex"][6:]
    as_ours = decode(data_of(vector), "apf")
    assert isinstance(as_ours, dict)
    assert as_ours["error"]["code"] == "bad_vendor"


# --- CXL's component command interface ---

CCI_NAMES = {"0x4200": "get_health_info", "0x0001": "identify", "0x5101": "get_physical_port_state"}


@pytest.mark.parametrize("vector", of("cci"))
def test_cci_message_is_explained(vector: dict[str, Any]) -> None:
    data, want = data_of(vector), vector["fields"]
    if vector["name"] == "cci_identify_resp_payload":
        body = Identify.from_bytes(data)
        assert hex(body.vendor_id) == want["vendor"]
        assert hex(body.device_id) == want["device"]
        assert hex(body.subsystem_vendor_id) == want["subsys_vendor"]
        assert hex(body.subsystem_id) == want["subsys"]
        assert hex(body.serial) == want["serial"]
        assert f"2^{body.message_max_log2}" == want["max_msg_size"]
        assert int(body.component_type) == want["component"]
        assert body.to_bytes() == data
        return
    kind, message = from_mctp(data)
    assert to_mctp(message, kind) == data
    for given in (None, "cci"):
        shown = decode(data, given)
        assert isinstance(shown, dict)
        assert (shown["layer"], all_ok(shown)) == ("cci", True)
        fields = shown["fields"]
        assert fields["type"] == want.get("mctp_type", kind)
        assert fields["category_name"] == want.get("category", fields["category_name"])
        assert fields["opcode"] == int(want.get("opcode", hex(fields["opcode"])), 16)
        assert fields["opcode_name"] == CCI_NAMES.get(want.get("opcode"), fields["opcode_name"])
        assert fields["length"] == want.get("payload_len", fields["length"])
        assert fields["tag"] == want.get("tag", fields["tag"])
        if "ports" in want:
            assert fields["body"]["ports"] == want["ports"]
        if "inner" in want:
            assert fields["body"]["port_or_ld"] == want["port"]
            assert fields["body"]["target"] == want["target_type"]
            assert shown["inner"]["fields"]["opcode_name"] == want["inner"]
