"""Check values of the CRC catalogue, and the text of a ProtocolError."""

from protocol.crc import crc32c, fcs16, fcs16_from, fcs16_seed0, fcs16_x25, pec8
from protocol.errors import ProtocolError

CHECK = b"123456789"


def test_every_sum_has_the_check_value_of_the_catalogue() -> None:
    assert fcs16(CHECK) == 0x6F91
    assert fcs16_x25(CHECK) == 0x906E
    assert fcs16_seed0(CHECK) == 0x2189
    assert pec8(CHECK) == 0xF4
    assert crc32c(CHECK) == 0xE3069283


def test_a_sum_may_go_on_from_an_earlier_one() -> None:
    assert crc32c(CHECK[4:], crc32c(CHECK[:4])) == 0xE3069283
    assert crc32c(CHECK, 0) == 0xE3069283
    assert fcs16_from(CHECK[4:], fcs16(CHECK[:4])) == 0x6F91


def test_a_protocol_error_carries_the_evidence_and_caps_the_peers_bytes() -> None:
    error = ProtocolError("odd\n  thing", frame=bytes(40), code="odd", offset=3)
    assert str(error) == "odd thing [40 B: " + " ".join(["00"] * 16) + "]"
    assert (error.detail, error.code, error.offset) == ("odd thing", "odd", 3)
    assert error.frame == bytes(40)
