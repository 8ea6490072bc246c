"""A whole local card in a temporary place, for benchmarks that need one; gone on every path."""

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from hal.errors import HalError
from hal.linux.clock import LinuxClock
from hal.local.client import KeeperControl
from tools.bench.figures import Unmeasured
from tools.bench.measure import ask_program, time_program, with_bytecode
from tools.bench.timing import MS
from tools.client import Client
from tools.compose import load_compose
from tools.daemon import live_owners
from tools.errors import DaemonRefused, DaemonUnreachable, ToolError
from tools.images import open_image, open_layer
from tools.paths import Places, find_places

BOARD: Final = "local"
APF_TIMEOUT_S: Final = 40.0  # `apf up` and `apf down` give up after 30
EXIT_TIMEOUT_NS: Final = 3_000 * MS
LEASED_TIMEOUT_MS: Final = 20_000
POLL_NS: Final = 20 * MS
CALL_TIMEOUT_MS: Final = 10_000
BUSYBOX_REF: Final = "bench/busybox"
HOST_REF: Final = "host"
PROGRAMS: Final = (
    "firmware.supervisor",
    "hal.local.keeper",
    "firmware.app",
    "firmware.cnm.init",
    "firmware.cnm.agent",
)
APPLETS: Final = ("sh", "sleep")

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class CardEvent:
    """One line of the card's story, and when it was read here."""

    seen_ns: int
    mono_ms: int  # CLOCK_BOOTTIME, as `seen_ns`
    code: str
    cnm: str | None
    instance: str | None


