"""FRU images: against another implementation's bytes, the specification's example, and damage.

The golden image was written by frutool (PyPI package `fru`, 4.1.0), which knows nothing of us.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import ProtocolError
from protocol.fru import (
    BoardInfo,
    ChassisInfo,
    FieldType,
    Fru,
    FruField,
    FruHeader,
    MultiRecord,
    ProductInfo,
    pack_six_bit,
    unpack_six_bit,
)

FRUTOOL = bytes.fromhex(
    "010001040c0000ee"
    "010317c743482d31303030c54330303031c47261636bc1b6"
    "010800c0e1e4cd4578616d706c6520576f726b73cf5065726970686572616c2063617264c6422d30303432"
    "c750552d31362d41c3662d31c1000000000000005d"
    "010719cd4578616d706c6520576f726b73c25055c550552d3136c57265762041c3502d37c3412d39c3662d32"
    "c36f6e65c374776fc10000ec"
)
text = FruField.of
WORKS = text("Example Works")
SAME = Fru(
    chassis=ChassisInfo(
        chassis_type=23,
        part_number=text("CH-1000"),
        serial_number=text("C0001"),
        custom=(text("rack"),),
    ),
    board=BoardInfo(
        mfg_minutes=15_000_000,
        manufacturer=WORKS,
        product_name=text("Peripheral card"),
        serial_number=text("B-0042"),
        part_number=text("PU-16-A"),
        fru_file_id=text("f-1"),
    ),
    product=ProductInfo(
        language=25,
        manufacturer=WORKS,
        product_name=text("PU"),
        part_number=text("PU-16"),
        version=text("rev A"),
        serial_number=text("P-7"),
        asset_tag=text("A-9"),
        fru_file_id=text("f-2"),
        custom=(text("one"), text("two")),
    ),
)


def test_another_implementations_image_is_read_and_built_byte_for_byte() -> None:
    assert Fru.from_bytes(FRUTOOL) == SAME
    assert Fru.from_bytes(FRUTOOL.ljust(256, b"\xff")) == SAME, "an EEPROM's rest may follow"
    assert SAME.to_bytes() == FRUTOOL


def test_the_specifications_example_of_packed_ascii() -> None:
    # IPMI FRU 1.0 rev 1.3, 13.3: "IPMI" is 29h DCh A6h
    assert pack_six_bit("IPMI").hex() == "29dca6"
    assert unpack_six_bit(bytes.fromhex("29dca6")) == "IPMI"


def test_the_date_of_manufacture_counts_from_1996() -> None:
    # 2024-07-08 16:00 UTC is 15,000,000 minutes after 1996-01-01 00:00 UTC
    assert BoardInfo(mfg_minutes=15_000_000).mfg_unix_s == 1_720_454_400
    assert BoardInfo().mfg_unix_s is None


def test_fields_say_what_they_say_in_each_encoding() -> None:
    assert FruField(type=FieldType.BCD_PLUS, data=bytes.fromhex("12a3bc")).text() == "12 3-."
    assert FruField(type=FieldType.BINARY, data=b"\x01\xfe").text() == "01fe"
    wide = FruField(type=FieldType.TEXT, data="Wörk".encode("utf-16-le"))
    assert wide.text(language=7) == "Wörk"
    assert FruField(type=FieldType.TEXT, data="Wörk".encode("latin-1")).text(25) == "Wörk"


def test_one_character_is_packed_because_its_head_would_be_the_end_mark() -> None:
    field = text("x")
    assert field.type is FieldType.SIX_BIT
    assert field.text() == "X"
    with pytest.raises(ValueError, match="end mark"):
        FruField(type=FieldType.TEXT, data=b"x").to_bytes()


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ((7, 0xEF), "bad_checksum", "common header: checksum 0xef, want 0xee"),
        ((12, 0x42), "bad_checksum", "chassis area"),
        ((40, 0x00), "bad_checksum", "board area"),
        ((150, 0x01), "bad_checksum", "product area"),
        ((0, 0x02), "bad_format", "common header"),
        ((8, 0x02), "bad_format", "chassis area: format 0x02"),
        ((9, 0x00), "bad_length", "chassis area: its length is 0"),
        ((9, 0x04), "overlap", "chassis area: 32 bytes from 8, room until 32"),
        ((97, 0xFF), "short", "product area: 2040 bytes"),
    ],
)
def test_damage_is_named_by_its_area(change: tuple[int, int], code: str, words: str) -> None:
    image = bytearray(FRUTOOL)
    image[change[0]] = change[1]
    with pytest.raises(ProtocolError) as info:
        Fru.from_bytes(bytes(image))
    assert (info.value.code, words in str(info.value)) == (code, True), str(info.value)


@pytest.mark.parametrize("blank", [b"\xff" * 256, bytes(256)])
def test_an_eeprom_that_was_never_written_is_told_from_a_damaged_one(blank: bytes) -> None:
    with pytest.raises(ProtocolError) as info:
        Fru.from_bytes(blank)
    assert info.value.code == "blank"


def resummed(area: bytes) -> bytes:
    return area[:-1] + bytes([-sum(area[:-1]) & 0xFF])


def test_fields_that_go_beyond_their_area_or_never_end_are_refused() -> None:
    area = SAME.chassis.to_bytes()  # type: ignore[union-attr]
    cut = bytearray(area)
    cut[3] = 0xFF  # 63 characters
    with pytest.raises(ProtocolError) as info:
        ChassisInfo.from_bytes(resummed(bytes(cut)))
    assert (info.value.code, info.value.offset) == ("cut", 3)
    endless = bytearray(area.replace(b"\xc1", b"\xc0"))
    with pytest.raises(ProtocolError) as info:
        ChassisInfo.from_bytes(resummed(bytes(endless)))
    assert info.value.code == "no_end"
    few = bytes.fromhex("01010200c1000000")
    with pytest.raises(ProtocolError) as info:
        ChassisInfo.from_bytes(resummed(few))
    assert info.value.code == "few"


def test_multirecords_and_the_internal_area_come_back() -> None:
    fru = Fru(
        internal=b"\x01\x02\x03\x04\x05\x06\x07",
        records=(MultiRecord(type=0xC0, data=b"one"), MultiRecord(type=0x01, data=bytes(24))),
    )
    image = fru.to_bytes()
    assert Fru.from_bytes(image) == fru
    damaged = bytearray(image)
    damaged[FruHeader.from_bytes(image).multirecord + 6] ^= 1
    with pytest.raises(ProtocolError, match="multirecord of type 0xc0"):
        Fru.from_bytes(bytes(damaged))


_texts = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF), min_size=2, max_size=63)
_packed = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x5F), max_size=40)
_fields = st.one_of(
    st.just(FruField(type=FieldType.BINARY, data=b"")),
    _texts.map(FruField.of),
    _packed.map(lambda words: FruField.of(words, packed=True)),
    st.binary(max_size=63).map(lambda data: FruField(type=FieldType.BINARY, data=data)),
)


@given(
    board=st.builds(
        BoardInfo,
        mfg_minutes=st.integers(0, 2**24 - 1),
        manufacturer=_fields,
        product_name=_fields,
        serial_number=_fields,
        part_number=_fields,
        fru_file_id=_fields,
        custom=st.lists(_fields, max_size=4).map(tuple),
    )
)
def test_a_board_that_is_built_is_read_back(board: BoardInfo) -> None:
    assert Fru.from_bytes(Fru(board=board).to_bytes()) == Fru(board=board)


@given(words=_packed)
def test_packed_text_comes_back_without_its_padding(words: str) -> None:
    assert unpack_six_bit(pack_six_bit(words)) == words.rstrip(" ")


@given(data=st.binary(max_size=200), at=st.integers(0, 159), byte=st.integers(0, 255))
def test_any_bytes_give_a_fru_or_a_protocol_error(data: bytes, at: int, byte: int) -> None:
    image = bytearray(FRUTOOL)
    image[at % len(image)] = byte
    for candidate in (data, bytes(image), FRUTOOL[: at + 1]):
        try:
            Fru.from_bytes(candidate)
        except ProtocolError as exc:
            assert exc.code  # noqa: PT017
