"""The compiled scan of the allocator (`hal._placement`), behind typed arrays.

It only computes: what the numbers mean is in firmware.allocator, which does the same in Python
where this is not built (`AVAILABLE`), and gives identical answers.
"""

from array import array
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Final

from hal.native_placement_source import LAYOUT

_compiled: ModuleType | None = None
try:
    import hal._placement as _built
except ImportError:
    pass
else:  # a build of another text, left over in a tree that has moved on, is not used
    if hasattr(_built.lib, "apf_placement_layout") and _built.lib.apf_placement_layout() == LAYOUT:
        _compiled = _built

AVAILABLE: Final = _compiled is not None
MOST_UNITS: Final = 256  # of one node
_TYPES: Final = {"q": "int64_t[]", "i": "int32_t[]", "h": "int16_t[]", "b": "int8_t[]"}


class NativeStruct:
    """A C struct whose pointers are `arrays`; it keeps them alive. They must not be resized."""

    def __init__(self, kind: str, arrays: Mapping[str, "array[int]"]) -> None:
        assert _compiled is not None, "hal._placement is not built"
        self._ffi: Any = _compiled.ffi
        self.struct: Any = self._ffi.new(f"{kind} *")
        self._keep: list[Any] = []
        for name, values in arrays.items():
            self.point(name, values)

    def point(self, name: str, values: "array[int]") -> None:
        """Let one pointer be this array."""
        pointer = self._ffi.from_buffer(_TYPES[values.typecode], values)
        self._keep += (values, pointer)
        setattr(self.struct, name, pointer)

    def put(self, **numbers: int) -> None:
        for name, number in numbers.items():
            setattr(self.struct, name, number)

    def put_want(self, vector: tuple[int, ...]) -> None:
        for index, want in enumerate(vector):
            self.struct.want[index] = want


class NativeMask:
    """One byte a node, or one number a pool, as the scan reads it."""

    def __init__(self, values: "array[int]") -> None:
        assert _compiled is not None
        self.values = values
        self.pointer: Any = _compiled.ffi.from_buffer(_TYPES[values.typecode], values)


def best(
    nodes: NativeStruct,
    tables: NativeStruct,
    request: NativeStruct,
    allowed: NativeMask,
    price: NativeMask | None,
) -> int:
    """The index of the best node; -1 where none fits."""
    assert _compiled is not None
    return int(
        _compiled.lib.apf_placement_best(
            nodes.struct,
            tables.struct,
            request.struct,
            allowed.pointer,
            _compiled.ffi.NULL if price is None else price.pointer,
        )
    )
