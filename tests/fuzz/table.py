"""All targets by name."""

from tests.fuzz.target import Target
from tests.fuzz.targets import (
    card,
    compose,
    decoding,
    documents,
    images,
    init,
    journal,
    keeper,
    link,
    links,
    messages,
    sockets,
    windows,
)

MODULES = (
    *(links, link, messages, windows, sockets, keeper, documents, journal),
    *(init, card, decoding, compose, images),
)
TARGETS: dict[str, Target] = {target.name: target for m in MODULES for target in m.TARGETS}
