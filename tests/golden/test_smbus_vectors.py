"""The public vectors of MCTP over SMBus and of NVMe-MI, and worked examples of data sheets."""

from typing import Any

import pytest

from protocol.crc import pec8
from protocol.decode import all_ok, decode
from protocol.errors import ProtocolError
from protocol.nvme_mi.message import MessageKind, MiOpcode, NvmeMiMessage, mi_request, wait_ms
from protocol.smbus.mctp import BASELINE_FRAME_BYTES, SmbusFrame
from protocol.smbus.pec import pec_is_good, read_transaction, with_pec
from protocol.smbus.pmbus import Coefficients, VoutFormat, VoutMode, linear11_milli, linear11_word
from tests.golden.test_mctp_vectors import data_of, of

NEGATIVE = {"smbus_neg_bad_command": "bad_command", "smbus_neg_count_mismatch": "bad_count"}


def test_the_packet_error_code_is_that_of_the_crc_catalogue() -> None:
    assert pec8(b"123456789") == 0xF4  # CRC-8/SMBUS


@pytest.mark.parametrize("vector", of("smbus"))
def test_frame_is_taken_and_built_byte_for_byte_or_refused_by_its_reason(
    vector: dict[str, Any],
) -> None:
    data, fields = data_of(vector), vector["fields"]
    if vector["name"] in NEGATIVE:
        with pytest.raises(ProtocolError) as info:
            SmbusFrame.from_bytes(data)
        assert info.value.code == NEGATIVE[vector["name"]]
        return
    frame = SmbusFrame.from_bytes(data)
    assert (frame.dest_address, frame.src_address) == (fields["dest_7bit"], fields["src_7bit"])
    assert frame.packet.hex() == fields["mctp"]
    assert data[-1] == int(fields["pec"], 16)
    assert frame.to_bytes() == data
    assert with_pec(data[:-1]) == data
    assert pec_is_good(data)


@pytest.mark.parametrize("vector", of("smbus"))
def test_frame_is_explained(vector: dict[str, Any]) -> None:
    data, fields = data_of(vector), vector["fields"]
    found = decode(data, "smbus")
    assert isinstance(found, dict)
    if vector["name"] in NEGATIVE:
        assert (found["ok"], found["error"]["code"]) == (False, NEGATIVE[vector["name"]])
        return
    assert all_ok(found)
    assert found == decode(data), "the layer is found without being named"
    shown = found["fields"]
    assert shown["dest_address"] == fields["dest_7bit"]
    assert shown["src_address"] == fields["src_7bit"]
    assert (shown["command"], shown["count"]) == (fields["cmd_code"], fields["byte_count"])
    assert shown["pec"] == int(fields["pec"], 16)
    assert found["inner"]["layer"] == "mctp"
    if "cmd" in fields:
        control = found["inner"]["inner"]["fields"]
        for name in ("cmd", "iid", "cc", "eid", "pool"):
            if name in fields:
                assert control[name] == fields[name]


def test_one_wrong_bit_anywhere_is_a_wrong_frame() -> None:
    good = bytes.fromhex("420f0a41013332c20001020304bb")  # libmctp's
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            SmbusFrame.from_bytes(bytes(bad))


def test_a_baseline_frame_has_73_bytes_and_its_count_is_69() -> None:
    frame = SmbusFrame(dest_address=0x21, src_address=0x20, packet=b"\x01" + bytes(67))
    data = frame.to_bytes()
    assert (len(data), data[2]) == (73, 69)
    assert BASELINE_FRAME_BYTES == 73


@pytest.mark.parametrize("vector", of("nvme_basic"))
def test_a_drives_status_is_explained(vector: dict[str, Any]) -> None:
    data, fields = data_of(vector), vector["fields"]
    found = decode(data, "smbus")
    assert isinstance(found, dict)
    assert all_ok(found)
    assert decode(data) == found
    assert found["fields"]["address"] == int(fields["write_addr"], 16) >> 1
    assert (found["fields"]["command"], found["fields"]["count"]) == (fields["cmd"], fields["len"])
    shown = found["inner"]["fields"]
    assert found["inner"]["layer"] == "nvme_basic"
    assert shown["temp_mdegc"] == fields["ctemp"] * 1000
    assert shown["percentage_drive_life_used"] == fields["pdlu"]
    assert shown["warnings"] == []
    # BFh: 1011 1111: arbitration, ready, functional, no reset needed, both links
    assert (shown["smbus_arbitration"], shown["drive_not_ready"]) == (1, 0)
    assert (shown["drive_functional"], shown["reset_not_required"]) == (1, 1)


