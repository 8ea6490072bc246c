"""The composition root of a CNM on Linux: the only file here that names concrete backends.

    init    --config FD-or-PATH [--keeper FD]     PID 1 (or a subreaper) of the CNM
            --board NAME --slot N --run DIR --state DIR    the same, from a board of kind cnm
    agent   --config PATH --init FD [--window FD,FD,FD] [--overlay]

The keeper of the local board gives init a socket (descriptor 3) over which the window and its
doorbells come; init hands them on to each agent that it starts. Words go to stderr, a line each.
"""

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from firmware.board import BoardError
from firmware.cnm.agent import AgentPorts, build_agent
from firmware.cnm.config import CONFIG_LIMIT_BYTES, CnmConfig
from firmware.cnm.from_board import cnm_config
from firmware.cnm.init import InitPorts, build_init
from firmware.cnm.supervisor import StartAgent
from firmware.fields import FieldError
from firmware.loop import MS, Loop
from firmware.mover import mover_argv, open_mailbox
from hal.bar_layout import BarLayout
from hal.errors import HalError
from hal.linux.blobs import LinuxBlobStore
from hal.linux.cgroup import CgroupTree
from hal.linux.children import Children, become_subreaper
from hal.linux.clock import LinuxClock
from hal.linux.entropy import LinuxEntropy
from hal.linux.files import LinuxFiles
from hal.linux.mover import Mover
from hal.linux.overlay import LinuxOverlay
from hal.linux.pci_window import pci_half_bytes, why_absent
from hal.linux.pipe import PipeReader
from hal.linux.runtime_oci import OciRuntime
from hal.linux.runtime_process import ProcessRuntime
from hal.linux.shm import shm_window_from_fds
from hal.linux.spawner import LinuxSpawner
from hal.linux.stream import StreamSocket
from hal.linux.trees import LinuxTrees
from hal.linux.users import find_user
from hal.linux.workers import Workers
from hal.local.window import WindowFds, open_cnm_window
from hal.ports import ByteStream, Doorbell, Process, ProcessSpec, Runtime, Usage, Window
from hal.registry import Registry, World, parse_spec

REAP_NS: Final = 1_000 * MS
KEEPER_ENV: Final = "APF_KEEPER_FD"
CGROUP_ENV: Final = "APF_CGROUP"
CONFIG_FILE: Final = "cnm.json"  # in the run directory: what the agent reads
AGENT_LOG: Final = "agent.log"
EXIT_HALT: Final = 70


def init_main(argv: Sequence[str]) -> int:
    """`python -m firmware.cnm.init`. 0 after SIGTERM, 1 when it could not start, 2 usage."""
    parser = argparse.ArgumentParser(prog="firmware.cnm.init")
    parser.add_argument("--config", help="JSON: a path, or a descriptor's number")
    parser.add_argument("--board", help="instead: a board of kind cnm, by name or file")
    parser.add_argument("--slot", type=int, default=0, help="of that board")
    parser.add_argument("--run", type=Path, default=Path("/run/apf-cnm"))
    parser.add_argument("--state", type=Path, default=Path("/var/lib/apf-cnm"))
    parser.add_argument("--keeper", type=int, default=int(os.environ.get(KEEPER_ENV, "-1")))
    options = parser.parse_args(argv)
    if (options.config is None) == (options.board is None):
        parser.error("one of --config and --board is needed")
    try:
        if options.board is None:
            config = _read_config(options.config)
        else:
            run, state = options.run.resolve(), options.state.resolve()
            config = cnm_config(options.board, options.slot, run=run, state=state)
        if not config.cgroup:
            config = replace(config, cgroup=os.environ.get(CGROUP_ENV, ""))
        return _run_init(config, options.keeper)
    except (FieldError, BoardError, HalError, OSError) as exc:
        _say(f"cnm-init can't start: {exc}")
        return 1


def agent_main(argv: Sequence[str]) -> int:
    """`python -m firmware.cnm.agent`. Ends when init does: 1."""
    parser = argparse.ArgumentParser(prog="firmware.cnm.agent")
    parser.add_argument("--config", required=True)
    parser.add_argument("--init", type=int, required=True, help="descriptor of the stream to init")
    parser.add_argument("--window", default="", help="memfd, bell to hear, bell to ring")
    parser.add_argument("--overlay", action="store_true", help="overlays end with this namespace")
    options = parser.parse_args(argv)
    try:
        config = _read_config(options.config)
        fds = tuple(int(fd) for fd in options.window.split(",") if fd)
        return _run_agent(config, options.init, fds, overlay=options.overlay)
    except (FieldError, HalError, OSError, ValueError) as exc:
        _say(f"agent can't start: {exc}")
        return 1


