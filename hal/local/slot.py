"""One slot of the local board: its power, and what stands for power-good.

    OFF --on--> STARTING --exec seen--> ON --off, or init died--> FENCING --proof--> OFF

Power-good is low only in OFF, that is, after proof: whoever takes it for a fence (DESIGN
section 4, rule 9b) is right to. A start that fails goes through FENCING as well.
"""

import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Container, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final, TypeAlias

from hal.errors import HalError, Refused, Unavailable
from hal.linux.procstat import proc_stat
from hal.local import rundir, spawn
from hal.local.census import CnmProcess, take_census
from hal.local.cgroups import CgroupTrees, SlotCgroup
from hal.local.config import SlotConfig
from hal.local.fence import Fence, Target
from hal.local.initlog import InitLog
from hal.local.miniloop import MiniLoop
from hal.ports import Event, FenceKind, PowerAction, SlotState

REQUESTS_LIMIT: Final = 16  # waiting on one slot; more are refused
_DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PowerDone: TypeAlias = Callable[[SlotState | HalError], None]


class Phase(Enum):
    OFF = "off"
    STARTING = "starting"
    ON = "on"
    FENCING = "fencing"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotHost:
    """What all slots share."""

    loop: MiniLoop
    run_dir: Path
    trees: CgroupTrees
    namespaces: bool
    unified: bool  # may we use the v2 tree?
    inits: set[int] = field(default_factory=set)  # not reaped yet


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotHooks:
    """What the keeper does at the edges of power."""

    before_on: Callable[[], None]  # zero the window
    powered: Callable[[bool], None]  # the CNM's UARTs hear and speak, or not
    packet: Callable[[spawn.StartedInit], None]  # the init's socket is readable
    changed: Callable[[SlotState, object], None]  # (state, whose request it was or None)


