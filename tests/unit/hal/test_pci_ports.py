"""PCI addresses as texts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hal.errors import Refused
from hal.pci_ports import PciAddress


@given(
    st.builds(
        PciAddress,
        st.integers(0, 0xFFFF_FFFF),
        st.integers(0, 0xFF),
        st.integers(0, 31),
        st.integers(0, 7),
    )
)
def test_an_address_survives_its_text(address: PciAddress) -> None:
    assert PciAddress.parse(str(address)) == address


def test_an_address_is_written_as_the_kernel_writes_it() -> None:
    assert str(PciAddress(0, 0x3B, 0, 1)) == "0000:3b:00.1"
    assert str(PciAddress(0x10000, 0xE1, 0x1F, 7)) == "10000:e1:1f.7"
    assert PciAddress.parse("3b:00.0") == PciAddress(0, 0x3B, 0, 0)


def test_addresses_sort_by_bus_before_device() -> None:
    texts = ["0000:02:00.0", "0000:01:1f.0", "0001:00:00.0", "0000:01:02.7"]
    ordered = [str(a) for a in sorted(PciAddress.parse(text) for text in texts)]
    assert ordered == ["0000:01:02.7", "0000:01:1f.0", "0000:02:00.0", "0001:00:00.0"]


@pytest.mark.parametrize(
    "text", ["", "00:00", "0000:00:20.0", "0000:00:00.8", "zz:00.0", "1:2.3", "0000:00:00.0 "]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="PCI address"):
        PciAddress.parse(text)
