"""Buses of the virtual world by the names of their parts, as a board's description lists them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from hal.errors import Refused
from hal.mock.smbus_bus import Mux
from hal.mock.smbus_fans import Emc2305, Max31790
from hal.mock.smbus_model import Model
from hal.mock.smbus_parts import Eeprom, NvmeDrive, Pca9555
from hal.mock.smbus_pmbus import PmbusVrm
from hal.mock.smbus_sensors import Ina226, Tmp75, Tmp464, Tmp1075

MODELS: Final[Mapping[str, Callable[[int], Model]]] = {
    "tmp75": Tmp75,
    "tmp1075": Tmp1075,
    "tmp464": Tmp464,
    "ina226": Ina226,
    "pmbus": PmbusVrm,
    "tps53679": lambda address: PmbusVrm(address, rails=2),
    "xdpe132g5c": lambda address: PmbusVrm(
        address, rails=2, mfr_id=b"INFINEON", mfr_model=b"XDPE132G5C"
    ),
    "emc2305": Emc2305,
    "max31790": Max31790,
    "pca9555": Pca9555,
    "pca9546": lambda address: Mux(address, channels=4),
    "pca9548": Mux,
    "nvme_basic": NvmeDrive,
    "24c02": Eeprom,
    "24c64": lambda address: Eeprom(address, size_bytes=8192, page_bytes=32),
    "24c128": lambda address: Eeprom(address, size_bytes=16384, page_bytes=64),
}


def model_of(part: str, address: int) -> Model:
    """A new model of that part. Raises Refused with the parts that there are."""
    if part not in MODELS:
        raise Refused(f"no model of a {part!r}; there are: {', '.join(MODELS)}")
    return MODELS[part](address)