# --- init ---


def _run_init(config: CnmConfig, keeper_fd: int) -> int:
    os.makedirs(config.state_dir, 0o700, exist_ok=True)
    os.makedirs(config.run_dir, 0o700, exist_ok=True)
    is_pid_1 = os.getpid() == 1
    if not is_pid_1:
        become_subreaper()
    loop = Loop(LinuxClock(), on_fault=_go_on)
    children = Children(loop)
    tree = CgroupTree.detect()
    window_fds = _window_fds(keeper_fd)
    half_bytes = window_fds.half_bytes if window_fds else _half_bytes(config.window)
    registry = Registry(World(reactor=loop))
    spawner = LinuxSpawner(children, tree)
    init = build_init(
        config,
        InitPorts(
            reactor=loop,
            entropy=LinuxEntropy(),
            open_mc=lambda: _open_link(config.mc, registry, spawner),
            start_agent=_agent_starter(config, children, tree, window_fds, overlay=is_pid_1),
            runtimes=_runtimes(config, loop, children, tree),
            files=LinuxFiles(config.state_dir),
            logs=LinuxFiles(f"{config.state_dir}/logs"),
            open_output=PipeReader,
            node_usage=_node_usage(config, tree),
            window_tx_bytes=half_bytes,
            window_rx_bytes=half_bytes,
            halt=_halt if is_pid_1 else None,
            log=_say,
        ),
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.post(lambda: init.stop(loop.stop)))
    loop.every(REAP_NS, lambda: _reap(children))
    init.start()
    _say(f"{config.id}: boot {init.identity.boot_id.hex()}, pid {os.getpid()}")
    loop.run()
    _say(f"{config.id}: down")
    return 0


def _runtimes(
    config: CnmConfig, loop: Loop, children: Children, tree: CgroupTree
) -> dict[str, Runtime]:
    """Those of the module's description that this host has."""
    parent = config.cgroup or f"/apf/{config.id}"

    def oci() -> Runtime:
        return OciRuntime(
            loop,
            children,
            tree,
            cgroup_parent=parent,
            state_dir=f"{config.run_dir}/runc",
            bundle_dir=f"{config.run_dir}/bundles",
        )

    def process() -> Runtime:
        # by this mark the keeper finds what has outlived its init, where there is no namespace
        mark = {CGROUP_ENV: os.environ[CGROUP_ENV]} if CGROUP_ENV in os.environ else {}
        return ProcessRuntime(loop, children, tree, cgroup_parent=parent, env=mark)

    makers: dict[str, Callable[[], Runtime]] = {"oci": oci, "process": process}
    found: dict[str, Runtime] = {}
    for name in config.module.runtimes:
        maker = makers.get(name)
        if maker is None:
            _say(f"runtime {name!r} is not known here; known: {', '.join(makers)}")
            continue
        try:
            found[name] = maker()
        except HalError as exc:
            _say(f"runtime {name!r}: {exc}")
    return found


def _agent_starter(
    config: CnmConfig,
    children: Children,
    tree: CgroupTree,
    window_fds: WindowFds | None,
    *,
    overlay: bool,
) -> StartAgent:
    spawner = LinuxSpawner(children, tree)
    config_path = f"{config.run_dir}/{CONFIG_FILE}"
    LinuxFiles(config.run_dir).write(CONFIG_FILE, config.to_json())
    window = (window_fds.memfd, window_fds.bell_rx, window_fds.bell_tx) if window_fds else ()

    def start(on_exit: Callable[[int], None]) -> tuple[ByteStream, Process]:
        stream, fd = spawner.stream_pair()
        argv = [sys.executable, "-m", "firmware.cnm.agent"]
        argv += ["--config", config_path, "--init", str(fd)]
        argv += ["--window", ",".join(map(str, window))]
        argv += ["--overlay"] if overlay else []
        spec = ProcessSpec(
            argv=argv,
            env=dict(os.environ),
            pass_fds=(fd, *window),
            cgroup=f"{config.cgroup}/agent" if config.cgroup else None,
            log_path=f"{config.run_dir}/{AGENT_LOG}",
        )
        try:
            process = spawner.spawn(spec, on_exit)
        except HalError:
            stream.close()
            raise
        return stream, process

    return start


