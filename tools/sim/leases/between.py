"""What lies between and below the two ends: messages, the card's disk, the slots' power."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from firmware.journal import Change, Committed, Journal, JournalError, Kind, Record
from hal.errors import Unavailable
from hal.ports import Done, FenceKind, PowerAction, PowerRequest, SlotState
from tools.sim.leases.clockwork import MS
from tools.sim.leases.weather import FAST_NS, MIDDLE_NS, SLOW_NS, STALE_NS

if TYPE_CHECKING:
    from tools.sim.leases.card import CardLife
    from tools.sim.leases.run import Run

POWER_WAY_NS: Final = 3 * MS  # a reading, or the word of a change, to the daemon
BOOT_NS: Final = 500 * MS


class Net:
    """Messages are lost, duplicated, late by up to seconds, and overtake each other. A link can be
    cut; what was on its way then is lost too."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._cut_until: dict[tuple[str, str, str], int] = {}

    def cut(self, module: str, link: str, ways: tuple[str, ...], span_ns: int) -> None:
        """Nothing passes "up" to the card, or "down" to the module, or both."""
        for way in ways:
            self._cut_until[module, link, way] = self._run.kernel.now + span_ns

    def to_card(self, module: str, link: str, call: "Callable[[CardLife], None]") -> None:
        """To whatever daemon lives when it arrives."""

        def arrive() -> None:
            card = self._run.card
            if card is not None:
                card.host.run(lambda: card.hear(module, link, call))

        self._send((module, link, "up"), arrive)

    def to_module(
        self, module: str, link: str, call: Callable[[Any], None], *, late: float = 0.0
    ) -> None:
        """To whatever boot lives when it arrives; on the agent's link, when the agent does."""

        def arrive() -> None:
            boot = self._run.modules[module].boot
            if boot is not None:
                host = boot.agent if link == "agent" else boot.init
                host.run(lambda: call(boot))

        self._send((module, link, "down"), arrive, late)

    def _send(
        self, way: tuple[str, str, str], arrive: Callable[[], None], late: float = 0.0
    ) -> None:
        kernel, weather = self._run.kernel, self._run.weather
        cut_until = self._cut_until
        if cut_until and kernel.now < cut_until.get(way, 0):
            return

        def land() -> None:
            if not cut_until or kernel.now >= cut_until.get(way, 0):
                arrive()

        if not weather.loss or kernel.rng.random() >= weather.loss:
            if late and kernel.rng.random() < late:
                kernel.at(kernel.now + int(kernel.rng.random() * SLOW_NS), land)
            else:
                kernel.at(kernel.now + self._delay_ns(), land)
        # what a module says twice matters less, and each costs the card a look
        duplicate = weather.duplicate if way[2] == "down" else weather.duplicate / 8
        if duplicate and kernel.rng.random() < duplicate:
            kernel.at(kernel.now + int(kernel.rng.random() * STALE_NS), land)

    def _delay_ns(self) -> int:
        rng, weather = self._run.kernel.rng, self._run.weather
        if rng.random() < weather.fast:
            return int(rng.random() * FAST_NS)
        most_ns = MIDDLE_NS if rng.random() < weather.middle else SLOW_NS
        return int(rng.random() * most_ns)


class Disk:
    """The card's journal as the disk holds it; commits arrive in order, or not at all."""

    def __init__(self, run: "Run") -> None:
        self.image: dict[Kind, dict[str, Record]] = {kind: {} for kind in Kind}
        self._run = run
        self._queue: deque[tuple[Change, ...]] = deque()
        self._busy_until = 0

    def submit(self, changes: Sequence[Change], done: Callable[[bool], None]) -> None:
        kernel, weather = self._run.kernel, self._run.weather
        if weather.disk_refuses and kernel.rng.random() < weather.disk_refuses:
            kernel.at(kernel.now, lambda: done(False))
            return
        batch = tuple(changes)
        self._queue.append(batch)
        took_ns = int(kernel.rng.random() * weather.disk_ns)
        self._busy_until = max(self._busy_until, kernel.now + took_ns)

        def synced() -> None:
            if self._queue and self._queue[0] is batch:
                self._apply(self._queue.popleft())
                done(True)

        kernel.at(self._busy_until, synced)

    def crash(self) -> None:
        """The daemon died: some of what was on its way arrives still."""
        for _ in range(self._run.kernel.rng.randint(0, len(self._queue))):
            self._apply(self._queue.popleft())
        self._queue.clear()

    def _apply(self, batch: Sequence[Change]) -> None:
        for change in batch:
            if change.value is None:
                self.image[change.kind].pop(change.key, None)
            else:
                self.image[change.kind][change.key] = change.value


