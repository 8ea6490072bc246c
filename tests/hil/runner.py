"""Running cases: those of one machine in one boot, a fresh boot when a machine was lost."""

import contextlib
import importlib
import pkgutil
import signal
import traceback
from collections.abc import Iterator, Sequence
from typing import Any, Final

from hal.linux.clock import LinuxClock
from tests.hil import cases as cases_package
from tests.hil.case import Case, Skipped
from tests.hil.report import Boot, Row
from tests.hil.rig import Guest, GuestLost, Rig, Tell, why_failed
from tools.rig.qemu import Machine
from tools.rig.qemu_guest import GuestMissing
from tools.rig.qemu_qmp import MachineGone, MachineSilent

_BOOTS: Final = 5  # of one machine in one run: after that its other cases fail without


def all_cases() -> list[Case]:
    """Every Case at the top of a module under tests/hil/cases, in the modules' order."""
    found: dict[str, Case] = {}
    for info in pkgutil.iter_modules(cases_package.__path__, f"{cases_package.__name__}."):
        module = importlib.import_module(info.name)
        for value in vars(module).values():
            if isinstance(value, Case) and value.run.__module__ == info.name:
                if value.name in found:
                    raise ValueError(f"two cases are named {value.name}")
                found[value.name] = value
    return list(found.values())


class Run:
    """One run; rows and boots grow as it goes."""

    def __init__(self, cases: Sequence[Case], tell: Tell) -> None:
        self.rows: list[Row] = []
        self.boots: list[Boot] = []
        self._cases, self._tell = cases, tell
        self._clock = LinuxClock()
        self._start_ns = self._clock.now_ns()

    @property
    def time_ms(self) -> int:
        return (self._clock.now_ns() - self._start_ns) // 1_000_000

    def run(self) -> None:
        """All cases; what goes wrong is in the rows. Raises GuestMissing."""
        for machine, group in _by_machine(self._cases):
            if machine is None:
                for case in group:
                    self._on_host(case)
            else:
                self._on_machine(machine, group)

    def _on_machine(self, machine: Machine, group: list[Case]) -> None:
        left, why = list(group), ""
        for _ in range(_BOOTS):
            if not left:
                return
            try:
                with Rig(self._tell) as rig:
                    guest = self._boot(rig, machine)
                    while left:
                        self._in_guest(guest, left.pop(0))
            except (GuestLost, MachineGone, MachineSilent) as exc:
                self._tell(f"{machine.name} is lost: {exc}")
                why = str(exc)
            if why and not any(boot.machine == machine.name for boot in self.boots):
                break  # it has never booted: it will not
        for case in left:
            self._row(case, self._clock.now_ns(), "failed", text=f"not run: {why}")

    def _boot(self, rig: Rig, machine: Machine) -> Guest:
        self._tell(f"booting {machine.name}")
        guest = rig.boot(machine)[0]
        boot_ms = int(guest.boot_s * 1000)
        self.boots.append(Boot(machine=machine.name, kernel=guest.kernel, boot_ms=boot_ms))
        return guest

    def _in_guest(self, guest: Guest, case: Case) -> None:
        """Raises GuestLost, with the case's row written."""
        start_ns = self._clock.now_ns()
        try:
            found = guest.start(case.run, deadline_s=case.deadline_s, keep=False).outcome()
        except GuestLost as exc:
            self._row(case, start_ns, "failed", text=str(exc))
            raise
        if found.skipped and not found.complaints:
            self._row(case, start_ns, "skipped", text=found.skipped)
        elif found.failed or found.complaints:
            text = why_failed(found, guest.machine.name)
            self._row(case, start_ns, "failed", found.value, found.health, text)
        else:
            self._row(case, start_ns, "passed", found.value, found.health)

    def _on_host(self, case: Case) -> None:
        start_ns = self._clock.now_ns()
        try:
            with Rig(self._tell) as rig, _within(case.deadline_s):
                evidence = case.run(rig)
        except Skipped as exc:
            self._row(case, start_ns, "skipped", text=str(exc))
        except GuestMissing:
            raise
        except Exception as exc:  # noqa: BLE001 - however it failed, the others are to run
            where = traceback.format_tb(exc.__traceback__)[-1].strip()
            self._row(case, start_ns, "failed", text=f"{type(exc).__name__}: {exc}\n{where}")
        else:
            value = {
                "driver": evidence.driver,
                "device": evidence.device,
                "numbers": dict(evidence.numbers),
            }
            self._row(case, start_ns, "passed", value)

    def _row(
        self,
        case: Case,
        start_ns: int,
        status: str,
        value: dict[str, Any] | None = None,
        health: dict[str, int] | None = None,
        text: str = "",
    ) -> None:
        time_ms = (self._clock.now_ns() - start_ns) // 1_000_000
        self.rows.append(
            Row(
                name=case.name,
                machine=case.machine,
                required=case.required,
                status=status,
                time_ms=time_ms,
                health=health or {},
                text=text,
                **(value or {}),
            )
        )
        self._tell(f"  {status} {case.name.replace('_', ' ')} ({time_ms / 1000:.1f} s)")


@contextlib.contextmanager
def _within(deadline_s: float) -> Iterator[None]:
    """TimeoutError when what is done here takes longer. Main thread only."""

    def late(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"not done within {deadline_s:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, deadline_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _by_machine(cases: Sequence[Case]) -> Iterator[tuple[Machine | None, list[Case]]]:
    """Groups in the order of their first case; smoke cases first in each; the host's last."""
    groups: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda case: (case.on is None, not case.smoke)):
        groups.setdefault(case.machine, []).append(case)
    for group in groups.values():
        yield group[0].on, group
