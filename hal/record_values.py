"""Values of the ports as JSON and back, for recordings.

    None, numbers, texts     as they are
    bytes, memoryviews       {"hex": "..."}
    enumerations             {"enum": "PowerAction", "value": "on"}
    dataclasses              {"is": "CxlReply", "return_code": 0, ...}
    errors                   {"error": "DeviceGone", "text": "..."}
    tuples and lists         lists; they come back as tuples

Only types of the port modules can be named in a file: reading one makes nothing else.
"""

import dataclasses
from collections.abc import Mapping
from enum import Enum
from types import ModuleType
from typing import Any, Final

from hal import cxl_ports, errors, pci_ports, ports, smbus_ports
from hal.errors import HalError, Refused

MODULES: Final[tuple[ModuleType, ...]] = (ports, pci_ports, smbus_ports, cxl_ports, errors)


def encode(value: Any) -> Any:
    """Raises TypeError for a value that no port has: a slip of our own."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Enum) and type(value) is _ENUMS.get(type(value).__name__):
        return {"enum": type(value).__name__, "value": value.value}
    if isinstance(value, int):  # an opcode's name is no business of the port's
        return int(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return {"hex": bytes(value).hex()}
    if isinstance(value, HalError):
        return {"error": type(value).__name__, "text": str(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        shown = {field.name: encode(getattr(value, field.name)) for field in _fields(value)}
        return {"is": type(value).__name__, **shown}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    raise TypeError(f"a recording can't hold {type(value).__name__}: {value!r:.80}")


def decode(value: Any) -> Any:
    """Raises Refused for what `encode` does not make."""
    if isinstance(value, list):
        return tuple(decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    try:
        if "hex" in value:
            return bytes.fromhex(value["hex"])
        if "enum" in value:
            return _ENUMS[value["enum"]](value["value"])
        if "error" in value:
            return _ERRORS[value["error"]](value["text"])
        kind = _CLASSES[value["is"]]
        return kind(**{name: decode(item) for name, item in value.items() if name != "is"})
    except (KeyError, TypeError, ValueError) as exc:
        raise Refused(f"no value of a port: {value!r:.120} ({exc!r:.80})") from exc


def _fields(value: Any) -> tuple[dataclasses.Field[Any], ...]:
    return tuple(field for field in dataclasses.fields(value) if field.init)


def _named(base: type) -> Mapping[str, Any]:
    return {
        name: kind
        for module in MODULES
        for name, kind in vars(module).items()
        if isinstance(kind, type) and issubclass(kind, base)
    }


_ENUMS: Final = _named(Enum)
_ERRORS: Final = _named(HalError)
_CLASSES: Final[Mapping[str, Any]] = {
    name: kind for name, kind in _named(object).items() if dataclasses.is_dataclass(kind)
}
