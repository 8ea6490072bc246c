"""All targets by name."""

from tests.fuzz.target import Target
from tests.fuzz.targets import (
    buses,
    card,
    compose,
    decoding,
    documents,
    hardware,
    images,
    init,
    journal,
    keeper,
    kernel,
    link,
    links,
    messages,
    relays,
    remains,
    replays,
    sensors,
    sockets,
    windows,
)

MODULES = (
    *(links, link, messages, windows, sockets, keeper, documents, journal),
    *(init, card, decoding, compose, images, buses, kernel, relays, replays, hardware, sensors),
    remains,
)
TARGETS: dict[str, Target] = {target.name: target for m in MODULES for target in m.TARGETS}