class ModelJournal(Journal):
    """`firmware.journal.Journal` on the modelled disk, without the bytes."""

    def __init__(self, run: "Run", life: "CardLife") -> None:
        self._disk = run.disk
        self._life = life
        self._records = {kind: dict(records) for kind, records in run.disk.image.items()}
        self._failed = None

    def load(self) -> None:
        """Read when it was made."""

    def get(self, kind: Kind, key: str) -> Record | None:
        return self._records[kind].get(key)

    def items(self, kind: Kind) -> Mapping[str, Record]:
        return self._records[kind]

    def commit(self, changes: Sequence[Change], done: Committed) -> None:
        kept = tuple(changes)

        def answered(good: bool) -> None:
            self._life.host.run(lambda: self._answered(kept, good, done))

        self._disk.submit(kept, answered)

    def _answered(self, changes: Sequence[Change], good: bool, done: Committed) -> None:
        if not good:
            done(JournalError("not stored", code="store"))
            return
        for change in changes:
            if change.value is None:
                self._records[change.kind].pop(change.key, None)
            else:
                self._records[change.kind][change.key] = change.value
        done(None)


class Power:
    """The slots' power: a `SlotPower` whose words come in order, each a little late.

    A module lives on for a hold-up time after its power went, less than off_hold_ms; power that
    comes back sooner leaves it running (a glitch).
    """

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._good: dict[str, bool] = dict.fromkeys(run.modules, True)
        self._cuts: dict[str, int] = dict.fromkeys(run.modules, 0)
        self._latched: set[str] = set()  # switched off: a supply that recovers changes nothing
        self._said_until = 0

    def state(self, name: str) -> SlotState:
        index = list(self._run.modules).index(name)
        fence = FenceKind.POWER if self._run.weather.power_fence[index] else FenceKind.LEASE
        return SlotState(slot=index, present=True, power_good=self._good[name], fence=fence)

    def submit(self, request: PowerRequest, _deadline_ns: int, done: Done[SlotState]) -> None:
        run = self._run
        name = list(run.modules)[request.slot]
        life = run.card
        assert life is not None

        def act() -> None:
            if request.action is PowerAction.OFF:
                if run.kernel.rng.random() < run.weather.power_stuck:
                    self._say(
                        lambda: life.host.run(lambda: done(Unavailable("stuck")), in_order=True)
                    )
                    return
                self._latched.add(name)
                self.cut(name)
            elif request.action is PowerAction.ON:
                self._latched.discard(name)
                self.restore(name)
            state = self.state(name)
            self._say(lambda: life.host.run(lambda: done(state), in_order=True))

        run.kernel.at(run.kernel.now + self._way_ns(), act)

    def cut(self, name: str) -> None:
        """It goes dark now, and the module dies after its hold-up time."""
        if not self._good[name]:
            return
        self._cuts[name] += 1
        cut = self._cuts[name]
        hold_ns = self._run.kernel.rng.choice((0, self._run.timing.off_hold_ms * 95 // 100)) * MS
        self._set(name, good=False)

        def out() -> None:
            if self._cuts[name] == cut:
                self._run.modules[name].crash()

        self._run.kernel.at(self._run.kernel.now + hold_ns, out)

    def restore(self, name: str) -> None:
        """Back. If it was gone for less than the hold-up time, the module has not noticed."""
        if name in self._latched or self._good[name]:
            return
        self._cuts[name] += 1
        cut = self._cuts[name]
        self._set(name, good=True)

        def boots() -> None:
            if self._cuts[name] == cut and self._run.modules[name].boot is None:
                self._run.modules[name].start()

        self._run.kernel.at(
            self._run.kernel.now + int(self._run.kernel.rng.random() * BOOT_NS), boots
        )

    def _set(self, name: str, *, good: bool) -> None:
        if self._good[name] != good:
            self._good[name] = good
            state = self.state(name)
            self._say(lambda: self._tell(state))

    def _tell(self, state: SlotState) -> None:
        life = self._run.card
        if life is not None:
            life.host.run(lambda: life.on_slot(state), in_order=True)

    def _say(self, call: Callable[[], None]) -> None:
        """In order: all of it comes over one socket."""
        kernel = self._run.kernel
        self._said_until = max(self._said_until + 1, kernel.now + self._way_ns())
        kernel.at(self._said_until, call)

    def _way_ns(self) -> int:
        return int(self._run.kernel.rng.random() * POWER_WAY_NS)