def _window_fds(keeper_fd: int) -> WindowFds | None:
    """None without a keeper: such a CNM has no window, and stages nothing."""
    if keeper_fd < 0:
        return None
    os.set_inheritable(keeper_fd, False)
    try:
        return open_cnm_window(keeper_fd)
    except HalError as exc:
        _say(f"no window: {exc}")
        return None


def _open_link(text: str, registry: Registry, spawner: LinuxSpawner) -> ByteStream:
    if text.startswith("mailbox:"):
        return open_mailbox(text, spawner)
    return registry.open_stream(text)


def _half_bytes(window: str) -> int:
    """What each end may write into the window that the config names; 0 while it is not there."""
    if not window:
        return 0
    spec = parse_spec(window)
    try:
        if spec.scheme == "pci":
            return pci_half_bytes(spec.target)
        return BarLayout.of(spec.integer("bytes", 0)).half_bytes
    except HalError as exc:
        _say(f"the window is not there yet: {exc}")
        return 0


def _node_usage(config: CnmConfig, tree: CgroupTree) -> Callable[[], Usage]:
    if not config.cgroup:
        return Usage
    return tree.at(config.cgroup).usage


def _reap(children: Children) -> None:
    children.reap_orphans()


def _halt(text: str) -> None:
    """The end of PID 1 is the end of its pid namespace and of all that runs in it."""
    _say(text)
    os._exit(EXIT_HALT)


def _go_on(exc: BaseException) -> bool:
    """Init's policy for a bug of ours in one handler: trace it and go on, for its death would
    take every instance with it. What asks the program to end does end it."""
    traceback.print_exception(exc, file=sys.stderr)
    return isinstance(exc, Exception)


# --- agent ---


def _run_agent(
    config: CnmConfig, init_fd: int, window_fds: tuple[int, ...], *, overlay: bool
) -> int:
    loop = Loop(LinuxClock())  # a bug of ours ends it: init starts another
    workers = Workers(loop)
    blobs = LinuxBlobStore(f"{config.state_dir}/blobs", loop, workers)
    registry = Registry(World(reactor=loop))
    spawner = LinuxSpawner(Children(loop), CgroupTree.detect())
    window: Window | None = None
    doorbell: Doorbell | None = None
    if len(window_fds) == 3:
        window, doorbell = shm_window_from_fds(*window_fds, "cnm")
    elif config.window:
        spec = parse_spec(config.window)
        absent = partial(why_absent, spec.scheme, spec.target)
        mover = Mover(config.window, spawner, loop, mover_argv, say=_say, absent=absent)
        window, doorbell = mover.pair()

    def ended(text: str) -> None:
        _say(text)
        loop.stop()

    agent = build_agent(
        config,
        AgentPorts(
            reactor=loop,
            entropy=LinuxEntropy(),
            open_link=lambda: _open_link(config.agent, registry, spawner),
            init_stream=StreamSocket.from_fd(init_fd),
            window=window,
            doorbell=doorbell,
            blobs=blobs,
            trees=LinuxTrees(config.state_dir, blobs, workers, devices=os.geteuid() == 0),
            files=LinuxFiles(config.state_dir, workers),
            logs=LinuxFiles(f"{config.state_dir}/logs"),
            path_of=lambda path: f"{config.state_dir}/{path}",
            overlay=LinuxOverlay() if overlay else None,
            ended=ended,
            log=_say,
            find_user=_ids_of,
        ),
    )
    agent.start()
    loop.run()
    workers.close()
    return 1


def _ids_of(rootfs: str, text: str) -> tuple[int, int]:
    user = find_user(rootfs, text)
    return user.uid, user.gid


# --- both ---


def _read_config(source: str) -> CnmConfig:
    """Raises FieldError, OSError."""
    target: int | str = int(source) if source.isdigit() else source
    with open(target, "rb") as file:
        return CnmConfig.from_json(file.read(CONFIG_LIMIT_BYTES + 1))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201  the keeper keeps it
