"""What clients may ask of the keeper, over `APF_RUN`/keeper.sock (hal/local/wire.py).

    status   {slot?}                 changes nothing; above 16 slots, links only of one asked for
    power    {slot, action: read|on|off}    answered when it is so; off with proof
    window   {slot}                  + memfd, bell to hear, bell to ring
    pids     {slot, nspids?}         the CNM's processes as the host sees them
    fault    {slot, link?, drop, duplicate, flip, delay_ms, cut, seed}
                                     hal/local/faults.py; without link: all of the slot's
    window_cut     {slot, cut}       hal/local/shared.py
    window_corrupt {slot, flips, seed}
    vfio     {address}               + container, group, device of a PCI function, held from then
    vfio_release   {address}         let go of it (hal/local/functions.py)
    shutdown                         power off, then exit

A slot is named by its number. What is wrong is refused in words and changes nothing.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from hal.errors import HalError, Refused, Unavailable
from hal.local import rundir
from hal.local.faults import faults_from
from hal.local.relay import Relay
from hal.local.server import Client
from hal.local.shared import FLIPS_LIMIT, SharedWindow
from hal.local.slot import Slot, state_json
from hal.local.wire import JsonObject
from hal.pci_ports import PciAddress
from hal.ports import PowerAction, SlotState

if TYPE_CHECKING:
    from hal.linux.vfio_group import VfioFds
    from hal.local.functions import HeldFunctions

LINKS_SHOWN_LIMIT: Final = 16  # slots whose links fit one answer
PIDS_LIMIT: Final = 512  # of one answer: it has to fit a packet


class Board(Protocol):
    """What the requests work on: the keeper."""

    @property
    def run_dir(self) -> Path: ...
    @property
    def slots(self) -> Mapping[int, Slot]: ...
    @property
    def relays(self) -> Mapping[int, Mapping[str, Relay]]: ...
    @property
    def windows(self) -> Mapping[int, SharedWindow]: ...
    @property
    def functions(self) -> "HeldFunctions": ...
    @property
    def stopping(self) -> bool: ...
    def about(self) -> JsonObject: ...
    def window_of(self, number: int) -> SharedWindow: ...
    def stop(self, done: Callable[[list[str]], None]) -> None: ...


class Requests:
    """One handler for each op."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._handlers: dict[str, Callable[[Client, JsonObject], None]] = {
            "status": self._status,
            "power": self._power,
            "window": self._window,
            "pids": self._pids,
            "fault": self._fault,
            "window_cut": self._window_cut,
            "window_corrupt": self._window_corrupt,
            "vfio": self._vfio,
            "vfio_release": self._vfio_release,
            "shutdown": self._shutdown,
        }

    def handle(self, client: Client, request: JsonObject) -> None:
        """Answer one request, now or later. Raises Refused and Unavailable instead."""
        op = request.get("op")
        handler = self._handlers.get(op) if isinstance(op, str) else None
        if handler is None:
            raise Refused(f"op {op!r} is unknown; known: {', '.join(self._handlers)}")
        if self._board.stopping and op not in ("status", "shutdown"):
            raise Refused("the keeper is shutting down")
        handler(client, request)

    def _status(self, client: Client, request: JsonObject) -> None:
        one = [self._slot_of(request)] if "slot" in request else None
        slots = one or list(self._board.slots.values())
        links = len(slots) <= LINKS_SHOWN_LIMIT
        client.answer(
            request,
            {
                **self._board.about(),
                "slots": [self._slot_status(slot, links=links) for slot in slots],
            },
        )

    def _slot_status(self, slot: Slot, *, links: bool) -> JsonObject:
        number, run_dir = slot.config.slot, self._board.run_dir
        rows = [
            {
                "name": name,
                "card": str(rundir.tty_path(run_dir, slot.config.id, name)),
                "cnm": str(rundir.tty_path(run_dir, slot.config.id, name)) + ".cnm",
                "counters": relay.counters(),
                "cut": relay.faults.cut,
            }
            for name, relay in self._board.relays[number].items()
        ]
        window = self._board.windows.get(number)
        return {
            "id": slot.config.id,
            "phase": slot.phase.value,
            "state": state_json(slot.state()),
            "links": rows if links else None,
            "window_bytes": slot.config.window_bytes,
            "window_cut": window is not None and window.cut,
        }

    def _power(self, client: Client, request: JsonObject) -> None:
        raw = request.get("action")
        if raw not in ("read", "on", "off"):
            raise Refused(f"action: {raw!r}, wanted 'read', 'on' or 'off'")

        def on_done(state: SlotState | HalError) -> None:
            if isinstance(state, HalError):
                client.fail(request, state)
            else:
                client.answer(request, state_json(state))

        self._slot_of(request).request(PowerAction(raw), client, on_done)

    def _window(self, client: Client, request: JsonObject) -> None:
        window = self._board.window_of(self._slot_of(request).config.slot)
        client.answer(request, {"size_bytes": window.size_bytes}, window.fds_for_card())

    def _pids(self, client: Client, request: JsonObject) -> None:
        wanted = request.get("nspids")
        if wanted is not None and not isinstance(wanted, list):
            raise Refused(f"nspids: {type(wanted).__name__}, wanted a list")
        found = self._slot_of(request).processes(wanted)
        rows = [asdict(process) for process in found[:PIDS_LIMIT]]
        client.answer(request, {"processes": rows, "total": len(found)})

    def _fault(self, client: Client, request: JsonObject) -> None:
        relays = self._board.relays[self._slot_of(request).config.slot]
        name = request.get("link")
        if name is not None and (not isinstance(name, str) or name not in relays):
            raise Refused(f"link {name!r} is unknown; known: {', '.join(relays)}")
        values = {k: v for k, v in request.items() if k not in ("id", "op", "slot", "link")}
        faults = faults_from(values)
        for relay in relays.values() if name is None else [relays[name]]:
            relay.arm(faults)
        client.answer(request, {})

    def _window_cut(self, client: Client, request: JsonObject) -> None:
        cut = request.get("cut")
        if not isinstance(cut, bool):
            raise Refused(f"cut: {cut!r}, wanted true or false")
        self._board.window_of(self._slot_of(request).config.slot).set_cut(cut)
        client.answer(request, {})

    def _window_corrupt(self, client: Client, request: JsonObject) -> None:
        flips = _integer(request, "flips", 0, FLIPS_LIMIT)
        seed = _integer(request, "seed", 0, 2**64 - 1)
        self._board.window_of(self._slot_of(request).config.slot).set_corrupt(flips, seed)
        client.answer(request, {})

    def _vfio(self, client: Client, request: JsonObject) -> None:
        def opened(fds: "VfioFds | HalError") -> None:
            if isinstance(fds, HalError):
                client.fail(request, fds)
            else:
                held = [fds.container_fd, fds.group_fd, fds.device_fd]
                client.answer(request, {"group": fds.group, "iommu": fds.iommu}, held)

        self._board.functions.submit_fds(_address(request), opened)

    def _vfio_release(self, client: Client, request: JsonObject) -> None:
        self._board.functions.release(_address(request))
        client.answer(request, {})

    def _shutdown(self, client: Client, request: JsonObject) -> None:
        def on_off(failures: list[str]) -> None:
            if failures:
                client.fail(request, Unavailable("; ".join(failures)))
            else:
                client.answer(request, {"stopped": len(self._board.slots)})

        self._board.stop(on_off)

    def _slot_of(self, request: JsonObject) -> Slot:
        number = request.get("slot")
        slot = self._board.slots.get(number) if isinstance(number, int) else None
        if slot is None or isinstance(number, bool):
            known = ", ".join(map(str, self._board.slots)) or "none"
            raise Refused(f"slot {number!r} is not on this board; known: {known}")
        return slot


def _address(request: JsonObject) -> PciAddress:
    text = request.get("address")
    if not isinstance(text, str):
        raise Refused(f"address: {text!r}, wanted a PCI address like '0000:3b:00.0'")
    return PciAddress.parse(text)


def _integer(request: JsonObject, key: str, low: int, high: int) -> int:
    value: Any = request.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise Refused(f"{key}: {value!r}, wanted an integer in {low}..{high}")
    return value
