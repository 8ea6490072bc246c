"""`extends` within one file, merged as the Compose Specification says (13-merge.md).

Mappings merge, lists append, the nearer scalar wins; command, entrypoint and healthcheck.test are
replaced.
"""

from dataclasses import replace
from typing import Final

from tools.compose.cursor import Cursor
from tools.compose.document import Node

MAX_CHAIN: Final = 16
_REPLACED: Final = ("command", "entrypoint", "test")
_NOT_INHERITED: Final = ("depends_on", "links", "volumes_from", "extends")
_PAIRS: Final = ("environment", "labels", "annotations", "sysctls")


def resolve_extends(name: str, services: dict[str, Cursor]) -> Cursor:
    """The service with what it extends below it; problems go to the report."""
    chain = [name]
    result = services[name]
    at = result.get("extends")
    while at is not None:
        base_at, file = at.get("service") or at, at.get("file")
        if file is not None:
            file.problem("another file is not read here: flatten it with `docker compose config`")
            break
        base_name = base_at.text
        if base_name not in services:
            base_at.problem(f"the service {base_name!r} is not there")
            break
        if base_name in chain or len(chain) >= MAX_CHAIN:
            base_at.problem(f"services extend each other in a circle: {' -> '.join(chain)}")
            break
        chain.append(base_name)
        base = services[base_name]
        result = Cursor(merge_service(base.node, result.node), result.path, result.report)
        at = base.get("extends")
    return result


def merge_service(base: Node, over: Node) -> Node:
    assert isinstance(base.value, dict)
    inherited = {key: item for key, item in base.value.items() if key not in _NOT_INHERITED}
    return _merged(replace(base, value=inherited), over, "")


def _merged(base: Node, over: Node, key: str) -> Node:
    low, high = base.value, over.value
    if key in _PAIRS and type(low) is not type(high):
        low, high = _as_map(base), _as_map(over)
    if key in _PAIRS and isinstance(low, list) and isinstance(high, list):
        low, high = _as_map(base), _as_map(over)
    if isinstance(low, dict) and isinstance(high, dict):
        result = dict(low)
        for name, item in high.items():
            result[name] = _merged(low[name], item, name) if name in low else item
        return replace(over, value=result)
    if isinstance(low, list) and isinstance(high, list) and key not in _REPLACED:
        return replace(over, value=[*low, *(item for item in high if item not in low)])
    return over


def _as_map(node: Node) -> dict[str, Node]:
    """`KEY=VALUE` items as entries."""
    if isinstance(node.value, dict):
        return node.value
    found: dict[str, Node] = {}
    for item in node.value if isinstance(node.value, list) else ():
        key, equals, value = str(item.value).partition("=")
        found[key] = replace(item, value=value if equals else None, text=value)
    return found
