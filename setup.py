"""Builds what is native in hal by cffi and, where APF_COMPILED=1 asks for it, hot modules by mypyc.

Those modules are the very files that the interpreter runs elsewhere, compiled as they stand: a run
of the simulator has the same trace either way (tests/sim/test_compiled.py). `make compiled` puts
them under build/compiled, beside copies of all others; everything else is in pyproject.toml.
"""

import os
import sys
from typing import Final

from setuptools import setup

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # where the builders find their C

# What a heartbeat and its grant pass through, on the card, on a module and in the virtual world,
# and what a busy card does most. Not the bodies of protocol/apf: a decoded one changes its class,
# which a compiled class can't.
COMPILED: Final = {
    "firmware": """card decide discovery endpoint events fencing inventory journal lease link
        link_dialect loop monitor placer profile profile_histogram profile_meter profile_needs
        profiler reconciler signs_of_life sweeper tokens window window_ring""",
    "firmware/allocator": "filter",
    "firmware/cnm": """agent commands init init_server instances lease_guard local_stream mc
        supervisor""",
    "hal/mock": "kernel later line line_faults node trace window",
    "protocol": "crc window",
    "protocol/apf": "codec fast header",
    "protocol/mctp": "fragment packet reassembly serial serial_frame",
}


def extensions() -> list[object]:
    """What mypyc makes; nothing unless it was asked for."""
    if os.environ.get("APF_COMPILED") != "1":
        return []
    from mypyc.build import mypycify  # comes with mypy, which `make setup` installs

    files = [f"{room}/{name}.py" for room, names in COMPILED.items() for name in names.split()]
    return list(mypycify(files, opt_level="1", debug_level="0"))


setup(
    cffi_modules=["hal/native_build.py:FFIBUILDER", "hal/native_placement_build.py:FFIBUILDER"],
    ext_modules=extensions(),
)
