"""What a case is, and how to write one.

A case is a function that runs *in a guest*, a virtual machine with a stock Debian kernel, as root.
Each one at the top of a module under tests/hil/cases/ is found there; there is no list to keep:

    from tests.hil.case import Context, Evidence, case
    from tests.hil.machines import CARD

    @case(on=CARD, smoke=True)
    def edu_returns_the_inverse_of_what_is_written(ctx: Context) -> Evidence:
        address = ctx.pci("1234:11e8")             # "0000:00:03.0"; fails when it is not there
        ctx.modprobe("vfio-pci")
        ...                                        # hal/linux and firmware code, against it
        return Evidence(driver="vfio-pci", device=address, numbers={"reads": 1000})

It fails by raising (`assert` is fine), and says with `ctx.skip(why)` that it can't run here; a
required case that is skipped fails the run. The evidence names the kernel driver and the device
that it went through. `numbers` are integers, or short texts.

    ctx.host(command, arguments)      a QMP command of this machine, done by the host:
                                      ctx.host("device_add", {"driver": "edu", "id": "x", "bus":
                                      "port1"}), ctx.host("device_del", {"id": "x"})
    ctx.host_event(name, **data)      waits for a QMP event: ctx.host_event("DEVICE_DELETED",
                                      device="x")
    ctx.wait(until, what)             polls a condition; AssertionError when it never holds;
                                      with turn=loop.step a loop goes round meanwhile
    ctx.allow(pattern)                kernel messages that are meant to come (a regular expression)
    ctx.modprobe, ctx.pci, ctx.log

Each call runs in a process of its own, forked from one that has imported the module, so imports
are paid once a machine and a crash costs one case. Cases of one machine run one after another in
one boot (`on=` the same Machine), smoke ones first; a case leaves the machine as it found it.
After each one these are asserted, and a breach fails it: no oops, warning or AER message in the
kernel's log; descriptors, threads and IOMMU groups as many as before; the same PCI functions as
before, none left with vfio-pci or a driver_override; no process left behind.

A case that needs several machines, or a host that takes part, runs *on the host*:

    @rig_case(deadline_s=300)
    def a_window_between_two_guests(rig: Rig) -> Evidence:
        left, right = rig.boot(LEFT, RIGHT)            # own machines, taken down afterwards
        reader = right.start(read_all, count=1000)     # a function(ctx, ...) run in that guest
        wrote = left.call(write_all, count=1000)       # what it returns must be JSON
        left.qmp("device_del", {"id": "x"}); left.kill()
        assert reader.result() == wrote

One case from the command line: `.venv/bin/python -m tests.hil run --case NAME [--json FILE]`.
"""

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from tools.polls import polls
from tools.rig.qemu import Machine

if TYPE_CHECKING:
    from tests.hil.rig import Rig

PCI: Final = Path("/sys/bus/pci/devices")


class Skipped(Exception):
    """This can't run here, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a case went through."""

    driver: str  # the kernel's name of it: "vfio-pci", "i801_smbus", "cxl_pci"
    device: str  # its address: "0000:00:03.0", "i2c-0/0x50", "mem0"
    numbers: Mapping[str, Any] = field(default_factory=dict)


class Host(Protocol):
    """The host's end, as the guest's program reaches it."""

    def ask(self, what: str, body: Mapping[str, Any]) -> Any: ...


class Context:
    """What a function in a guest has besides the machine itself."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self.allowed: list[str] = []
        self.health: dict[str, int] = {}  # counters to be shown with the case

    def host(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """A QMP command of this machine; its answer. Raises HostRefused."""
        return self._host.ask("qmp", {"command": command, "arguments": dict(arguments or {})})

    def host_event(self, event: str, timeout_s: float = 20, **data: Any) -> dict[str, Any]:
        """Wait until QEMU has sent that event with these data (kept ones count, once each)."""
        answer: dict[str, Any] = self._host.ask(
            "event", {"event": event, "timeout_s": timeout_s, "data": data}
        )
        return answer

    def log(self, text: str) -> None:
        """A line for who watches the run."""
        self._host.ask("log", {"text": text})

    def skip(self, why: str) -> NoReturn:
        """This can't run here."""
        raise Skipped(why)

    def allow(self, pattern: str) -> None:
        """Kernel messages that this case brings about on purpose."""
        self.allowed.append(pattern)

    def wait(
        self,
        until: Callable[[], object],
        what: str,
        timeout_s: float = 20,
        turn: Callable[[], object] = lambda: None,
    ) -> int:
        """Milliseconds until it held. `turn` is called before each look (`Loop.step`).
        AssertionError names `what` when it never did."""
        for waited_ms in polls(int(timeout_s * 1000), step_ms=10):
            turn()
            if until():
                return waited_ms
        raise AssertionError(f"{what}: not within {timeout_s:g} s")

    def modprobe(self, module: str, *options: str) -> None:
        """Load a module of the kernel, with options. AssertionError with modprobe's words."""
        done = subprocess.run(
            ["modprobe", module, *options], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"modprobe {module}: {done.stderr.strip()}"

    def pci(self, ids: str, which: int = 0) -> str:
        """Address of the function with these ids ("vendor:device", hexadecimal), in order of the
        bus. AssertionError names what is there instead."""
        found = {
            path.name: f"{_hex(path / 'vendor')}:{_hex(path / 'device')}"
            for path in sorted(PCI.iterdir())
        }
        matching = [address for address, there in found.items() if there == ids]
        assert len(matching) > which, f"PCI function {ids} number {which} is not there: {found}"
        return matching[which]

    def driver(self, address: str) -> str:
        """The driver that a PCI function is bound to; "" for none."""
        link = PCI / address / "driver"
        return link.resolve().name if link.exists() else ""


def _hex(path: Path) -> str:
    return path.read_text().strip().removeprefix("0x")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A function in one guest, or (`on` is None) one on the host with machines of its own."""

    name: str
    run: Callable[..., Evidence]
    on: Machine | None
    smoke: bool
    required: bool
    deadline_s: float

    @property
    def machine(self) -> str:
        return self.on.name if self.on else "own"


def case(
    *, on: Machine, smoke: bool = False, required: bool = True, deadline_s: float = 60
) -> Callable[[Callable[[Context], Evidence]], Case]:
    """A case in one guest. `deadline_s` counts seconds of the host, which emulates slowly."""

    def wrap(run: Callable[[Context], Evidence]) -> Case:
        return Case(
            name=run.__name__,
            run=run,
            on=on,
            smoke=smoke,
            required=required,
            deadline_s=deadline_s,
        )

    return wrap


def rig_case(
    *, required: bool = True, deadline_s: float = 300
) -> Callable[[Callable[["Rig"], Evidence]], Case]:
    """A case on the host, with machines of its own."""

    def wrap(run: Callable[["Rig"], Evidence]) -> Case:
        return Case(
            name=run.__name__,
            run=run,
            on=None,
            smoke=False,
            required=required,
            deadline_s=deadline_s,
        )

    return wrap