def test_a_transaction_is_rebuilt_for_its_code() -> None:
    answer = bytes.fromhex("06bfff1e010000")
    assert with_pec(read_transaction(0x6A, 0, answer)).hex() == "d400d506bfff1e01000010"


@pytest.mark.parametrize("vector", of("nvme_mi"))
def test_nvme_mi_message_is_taken_and_built_byte_for_byte(vector: dict[str, Any]) -> None:
    data, fields = data_of(vector), vector["fields"]
    message = NvmeMiMessage.from_bytes(data)
    assert message.to_bytes() == data
    assert message.kind == MessageKind.MI_COMMAND
    assert data[-4:] == int(fields["mic"], 16).to_bytes(4, "little")
    assert wait_ms(message) == fields.get("wait_ms")


@pytest.mark.parametrize("vector", of("nvme_mi"))
def test_nvme_mi_message_is_explained(vector: dict[str, Any]) -> None:
    data, fields = data_of(vector), vector["fields"]
    found = decode(data, "nvme_mi")
    assert isinstance(found, dict)
    assert all_ok(found)
    assert decode(data) == found
    shown = found["fields"]
    assert shown["mic"] == int(fields["mic"], 16)
    for name in ("ror", "status", "wait_ms"):
        if name in fields:
            assert shown[name] == fields[name]
    if "cdw0_le" in fields:
        assert shown["cdw0"] == int(fields["cdw0_le"], 16)
        assert shown["opcode_name"] == "read_data_structure"
    if "controllers" in fields:
        assert shown["data"] == "020001000200"
    cut = decode(data[:-1], "nvme_mi")
    assert isinstance(cut, dict)
    assert not cut["ok"]


def test_one_wrong_bit_anywhere_is_a_wrong_message() -> None:
    good = bytes.fromhex("8488000001000a00ca0c6345")  # nvmemi_resp_more_processing
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProtocolError):
            NvmeMiMessage.from_bytes(bytes(bad))


def test_reading_the_list_of_controllers_is_libnvmes_request() -> None:
    request = mi_request(MiOpcode.READ_DATA_STRUCTURE, cdw0=2 << 24)
    assert request.to_bytes().hex() == "84080000000000000000000200000000badf2477"


# --- PMBus: the examples that regulators' data sheets give for these formats ---


def test_linear11_of_a_data_sheet() -> None:
    # LTC3880 data sheet, table "data formats": 9807h is 7 * 2**-13, 854e-6
    assert linear11_milli(bytes.fromhex("0798")) == 1
    # E367h is 871 * 2**-4 = 54.4375
    assert linear11_milli(bytes.fromhex("67e3")) == 54_438
    # 7C00h, the most negative there is: -1024 * 2**15
    assert linear11_milli(bytes.fromhex("007c")) == -1024 * 2**15 * 1000


def test_linear16_of_a_data_sheet() -> None:
    # LTC3880: 4C00h with VOUT_MODE 13h (exponent -13) is 19456 * 2**-13 = 2.375 V
    mode = VoutMode.from_bytes(b"\x13")
    assert (mode.format, mode.parameter) == (VoutFormat.ULINEAR16, -13)
    assert mode.millivolts(bytes.fromhex("004c")) == 2375
    assert mode.word(2375).hex() == "004c"


def test_direct_of_a_data_sheet() -> None:
    # ADM1275 data sheet, "PMBus direct format": m = 807, b = 20475, R = -1 for currents at 20 mV:
    # a reading Y is X = (Y * 10 - 20475) / 807
    current = Coefficients(m=807, b=20475, r=-1)
    assert current.milli((3000).to_bytes(2, "little")) == 11_803  # 9525 / 807 = 11.803
    assert Coefficients.from_bytes(bytes.fromhex("2703fb4fff")) == current


def test_the_smallest_and_the_largest_of_linear11_are_built() -> None:
    assert linear11_word(0).hex() == "0080"
    assert linear11_word(1023 * 2**15 * 1000).hex() == "ff7b"
    with pytest.raises(ValueError, match="do not fit"):
        linear11_word(1024 * 2**15 * 1000)