class Slot:
    """Keeper's loop only."""

    def __init__(
        self, host: SlotHost, config: SlotConfig, cgroup_path: str, hooks: SlotHooks
    ) -> None:
        self.config = config
        self._host, self._hooks = host, hooks
        self._cgroup = SlotCgroup(host.trees, cgroup_path)
        self._phase = Phase.OFF
        self._text = "never powered"
        self._init: spawn.StartedInit | None = None
        self._exec_open = False  # init.exec_fd is ours to close
        self._log: InitLog | None = None
        self._waiting: deque[tuple[PowerAction, object, PowerDone]] = deque()

    @property
    def init(self) -> spawn.StartedInit | None:
        return self._init

    @property
    def phase(self) -> Phase:
        return self._phase

    def state(self) -> SlotState:
        """As it is now; changes nothing."""
        return SlotState(
            slot=self.config.slot,
            present=True,
            power_good=self._phase is not Phase.OFF,
            failing=self._phase is Phase.FENCING,
            fence=FenceKind.POWER if self._host.namespaces else FenceKind.LEASE,
            init_pid=self._init.pid if self._init is not None else None,
            cgroup=self._cgroup.path,
            text=self._text,
        )

    def request(self, action: PowerAction, owner: object, done: PowerDone) -> None:
        """READ is answered at once; ON and OFF one after the other, in order."""
        if action is PowerAction.READ:
            done(self.state())
        elif len(self._waiting) >= REQUESTS_LIMIT:
            done(Refused(f"{self.config.id}: {REQUESTS_LIMIT} power requests wait already"))
        else:
            self._waiting.append((action, owner, done))
            if len(self._waiting) == 1:
                self._next()

    def processes(self, wanted: Container[int] | None = None) -> list[CnmProcess]:
        """All that runs, or the wanted ones of the pids that the CNM's init sees."""
        if self._init is None:
            return []
        return take_census(
            self._init.pid,
            self._cgroup if self._host.unified else None,
            namespaces=self._host.namespaces,
            mark=self._mark(),
            wanted=wanted,
        )

    # --- one request after the other ---

    def _next(self) -> None:
        if not self._waiting or self._phase in (Phase.STARTING, Phase.FENCING):
            return
        action, _, _ = self._waiting[0]
        if (action is PowerAction.ON) == (self._phase is Phase.ON):
            self._answer(self.state())  # it holds already
        elif action is PowerAction.ON:
            self._turn_on()
        else:
            self._fence()

    def _answer(self, result: SlotState | HalError) -> None:
        _, _, done = self._waiting.popleft()
        done(result)
        self._host.loop.post(self._next)

    def _turn_on(self) -> None:
        self._phase = Phase.STARTING
        self._text = "power is coming up"
        try:
            self._hooks.before_on()
            self._start_init()
        except (HalError, OSError) as exc:
            self._fail_start(str(exc))

    def _start_init(self) -> None:
        config, loop = self.config, self._host.loop
        path = rundir.cnm_dir(self._host.run_dir, config.id)
        rundir.clear_cnm(path, keep_log=False)
        env = self._env()
        argv = [self._fill(arg) for arg in config.argv]
        program = shutil.which(argv[0], path=env["PATH"])
        if program is None:
            raise Unavailable(f"{config.id}: no program {argv[0]!r} on {env['PATH']}")
        leaf = self._cgroup.make_leaf("init") if self._host.unified else None
        if self._host.unified and leaf is None:
            raise Unavailable(f"{config.id}: can't make cgroup {self._cgroup.path}/init")
        init = spawn.start_init(
            spawn.InitSpec(
                argv=[program, *argv[1:]],
                env=env,
                cwd=config.cwd,
                namespaces=self._host.namespaces,
                cgroup=leaf,
            )
        )
        self._init, self._exec_open = init, True
        self._host.inits.add(init.pid)
        self._log = InitLog(loop, init.log_fd, path / "init.log")
        loop.watch(init.exec_fd, Event.READ, self._on_exec)

    def _on_exec(self, _event: Event) -> None:
        init = self._init
        assert init is not None
        words = spawn.exec_error(os.read(init.exec_fd, 4))
        self._close_exec()
        if words:
            self._fail_start(f"{self.config.id}: exec of {self.config.argv[0]}: {words}")
            return
        self._phase = Phase.ON
        self._text = f"init {init.pid} runs"
        self._host.loop.watch(init.pidfd, Event.READ, self._on_init_dead)
        self._host.loop.watch(init.sock.fileno(), Event.READ, self._on_packet)
        self._hooks.powered(True)
        _, owner, _ = self._waiting[0]
        self._hooks.changed(self.state(), owner)
        self._answer(self.state())

    def _fail_start(self, why: str) -> None:
        self._text = why
        self._fence(failure=Unavailable(why))

    # --- death and power off ---

    def _on_init_dead(self, _event: Event) -> None:
        assert self._init is not None
        self._host.loop.unwatch(self._init.pidfd)
        if self._phase is Phase.ON:
            self._fence(by_itself=True)

    def _on_packet(self, event: Event) -> None:
        init = self._init
        assert init is not None
        self._hooks.packet(init)
        if event & Event.HANGUP:
            self._host.loop.unwatch(init.sock.fileno())
            # An init that dies with a frozen task in its namespace is held up in exit(), and its
            # pidfd is silent; its descriptors are closed before that.
            try:
                stat = proc_stat(init.pid)
            except OSError:  # no descriptor to look with: whoever misses it cuts its power
                return
            if self._phase is Phase.ON and (stat is None or stat.ending):
                self._fence(by_itself=True)

    def _fence(self, *, by_itself: bool = False, failure: HalError | None = None) -> None:
        self._phase = Phase.FENCING
        init, config = self._init, self.config
        cause = "init died" if by_itself else "power off" if failure is None else str(failure)
        self._text = f"{cause}; being fenced"
        if init is not None:
            self._close_exec()
            for fd in (init.pidfd, init.sock.fileno()):
                self._host.loop.unwatch(fd)
        self._hooks.powered(False)
        if by_itself:  # told at once; low power is told again, with the proof
            self._hooks.changed(self.state(), None)
        owner = self._waiting[0][1] if self._waiting and not by_itself else None

        answered = False

        def on_proof(evidence: str) -> None:
            status = self._forget_init()
            self._phase = Phase.OFF
            self._text = f"{cause}{status}: {evidence}"
            try:
                rundir.clear_cnm(rundir.cnm_dir(self._host.run_dir, config.id), keep_log=True)
            except OSError as exc:  # power on clears it too, and fails where it can't
                self._text += f"; its directory is not cleared: {exc}"
            # who was told that it is late has no answer to come any more
            self._hooks.changed(self.state(), None if answered else owner)
            if by_itself or answered:
                self._next()
            else:
                self._answer(self.state() if failure is None else failure)

        def on_late(error: HalError) -> None:
            nonlocal answered
            self._text = str(error)
            if not by_itself and self._waiting:
                answered = True
                _, _, done = self._waiting.popleft()  # the next waits for the proof
                done(error)

        target = Target(
            cgroup=self._cgroup,
            pid=init.pid if init is not None else None,
            pidfd=init.pidfd if init is not None else None,
            namespaces=self._host.namespaces,
            mark=self._mark(),
            inits=self._host.inits,
        )
        Fence(self._host.loop, target, done=on_proof, late=on_late)

    def _forget_init(self) -> str:
        """Reap it and close what we hold of it; how it ended, in words."""
        init, self._init = self._init, None
        if init is None:
            return ""
        if self._log is not None:
            self._log.close()
            self._log = None
        else:  # its file could not be made
            os.close(init.log_fd)
        words = ""
        ended = os.waitid(os.P_PIDFD, init.pidfd, os.WEXITED | os.WNOHANG)
        if ended is not None:
            exited = ended.si_code == os.CLD_EXITED
            how = str(ended.si_status) if exited else signal.Signals(ended.si_status).name
            words = f" ({'status' if exited else 'signal'} {how})"
        os.close(init.pidfd)
        init.sock.close()
        self._host.inits.discard(init.pid)
        return words

    def _close_exec(self) -> None:
        init = self._init
        if init is not None and self._exec_open:
            self._exec_open = False
            self._host.loop.unwatch(init.exec_fd)
            os.close(init.exec_fd)

    # --- what the init is told ---

    def _mark(self) -> tuple[str, str]:
        return "APF_CGROUP", self._cgroup.path

    def _env(self) -> dict[str, str]:
        env = {"PATH": os.environ.get("PATH", _DEFAULT_PATH), "LANG": "C.UTF-8"}
        env |= {key: self._fill(value) for key, value in self.config.env.items()}
        return env | {
            "APF_CNM_ID": self.config.id,
            "APF_SLOT": str(self.config.slot),
            "APF_RUN": str(self._host.run_dir),
            "APF_CGROUP": self._cgroup.path,
            "APF_KEEPER_FD": str(spawn.KEEPER_FD),
            "APF_FENCE": self.state().fence.value,
        }

    def _fill(self, text: str) -> str:
        values: Mapping[str, str] = {
            "{id}": self.config.id,
            "{slot}": str(self.config.slot),
            "{run}": str(self._host.run_dir),
            "{cgroup}": self._cgroup.path,
            "{fence}": self.state().fence.value,
        }
        for mark, value in values.items():
            text = text.replace(mark, value)
        return text


def state_json(state: SlotState) -> dict[str, object]:
    """A SlotState as it goes over the socket."""
    return {**asdict(state), "fence": state.fence.value}
