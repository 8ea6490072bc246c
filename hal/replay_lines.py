"""What a line of a recording must be, looked at before anything of the file is believed.

The lines are those of `hal.record`. A file comes from another machine, perhaps cut, perhaps edited
by hand: what is wrong with a line is told when it is read, not when a driver stumbles over it.
"""

from collections.abc import Mapping
from typing import Any, Final

from hal.errors import HalError, Refused
from hal.record_shapes import PORTS, SHAPES
from hal.record_values import decode

DEPTH_LIMIT: Final = 32  # of lists and objects in one another: a port's values have 5
MEMORY_LIMIT_BYTES: Final = 256 << 20  # of all DMA buffers of a file together
_KINDS: Final = ("open", "call", "done", "event", "raised")  # one of them is in each line


def check_line(body: Mapping[str, Any]) -> int:
    """How many bytes of memory it asks for. Raises Refused."""
    if _depth_over(body):
        raise Refused(f"want at most {DEPTH_LIMIT} lists and objects in one another")
    kinds = [kind for kind in _KINDS if kind in body]
    if len(kinds) != 1:
        raise Refused(f"want one of {', '.join(_KINDS)}; found {', '.join(kinds) or 'none'}")
    [kind] = kinds
    if kind == "open":
        return _check_open(body)
    for key in ("memory", "after"):
        _check_changes(body, key)
    if kind == "call":
        return _check_call(body)
    _integer(body, kind)
    value = _value(body, "value" if kind == "event" else "result")
    if kind == "raised" and not isinstance(value, HalError):
        raise Refused("want an error as the result of what was raised")
    return 0


def _check_open(body: Mapping[str, Any]) -> int:
    port = body["open"]
    if not isinstance(port, str) or port not in PORTS:
        raise Refused(f"unknown port {port!r:.40}")
    _integer(body, "n")
    memory_bytes = _check_objects(body)
    kinds = tuple(entry["kind"] for entry in body["objects"])
    if kinds != PORTS[port]:
        raise Refused(f"want the objects {', '.join(PORTS[port])} of port {port}")
    return memory_bytes


def _check_call(body: Mapping[str, Any]) -> int:
    _integer(body, "n")
    _integer(body, "on")
    if not isinstance(body["call"], str):
        raise Refused("want a name as call")
    if not isinstance(body.get("args", {}), dict):
        raise Refused("want an object as args")
    _value(body, "result", missing=None)
    if "objects" not in body:
        return 0
    if not isinstance(body.get("many"), bool):
        raise Refused("want true or false as many")
    memory_bytes = _check_objects(body)
    if not body["many"] and len(body["objects"]) != 1:
        raise Refused("want one object, or many: true")
    return memory_bytes


def _check_objects(body: Mapping[str, Any]) -> int:
    objects = body.get("objects")
    if not isinstance(objects, list):
        raise Refused("want a list as objects")
    total = 0
    for entry in objects:
        if not isinstance(entry, dict):
            raise Refused("want objects in the list of objects")
        _integer(entry, "id")
        kind, properties = entry.get("kind"), entry.get("properties")
        if not isinstance(kind, str) or kind not in SHAPES:
            raise Refused(f"unknown kind of object {kind!r:.40}")
        if not isinstance(properties, dict):
            raise Refused(f"want an object as properties of a {kind}")
        shape = SHAPES[kind]
        for name in shape.properties:
            _value(properties, name)
        if shape.has_memory:
            total += _integer(properties, "size_bytes")
    return total


def _check_changes(body: Mapping[str, Any], key: str) -> None:
    changes = body.get(key, [])
    if not isinstance(changes, list):
        raise Refused(f"want a list as {key}")
    for change in changes:
        if not isinstance(change, dict):
            raise Refused(f"want objects in {key}")
        _integer(change, "id")
        _integer(change, "at")
        try:
            bytes.fromhex(change.get("hex"))  # type: ignore[arg-type]  # what it is is asked here
        except (TypeError, ValueError) as exc:
            raise Refused(f"want hexadecimal digits as hex in {key}") from exc


def _integer(body: Mapping[str, Any], key: str) -> int:
    value = body.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Refused(f"want a number from 0 on as {key}, found {value!r:.40}")
    return value


_MISSING: Final = object()


def _value(body: Mapping[str, Any], key: str, *, missing: Any = _MISSING) -> Any:
    """A value of a port. Raises Refused when it is none."""
    value = body.get(key, missing)
    if value is _MISSING:
        raise Refused(f"want {key}")
    return decode(value)


def _depth_over(body: Mapping[str, Any]) -> bool:
    level: list[Any] = [body]
    for _ in range(DEPTH_LIMIT):
        inner: list[Any] = []
        for item in level:
            inner.extend(item.values() if isinstance(item, Mapping) else item)
        level = [item for item in inner if isinstance(item, dict | list)]
        if not level:
            return False
    return True
