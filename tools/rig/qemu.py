"""One virtual machine: QEMU started with given devices, bounded in time, always taken down.

Software emulation, so that it runs anywhere. The machine is a q35 whose guest sees the host's
files read-only (tools/rig/qemu_guest.py); beyond the two virtio devices for that and for the
channel to the guest's program it has what its `Machine` names. Ref: qemu(1), 7.2.

    with Qemu(machine, program=[...], folder=project) as vm:
        vm.lines.receive(60)            # what the guest's program says
        vm.qmp.command("device_add", {...})
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from hal.linux.clock import LinuxClock
from tools.polls import polls
from tools.rig.qemu_guest import CHANNEL_PORT, ROOT_TAG, build_initramfs, find_kernel
from tools.rig.qemu_qmp import Lines, MachineGone, MachineSilent, Qmp, QmpError, connect

_START_MS: Final = 20_000  # QEMU makes its sockets within 0.2 s on an idle machine
_QUIT_MS: Final = 3_000
_CONSOLE_BYTES: Final = 64 * 1024  # of the end of a console, for a report
# Of what can be emulated the plain one: Python starts in 6.8 s of processor time, where one with
# all features ("max": AVX, ERMS, 5-level paging) takes 9.5 s and copies memory more slowly.
_PROCESSOR: Final = "qemu64,+rdrand,+ssse3,+sse4.1,+sse4.2,+popcnt,+pclmulqdq"
# An oops ends the machine, so that nobody waits for it; emulation is slow and is not a stall.
_KERNEL_ARGS: Final = (
    "console=ttyS0 loglevel=5 oops=panic panic=-1 nowatchdog no_timer_check random.trust_cpu=1 "
    "rcupdate.rcu_cpu_stall_suppress=1 mitigations=off rdinit=/init"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A configuration. In `options`, `{run}` stands for the machine's own temporary folder."""

    name: str
    memory_mib: int = 1024
    processors: int = 2
    properties: str = ""  # of -machine, beyond q35
    options: tuple[str, ...] = ()  # QEMU's own, one word each
    kernel_args: str = ""


class Qemu:
    """A running machine. One thread only: QEMU is killed when the thread that started it ends."""

    def __init__(self, machine: Machine, *, program: Sequence[str], folder: Path) -> None:
        """Start it; `program` begins in the guest as soon as it has booted. Raises GuestMissing,
        MachineGone (QEMU ended at once, with what it said), OSError."""
        self.machine = machine
        self._clock = LinuxClock()
        self.started_ns = self._clock.now_ns()
        self.run = Path(tempfile.mkdtemp(prefix=f"apf-{machine.name}-"))
        self.running = False
        self._undo = contextlib.ExitStack()
        self._undo.callback(shutil.rmtree, self.run, ignore_errors=True)
        self._undo.callback(self._clock.close)
        try:
            self._start(program, folder)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def age_s(self) -> float:
        """Seconds since its start."""
        return (self._clock.now_ns() - self.started_ns) / 1e9

    def console(self) -> str:
        """The end of what the kernel and the program wrote to the console."""
        return self._tail("console")

    def said(self) -> str:
        """What QEMU itself has printed."""
        return self._tail("qemu").strip() or "nothing"

    def kill(self) -> None:
        """As if its power were cut, at once. Its other ends see a hang-up."""
        if self.running:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._process.wait(timeout=30)
            self.running = False

    def stop(self) -> None:
        """Take it down and give everything back. Twice is once."""
        if self.running:
            with contextlib.suppress(MachineGone, MachineSilent, QmpError, AttributeError):
                self.qmp.command("quit")
            for _ in polls(_QUIT_MS, step_ms=20):
                if self._process.poll() is not None:
                    self.running = False
                    break
            self.kill()
        self._undo.close()

    def _start(self, program: Sequence[str], folder: Path) -> None:
        kernel = find_kernel()
        initramfs = self.run / "initramfs"
        initramfs.write_bytes(
            build_initramfs(kernel, program=program, folder=folder, hostname=self.machine.name)
        )
        argv = [
            *("setpriv", "--pdeathsig", "KILL"),  # whatever ends us ends it
            *_base(self.machine),
            *("-kernel", str(kernel.image), "-initrd", str(initramfs)),
            *("-append", f"{_KERNEL_ARGS} {self.machine.kernel_args}".strip()),
            *_channels(self.run),
            *(option.replace("{run}", str(self.run)) for option in self.machine.options),
        ]
        with (self.run / "qemu").open("wb") as said:
            self._process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # an interrupt at the terminal is ours, we take it down
            )
        self._pidfd = os.pidfd_open(self._process.pid)
        self._undo.callback(os.close, self._pidfd)
        self.running = True
        try:
            lines = self._connect("qmp")
            self._undo.callback(lines.close)
            self.qmp = Qmp(lines)
            self.lines = self._connect("channel")
            self._undo.callback(self.lines.close)
        except MachineGone as exc:
            self._process.wait(timeout=30)
            self.running = False
            raise MachineGone(
                f"{self.machine.name}: QEMU ended with {self._process.returncode}: {self.said()}"
            ) from exc

    def _connect(self, name: str) -> Lines:
        path = self.run / name
        for _ in polls(_START_MS, step_ms=20):
            if self._process.poll() is not None:
                raise MachineGone(f"no {name}")
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return connect(path, f"{self.machine.name}/{name}")
        raise MachineSilent(f"{self.machine.name}: QEMU made no {path.name} in {_START_MS} ms")

    def _tail(self, name: str) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.run / name).read_bytes()[-_CONSOLE_BYTES:].decode(errors="replace")
        return ""


def _base(machine: Machine) -> list[str]:
    """The machine itself. `split`: the emulated IOMMU remaps interrupts only with QEMU's own
    interrupt controller, as VFIO needs."""
    return [
        *("qemu-system-x86_64", "-no-user-config", "-nodefaults", "-display", "none"),
        *("-no-reboot", "-accel", "tcg,thread=multi", "-cpu", _PROCESSOR),
        *("-machine", ",".join(["q35,kernel-irqchip=split", machine.properties]).rstrip(",")),
        *("-smp", str(machine.processors), "-m", f"{machine.memory_mib}M"),
    ]


def _channels(run: Path) -> list[str]:
    """QMP, the console, the host's files and the line to the guest's program."""
    return [
        *("-qmp", f"unix:{run}/qmp,server=on,wait=off"),
        *("-chardev", f"file,id=console,path={run}/console", "-serial", "chardev:console"),
        *("-fsdev", f"local,id={ROOT_TAG},path=/,security_model=none,readonly=on,multidevs=remap"),
        *("-device", f"virtio-9p-pci,fsdev={ROOT_TAG},mount_tag={ROOT_TAG},bus=pcie.0,addr=1e.0"),
        *("-device", "virtio-serial-pci,id=channels,bus=pcie.0,addr=1d.0"),
        *("-chardev", f"socket,id=channel,path={run}/channel,server=on,wait=off"),
        *("-device", f"virtserialport,bus=channels.0,chardev=channel,name={CHANNEL_PORT}"),
    ]
