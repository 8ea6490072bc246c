"""What the openers of ports are given, and what a row of the registry's table is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from hal.errors import Unavailable
from hal.ports import Doorbell, Reactor, Window
from hal.spec import Spec

if TYPE_CHECKING:
    from hal.linux.vfio import VfioHost
    from hal.local.client import KeeperClient
    from hal.mock.node import Node
    from hal.replay import Recording

WindowPair: TypeAlias = tuple[Window, Doorbell]


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the openers may need of their caller: each takes what it knows."""

    reactor: Reactor
    keeper: "KeeperClient | None" = None  # local board: who holds the descriptors
    vfio: "VfioHost | None" = None  # functions that share an IOMMU group need one for all
    node: "Node | None" = None  # mock: whose handles they will be
    replays: "dict[str, Recording]" = field(default_factory=dict)  # by path; one reading of each


@dataclass(frozen=True, slots=True, kw_only=True)
class Opener:
    """One row: how a scheme opens a port, and the options that it knows."""

    open: Callable[..., Any]
    options: frozenset[str] = frozenset()
    open_now: Callable[..., Any] | None = None  # of what needs no waiting


def node_of(world: World, spec: Spec) -> "Node":
    if world.node is None:
        raise Unavailable(f"{spec.text!r}: wants the virtual world of a simulation; none is here")
    return world.node


def keeper_of(world: World, spec: Spec) -> "KeeperClient":
    if world.keeper is None:
        raise Unavailable(f"{spec.text!r}: wants the local board's keeper; we are not connected")
    return world.keeper
