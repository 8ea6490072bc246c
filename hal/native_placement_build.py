"""Build script of `hal._placement`: the allocator's scan over all modules, in integers.

It computes what firmware.allocator computes in Python, number for number (a property test holds
the two equal); nothing works only with it. Arrays and their bounds are the caller's
(`hal.native_placement`).
"""

from typing import Final

from cffi import FFI  # type: ignore[import-untyped]  # cffi ships no types

from hal.native_placement_source import DECLARATIONS, LAYOUT, SOURCE

FFIBUILDER: Final = FFI()
FFIBUILDER.cdef(DECLARATIONS)
# optional: without a compiler the allocator does the same in Python.
FFIBUILDER.set_source(
    "hal._placement",
    SOURCE + f"\nstatic int64_t apf_placement_layout(void) {{ return {LAYOUT}; }}\n",
    extra_compile_args=["-O3", "-std=gnu11"],
    optional=True,
)
