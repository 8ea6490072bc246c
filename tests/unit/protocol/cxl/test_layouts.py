"""Payloads byte for byte from the tables of the specification, and what any bytes do to them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.cxl.codes import Opcode, opcode_name, return_code_name
from protocol.cxl.generic import BackgroundStatus, FirmwareInfo
from protocol.cxl.logs import (
    CEL_UUID,
    CommandEffect,
    CommandEffects,
    Effect,
    GetLogRequest,
    SupportedLog,
    SupportedLogs,
)
from protocol.cxl.memory import (
    GetLsaRequest,
    HealthInfo,
    IdentifyMemoryDevice,
    MediaStatus,
    PartitionInfo,
    SetLsaRequest,
    SetPartitionRequest,
)
from protocol.cxl.registry import REQUESTS, RESPONSES
from protocol.cxl.switch import (
    Binding,
    BindRequest,
    ConnectedMode,
    ConnectedType,
    GetVcsInfoRequest,
    IdentifySwitch,
    Ltssm,
    PortConfig,
    PortState,
    PortStates,
    UnbindOption,
    UnbindRequest,
    VcsInfo,
    VcsInfos,
    Vppb,
)
from protocol.errors import ProtocolError

# What QEMU 7.2's type 3 device answers (hw/cxl/cxl-mailbox-utils.c): 256 MiB, persistent only
QEMU_IDENTIFY = bytes.fromhex(
    "42574649 5245 20 56 45 52 53 49 4f 4e 00 00"
    "0100000000000000 0000000000000000 0100000000000000 0000000000000000"
    "0000 0000 0000 0000 00001000 000000 0000 00 00"
)


def test_identify_of_cxl_2_has_no_dynamic_capacity_log() -> None:
    assert len(QEMU_IDENTIFY) == 0x43
    found = IdentifyMemoryDevice.from_bytes(QEMU_IDENTIFY)
    assert (found.total_units, found.persistent_only_units, found.label_bytes) == (1, 1, 1 << 20)
    assert found.total_bytes == 256 << 20
    assert found.dynamic_capacity_log_records is None
    assert found.to_bytes() == QEMU_IDENTIFY


def test_identify_of_cxl_3_has_one_and_what_comes_later_is_kept() -> None:
    found = IdentifyMemoryDevice.from_bytes(QEMU_IDENTIFY + bytes.fromhex("0800 aabb"))
    assert found.dynamic_capacity_log_records == 8
    assert found.extra == b"\xaa\xbb"
    assert found.to_bytes() == QEMU_IDENTIFY + bytes.fromhex("0800 aabb")


def test_partition_info() -> None:  # table 8-129
    data = bytes.fromhex("0400000000000000 0800000000000000 0c00000000000000 0000000000000000")
    found = PartitionInfo.from_bytes(data)
    assert (found.active_volatile_units, found.active_persistent_units) == (4, 8)
    assert (found.next_volatile_units, found.next_persistent_units) == (12, 0)
    assert found.to_bytes() == data


def test_set_partition_at_once() -> None:  # table 8-130
    request = SetPartitionRequest(volatile_units=3, immediate=True)
    assert request.to_bytes() == bytes.fromhex("0300000000000000 01")


def test_label_requests() -> None:  # tables 8-131, 8-132
    assert GetLsaRequest(offset=0x100, length=16).to_bytes() == bytes.fromhex("00010000 10000000")
    request = SetLsaRequest(offset=0x100, data=b"abc")
    assert request.to_bytes() == bytes.fromhex("00010000 00000000 616263")
    assert SetLsaRequest.from_bytes(request.to_bytes()) == request


def test_health_below_zero_and_without_a_reading() -> None:  # table 8-133
    data = bytes.fromhex("05 06 21 ff f6ff 01000000 02000000 03000000")
    found = HealthInfo.from_bytes(data)
    assert (found.temp_degc, found.media_status) == (-10, MediaStatus.PERSISTENCY_LOSS_IMMINENT)
    assert (found.life_used_percent, found.life_level) == (0xFF, 1)
    assert (found.volatile_errors_warning, found.persistent_errors_warning) == (False, True)
    assert found.to_bytes() == data


def test_a_media_status_of_the_future_stays_visible() -> None:
    data = bytes.fromhex("00 2a 00 00 0000 00000000 00000000 00000000")
    assert HealthInfo.from_bytes(data).media_status == 0x2A
    assert HealthInfo.from_bytes(data).to_bytes() == data


def test_supported_logs_and_the_command_effects_log() -> None:  # tables 8-70, 8-71, 8-75
    data = bytes.fromhex("0100 000000000000 0da9c0b5bf414b788f7996b1623b3f17 18000000")
    found = SupportedLogs.from_bytes(data)
    assert found.logs == (SupportedLog(uuid=CEL_UUID, size_bytes=24),)
    assert found.to_bytes() == data
    request = GetLogRequest(uuid=CEL_UUID, offset=4, length=8)
    assert request.to_bytes() == CEL_UUID + bytes.fromhex("04000000 08000000")
    log = CommandEffects.from_bytes(bytes.fromhex("0340 0000 0341 0600"))
    change = Effect.CONFIG_CHANGE_IMMEDIATE | Effect.DATA_CHANGE_IMMEDIATE
    assert log.commands[1] == CommandEffect(opcode=Opcode.SET_LSA, effect=change)
    assert log.has(Opcode.SET_LSA)
    assert not log.has(Opcode.GET_LSA)
    assert log.to_bytes() == bytes.fromhex("0340 0000 0341 0600")


def test_half_an_entry_of_the_command_effects_log_is_refused() -> None:
    with pytest.raises(ProtocolError, match="multiple of 4") as caught:
        CommandEffects.from_bytes(bytes(6))
    assert caught.value.code == "short"


def test_a_count_beyond_what_came_is_refused() -> None:
    with pytest.raises(ProtocolError) as caught:
        SupportedLogs.from_bytes(bytes.fromhex("0200 000000000000") + CEL_UUID + bytes(4))
    assert caught.value.code == "short"


def test_background_status() -> None:  # table 8-38
    found = BackgroundStatus.from_bytes(bytes.fromhex("65 00 0152 0000 0000"))
    assert (found.running, found.complete_percent, found.opcode) == (True, 50, Opcode.BIND_VPPB)


def test_firmware_slots() -> None:  # table 8-63
    data = bytes.fromhex("02 11 01") + bytes(13) + b"1.0".ljust(16, b"\0") + bytes(48)
    found = FirmwareInfo.from_bytes(data)
    assert (found.slots, found.active_slot, found.staged_slot) == (2, 1, 2)
    assert len(found.revisions) == 4
    assert found.to_bytes() == data


def test_identify_switch() -> None:  # table 7-16
    data = bytes.fromhex("01 00 12 02 03000280") + bytes(28)
    data += bytes.fromhex("01") + bytes(31) + bytes.fromhex("2000 0400 0a")
    found = IdentifySwitch.from_bytes(data)
    assert (found.ports, found.vcs_count, found.vppbs, found.bound_vppbs) == (18, 2, 32, 4)
    assert [port for port in range(256) if found.active_ports >> port & 1] == [0, 1, 17, 31]
    assert found.hdm_decoders == 10
    assert found.to_bytes() == data


def test_port_state() -> None:  # tables 7-18, 7-19: a GAE bit and a reserved one are set
    block = bytes.fromhex("03 13 02 00 04 03 10 08 1f 05 04 04 00 0400 10")
    found = PortStates.from_bytes(bytes.fromhex("01 000000") + block)
    assert found.ports == (
        PortState(
            port=3,
            config=PortConfig.DOWNSTREAM,
            connected_mode=ConnectedMode.FLIT_68B,
            connected_type=ConnectedType.TYPE3_SLD,
            cxl_modes=3,
            max_width=16,
            width=8,
            speeds_vector=0x1F,
            max_speed=5,
            speed=4,
            ltssm=Ltssm.L0,
            first_lane=0,
            link_flags=4,
            ld_count=16,
        ),
    )


def test_bind_and_unbind() -> None:  # tables 7-33, 7-34
    assert BindRequest(vcs=1, vppb=2, port=3).to_bytes() == bytes.fromhex("01 02 03 00 ffff")
    assert BindRequest(vcs=1, vppb=2, port=3, ld=5).to_bytes() == bytes.fromhex("010203000500")
    request = UnbindRequest(vcs=1, vppb=2, option=UnbindOption.SURPRISE_HOT_REMOVE)
    assert request.to_bytes() == bytes.fromhex("01 02 02")


def test_vcs_info_has_as_many_entries_as_the_request_allows() -> None:  # tables 7-31, 7-32
    data = bytes.fromhex("02 000000 00 01 00 03 02 04 ff 00 03 05 01 00 01 00 09 01 00 00 ff 00")
    request = GetVcsInfoRequest(first_vppb=0, vppb_limit=2, vcs=(0, 1))
    assert request.to_bytes() == bytes.fromhex("00 02 02 00 01")
    found = VcsInfos.from_bytes(data, request)
    bound = Vppb(binding=Binding.PHYSICAL_PORT, port=4, ld=0xFF)
    assert found.vcs[0] == VcsInfo(
        vcs=0,
        state=1,
        upstream_port=0,
        vppbs=3,
        listed=(bound, Vppb(binding=Binding.LD, port=5, ld=1)),
    )
    assert found.vcs[1].listed == (Vppb(binding=Binding.UNBOUND, port=0, ld=0xFF),)
    assert found.to_bytes() == data
    later = GetVcsInfoRequest(first_vppb=2, vppb_limit=9, vcs=(0,))
    assert len(VcsInfos.from_bytes(b"\x01" + data[1:12], later).vcs[0].listed) == 1


@given(data=st.binary(max_size=40), limit=st.integers(1, 8))
def test_any_bytes_are_vcs_information_or_refused(data: bytes, limit: int) -> None:
    request = GetVcsInfoRequest(vppb_limit=limit, vcs=(0,))
    with contextlib.suppress(ProtocolError):
        VcsInfos.from_bytes(data, request)


@given(
    kind=st.sampled_from([*REQUESTS.values(), *RESPONSES.values(), CommandEffects]),
    data=st.binary(max_size=300),
)
def test_any_bytes_are_a_payload_or_a_protocol_error(kind: type, data: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        found = kind.from_bytes(data)  # type: ignore[attr-defined]
        again = kind.from_bytes(found.to_bytes())  # type: ignore[attr-defined]
        assert again == found, "reserved bits may be lost, nothing else"


def test_a_value_out_of_range_is_an_error_of_ours() -> None:
    with pytest.raises(ValueError, match="BindRequest"):
        BindRequest(vcs=256, vppb=0, port=0).to_bytes()


def test_codes_have_names_and_a_vendors_opcodes_are_told_from_unknown_ones() -> None:
    assert opcode_name(0x4200) == "get_health_info"
    assert opcode_name(0xC001) == "vendor_c001"
    assert opcode_name(0x7777) is None
    assert return_code_name(0x17) == "invalid_log"
    assert return_code_name(0x99) is None
