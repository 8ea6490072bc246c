"""The processes that alone touch BARs: the composition root of `firmware.mover` and `.mailbox`.

    python -m firmware.mover_app --window SPEC --near MEMFD,BELL,BELL --control FD [--run DIR]
    python -m firmware.mover_app --mailbox SPEC --control FD     the stream carries the link itself

The first one's owner is `hal.linux.mover`. Words on its control stream: `up`, `down CAUSE`, `alive`
each second. It ends when that stream does, with status 0; with 1 when its window can't be opened,
or has failed.
"""

import argparse
import sys
from pathlib import Path
from typing import Final

from firmware.loop import MS, Loop
from firmware.mailbox import open_relay
from firmware.mover import Bridge
from hal.errors import HalError, LinkDown
from hal.linux.clock import LinuxClock
from hal.linux.entropy import LinuxEntropy
from hal.linux.shm import shm_window_from_fds
from hal.linux.stream import StreamSocket
from hal.local.client import KeeperClient
from hal.ports import Event
from hal.registry import Registry, WindowPair, World

ALIVE_NS: Final = 1_000 * MS
OPEN_NS: Final = 10_000 * MS  # a function that is reset on the way
CAUSE_LIMIT: Final = 900  # characters


def main(argv: list[str] | None = None) -> int:
    """Run until the owner hangs up or the window fails."""
    parser = argparse.ArgumentParser(prog="firmware.mover_app")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--window", help="spec string, see hal/registry.py")
    what.add_argument("--mailbox", help="the same, of a memory that carries a control link")
    parser.add_argument("--near", default="", help="memfd, bell to hear, bell to ring")
    parser.add_argument("--run", default="", help="where the keeper is that holds the function")
    parser.add_argument("--control", required=True, type=int)
    options = parser.parse_args(argv)
    control = StreamSocket.from_fd(options.control)
    if options.mailbox is not None:
        return _run_mailbox(options.mailbox, control)
    try:
        return _run(options.window, options.near, options.run, control)
    except (HalError, ValueError) as exc:
        _tell(control, f"down {exc}")
        return 1


def _run(window: str, near_fds: str, run: str, control: StreamSocket) -> int:
    loop = Loop(LinuxClock())
    memfd, bell_rx, bell_tx = (int(fd) for fd in near_fds.split(","))
    near = shm_window_from_fds(memfd, bell_rx, bell_tx, "cnm")
    keeper = KeeperClient(Path(run), loop) if run else None
    bridges: list[Bridge] = []
    causes: list[str] = []

    def end(why: str) -> None:
        causes.append(why)
        loop.stop()

    def on_control(_events: Event) -> None:
        try:
            control.read()
        except LinkDown:
            loop.stop()

    def opened(far: WindowPair | HalError) -> None:
        if isinstance(far, HalError):
            end(str(far))
            return
        try:
            bridges.append(Bridge(near, far, loop, LinuxEntropy(), on_end=end, say=_say))
            bridges[0].start()
        except (HalError, ValueError) as exc:
            end(str(exc))
            return
        _tell(control, "up")

    loop.watch(control.handle, Event.READ, on_control)
    loop.every(ALIVE_NS, lambda: _tell(control, "alive"))
    registry = Registry(World(reactor=loop, keeper=keeper))
    registry.submit_open_window(window, 0, loop.now_ns() + OPEN_NS, opened)
    loop.run()
    if causes:
        _tell(control, f"down {causes[0]}")
        return 1
    for bridge in bridges:
        bridge.close()
    return 0


def _run_mailbox(memory: str, stream: StreamSocket) -> int:
    """Until the owner hangs up, or the memory is gone: then its end of the stream hangs up."""
    loop = Loop(LinuxClock())
    causes: list[str] = []

    def end(why: str) -> None:
        causes.append(why)
        loop.stop()

    try:
        pair = Registry(World(reactor=loop)).open_shared_window(memory)
        open_relay(stream, pair, loop, LinuxEntropy(), end)
    except HalError as exc:
        _say(f"mailbox {memory}: {exc}")
        return 1
    loop.run()
    _say(f"mailbox {memory}: {causes[0] if causes else 'stopped'}")
    return 0


def _tell(control: StreamSocket, text: str) -> None:
    """A line to the owner; one that is gone or deaf shows by itself."""
    try:
        control.write(text.replace("\n", " ")[:CAUSE_LIMIT].encode() + b"\n")
    except LinkDown:
        return


def _say(text: str) -> None:
    sys.stderr.write(f"mover: {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
