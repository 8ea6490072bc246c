"""MCTP over SMBus, NVMe-MI and PMBus numbers, for any bytes and any values."""

from hypothesis import given
from hypothesis import strategies as st

from protocol.decode import decode
from protocol.errors import ProtocolError
from protocol.nvme_mi.message import NvmeMiMessage
from protocol.smbus.mctp import MAX_PACKET_BYTES, SmbusFrame
from protocol.smbus.pec import pec_is_good, with_pec
from protocol.smbus.pmbus import Coefficients, VoutMode, linear11_milli, linear11_word

ADDRESSES = st.integers(0, 0x7F)
PACKETS = st.binary(min_size=5, max_size=MAX_PACKET_BYTES)


@given(dest=ADDRESSES, src=ADDRESSES, packet=PACKETS)
def test_a_frame_comes_back_as_it_was_built(dest: int, src: int, packet: bytes) -> None:
    frame = SmbusFrame(dest_address=dest, src_address=src, packet=packet)
    data = frame.to_bytes()
    assert SmbusFrame.from_bytes(data) == frame
    assert data[2] == len(packet) + 1
    assert pec_is_good(data)


@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_frame_or_a_protocol_error(data: bytes) -> None:
    for candidate in (data, with_pec(b"\x42\x0f" + bytes([len(data) & 0xFF]) + data)):
        try:
            frame = SmbusFrame.from_bytes(candidate)
        except ProtocolError as exc:
            assert exc.frame == candidate  # noqa: PT017
        else:
            assert frame.to_bytes() == candidate


@given(data=st.binary(max_size=80), command=st.sampled_from([0, 8, 0x0F]))
def test_any_bytes_are_explained_without_an_exception(data: bytes, command: int) -> None:
    drive = with_pec(bytes([0xD4, command, 0xD5, len(data)]) + data)
    for layer in ("smbus", "nvme_mi", None):
        for candidate in (data, b"\x84" + data, drive, drive[:-1]):
            decode(candidate, layer)


@given(
    response=st.booleans(),
    kind=st.integers(0, 15),
    slot=st.integers(0, 1),
    body=st.binary(max_size=64),
)
def test_an_nvme_message_comes_back_as_it_was_built(
    response: bool, kind: int, slot: int, body: bytes
) -> None:
    message = NvmeMiMessage(response=response, kind=kind, slot=slot, body=body)
    assert NvmeMiMessage.from_bytes(message.to_bytes()) == message
    decode(message.to_bytes(), "nvme_mi")


@given(milli=st.integers(-1023 * 2**15 * 1000, 1023 * 2**15 * 1000))
def test_linear11_is_as_close_as_eleven_bits_can_be(milli: int) -> None:
    back = linear11_milli(linear11_word(milli))
    # a mantissa of at least 512 of the finest exponent: half of one in 512, and a rounding
    assert abs(back - milli) <= abs(milli) // 1000 + 1


@given(exponent=st.integers(-16, 0), word=st.integers(0, 0xFFFF))
def test_linear16_comes_back_where_a_millivolt_is_more_than_a_step(
    exponent: int, word: int
) -> None:
    mode = VoutMode.from_bytes(bytes([exponent & 0x1F]))
    data = word.to_bytes(2, "little")
    millivolts = mode.millivolts(data)
    assert abs(millivolts - word * 1000 / 2**-exponent) <= 0.5
    if exponent > -10:  # a step is above a millivolt: nothing is lost
        assert mode.word(millivolts) == data


@given(
    m=st.integers(1, 0x7FFF), b=st.integers(-0x8000, 0x7FFF), r=st.integers(-3, 3),
    y=st.integers(-0x8000, 0x7FFF),
)  # fmt: skip
def test_direct_is_its_formula(m: int, b: int, r: int, y: int) -> None:
    found = Coefficients(m=m, b=b, r=r).milli((y & 0xFFFF).to_bytes(2, "little"))
    want = (y * 10.0**-r - b) / m * 1000
    assert abs(found - want) <= 0.5 + abs(want) * 1e-9
