"""All targets by name."""

from tests.fuzz.target import Target
from tests.fuzz.targets import (
    compose,
    decoding,
    documents,
    images,
    init,
    journal,
    links,
    messages,
    sockets,
    windows,
)

MODULES = (
    *(links, messages, windows, sockets, documents, journal),
    *(init, decoding, compose, images),
)
TARGETS: dict[str, Target] = {target.name: target for m in MODULES for target in m.TARGETS}