class BenchCard:
    """A running card and what a benchmark asks of it. Raises Unmeasured for what it will not do."""

    def __init__(self, places: Places, status: Json, clock: LinuxClock, folder: Path) -> None:
        self.places = places
        self.status = status
        self.clock = clock
        self._folder = folder

    def call(self, method: str, params: Mapping[str, object] | None = None) -> Any:
        """One request on a connection of its own. Raises ToolError."""
        with Client(self.places.socket, timeout_ms=CALL_TIMEOUT_MS) as client:
            return client.call(method, params)

    def until(self, what: str, timeout_ms: int, holds: Callable[[], bool]) -> int:
        """Poll until it holds; `now_ns` then. A daemon that is away is asked again."""
        until_ns = self.clock.now_ns() + timeout_ms * MS
        why = ""
        while True:
            try:
                if holds():
                    return self.clock.now_ns()
                why = ""
            except DaemonUnreachable as exc:
                why = f" ({exc.text})"
            now_ns = self.clock.now_ns()
            if now_ns > until_ns:
                raise Unmeasured(f"{what}: not so after {timeout_ms / 1000:g} s{why}")
            self.clock.wait(now_ns + POLL_NS)

    def cnms(self) -> list[Json]:
        found: list[Json] = self.call("cnm.list")
        return found

    def cnm(self, cnm: str) -> Json:
        return next(item for item in self.cnms() if item["id"] == cnm)

    def wait_leased(self, timeout_ms: int = LEASED_TIMEOUT_MS) -> int:
        """Until every CNM can be used."""
        return self.until("every CNM is LEASED", timeout_ms, self._all_leased)

    def _all_leased(self) -> bool:
        return all(item["state"] == "LEASED" for item in self.cnms())

    @contextlib.contextmanager
    def events(self) -> Iterator[Callable[[int], Iterator[CardEvent]]]:
        """Events from now on: `follow(until_ns)` yields them until then. Use it once."""
        with Client(self.places.socket, timeout_ms=CALL_TIMEOUT_MS) as client:
            last_seq = int(client.call("status")["counters"]["events"])
            client.call("events.subscribe", {"since_seq": last_seq})

            def follow(until_ns: int) -> Iterator[CardEvent]:
                while (left_ms := (until_ns - self.clock.now_ns()) // MS) > 0:
                    for note in client.notifications(timeout_ms=left_ms):
                        params = note.get("params") or {}
                        yield CardEvent(
                            seen_ns=self.clock.now_ns(),
                            mono_ms=int(params["mono_ms"]),
                            code=str(params["code"]),
                            cnm=params.get("cnm"),
                            instance=params.get("instance"),
                        )
                        break

            yield follow

    def past_events(self) -> list[CardEvent]:
        """What the card still knows of its past."""
        found = []
        with Client(self.places.socket, timeout_ms=CALL_TIMEOUT_MS) as client:
            next_seq = int(client.call("events.subscribe", {"since_seq": 0})["next_seq"])
            for note in client.notifications(timeout_ms=CALL_TIMEOUT_MS):
                params = note["params"]
                found.append(
                    CardEvent(
                        seen_ns=self.clock.now_ns(),
                        mono_ms=int(params["mono_ms"]),
                        code=str(params["code"]),
                        cnm=params.get("cnm"),
                        instance=params.get("instance"),
                    )
                )
                if int(params["seq"]) >= next_seq - 1:
                    break
        return found

    def fault(self, slot: int, link: str, **faults: object) -> None:
        """Arm the keeper's faults on one control link (hal/local/faults.py)."""
        keeper = KeeperControl(self.places.run)
        try:
            keeper.call("fault", slot=slot, link=link, **faults)
        finally:
            keeper.close()

    def import_busybox(self) -> str:
        """An image that containers can be made of, or the CNM's own root where that can't be had:
        its reference."""
        busybox = shutil.which("busybox")
        if os.geteuid() or busybox is None or shutil.which("runc") is None:
            return HOST_REF
        root = self._folder / "rootfs"
        (root / "bin").mkdir(parents=True)
        shutil.copy(busybox, root / "bin" / "busybox")
        for name in APPLETS:
            (root / "bin" / name).symlink_to("busybox")
        for name in ("proc", "sys", "dev", "tmp", "etc"):
            (root / name).mkdir()
        arch = os.uname().machine
        with (
            open_image(BUSYBOX_REF, root, arch=arch) as image,
            Client(self.places.socket, timeout_ms=CALL_TIMEOUT_MS) as client,
        ):
            params = {"ref": image.ref, "manifest": image.manifest()}
            missing = set(client.call("image.begin", params)["missing"])
            for layer in image.layers:
                if layer.digest not in missing:
                    continue
                with open_layer(layer) as file:
                    blob = {
                        "ref": image.ref,
                        "digest": layer.digest,
                        "size_bytes": layer.size_bytes,
                    }
                    client.call("image.blob", blob, fds=[file.fileno()])
            client.call("image.commit", {"ref": image.ref})
        return BUSYBOX_REF

    def submit(self, name: str, compose: str) -> None:
        """Submit a Compose file of this text."""
        path = self._folder / f"{name}.yaml"
        path.write_text(compose)
        workload = load_compose(path, name=name).workload
        self.call("workload.submit", {"workload": workload.to_json()})

    def instances(self, workload: str) -> list[Json]:
        found: list[Json] = self.call("workload.ps", {"workload": workload})
        return found

    def remove(self, workload: str, timeout_ms: int) -> None:
        """Until nothing of it is left."""
        self.call("workload.remove", {"name": workload})

        def gone() -> bool:
            try:
                return not self.instances(workload)
            except DaemonRefused:
                return True

        self.until(f"{workload} is gone", timeout_ms, gone)


@contextlib.contextmanager
def bench_card(say: Callable[[str], None], *, compiled: bool) -> Iterator[BenchCard]:
    """`apf up --board local` in a temporary place. `compiled`: its programs find bytecode, which
    costs a second. Raises Unmeasured when it does not come up."""
    folder = Path(tempfile.mkdtemp(prefix="apfb-"))
    clock = LinuxClock()
    places = find_places(run=str(folder / "run"), state=str(folder / "state"))
    stopped = False
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_ended_in_order())
            if compiled:
                stack.enter_context(with_bytecode(folder / "bytecode"))
                _compile()
            try:
                status = _apf("up", places, "--board", BOARD)
                yield BenchCard(places, status, clock, folder)
            finally:
                stopped = _stop(places, clock, say)
    except ToolError as exc:
        raise Unmeasured(exc.text) from exc
    except HalError as exc:
        raise Unmeasured(str(exc)) from exc
    finally:
        clock.close()
        if stopped:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            say(f"bench: a card could not be stopped; see {places.supervisor_log}")


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """SIGTERM unwinds this process, so that the card goes with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, _frame: object) -> NoReturn:
        sys.exit(128 + number)  # as shells count

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _compile() -> None:
    """Import each program of the card once. Raises Unmeasured."""
    for module in PROGRAMS:
        time_program([sys.executable, "-c", f"import {module}"])


def _apf(command: str, places: Places, *options: str) -> Json:
    """`apf up` or `apf down` as a process of its own, so that the card is nobody's child here;
    the data of its envelope. Raises Unmeasured with its words."""
    where = ["--run", str(places.run), "--state", str(places.state), "--json"]
    envelope = ask_program("tools", [command, *options, *where], timeout_s=APF_TIMEOUT_S)
    data = envelope["data"]
    assert isinstance(data, dict)
    return data


def _stop(places: Places, clock: LinuxClock, say: Callable[[str], None]) -> bool:
    """True when nothing of the card is left."""
    pids = list(live_owners(places).values())
    try:
        _apf("down", places)
    except Unmeasured as exc:
        say(f"bench: {exc}")
        return False
    until_ns = clock.now_ns() + EXIT_TIMEOUT_NS
    while any(live([pid]) for pid in pids):  # down is done; the last of them is on its way out
        if clock.now_ns() > until_ns:
            say(f"bench: processes {pids} of {places.run} have not ended")
            return False
        clock.wait(clock.now_ns() + POLL_NS)
    return True


def kill(pid: int, number: signal.Signals) -> None:
    """A signal to a process of the card. Raises Unmeasured when it is gone."""
    try:
        os.kill(pid, number)
    except OSError as exc:
        raise Unmeasured(f"{number.name} to process {pid}: {exc.strerror}") from exc


def started_ns(pid: int) -> int:
    """When a process began, CLOCK_BOOTTIME, to the tick (10 ms). Ref: proc_pid_stat(5), field 22.
    Raises Unmeasured."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError as exc:
        raise Unmeasured(f"process {pid}: {exc.strerror}") from exc
    ticks = int(text.rpartition(")")[2].split()[19])
    return ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def rss_bytes(pid: int) -> int:
    """VmRSS. Ref: proc_pid_status(5). Raises Unmeasured."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError as exc:
        raise Unmeasured(f"process {pid}: {exc.strerror}") from exc
    raise Unmeasured(f"process {pid} has no VmRSS: it has ended")


def cpu_time_ns(pid: int) -> int:
    """CPU time of a process's first thread so far. Ref: sched-stats.rst, /proc/PID/schedstat.
    Raises Unmeasured."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])
    except OSError as exc:
        raise Unmeasured(f"process {pid}: {exc.strerror}") from exc


def live(pids: Sequence[int]) -> bool:
    """Whether all of them run, as the kernel sees it; one that nobody has reaped yet does not."""
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        if text.rpartition(")")[2].split()[0] in ("Z", "X"):
            return False
    return True
