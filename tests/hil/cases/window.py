"""Windows over real PCI functions: ivshmem between host and guest, and between two guests.

ivshmem-plain (1af4:1110) shows a file of the host as BAR 2; no driver holds it, and it has no
doorbell: `hal.linux.pci_window` maps it by sysfs, and the bell is polled.
"""

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from firmware.mover import mover_argv
from firmware.window import WindowChannel
from hal.errors import HalError
from hal.linux.cgroup import CgroupTree
from hal.linux.children import Children
from hal.linux.entropy import LinuxEntropy
from hal.linux.mover import Mover
from hal.linux.pci_bus import LinuxPciBus
from hal.linux.pci_window import BarWindow, open_pci_window
from hal.linux.polled_bell import PolledBell
from hal.linux.spawner import LinuxSpawner
from hal.pci_ports import PciAddress
from hal.registry import Registry, World
from tests.contract import test_doorbell, test_window
from tests.contract.rigs import DoorbellRig, WindowRig
from tests.contract.worlds import RealWorld
from tests.hil.case import Context, Evidence, case, rig_case
from tests.hil.machines import CARD, NATIVE_HOTPLUG, device, memory, port
from tests.hil.pump import CHUNK_BYTES, Worker, crc_of, progress, read, write
from tests.hil.rig import Pending, Rig
from tools.rig.qemu import Machine

IDS: Final = "1af4:1110"
DRIVER: Final = "none (sysfs resource2), pcieport"
GIB_CHUNKS: Final = (1 << 30) // CHUNK_BYTES
KILLS: Final = 8  # of each end
LIMIT_S: Final = 400
MIB: Final = 1 << 20


# --- one guest, both ends in it ---


@case(on=CARD)
def a_bar_of_ivshmem_passes_the_windows_contract(ctx: Context) -> Evidence:
    address = ctx.pci(IDS)
    run = 0
    for name, test in _tests_of(test_window):
        marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
        sets = [{mark.args[0]: value} for mark in marks for value in mark.args[1]] or [{}]
        for arguments in sets:
            a, b = (open_pci_window(f"{address}/bar2", side) for side in ("a", "b"))
            a.write(0, bytes(a.tx_bytes))
            b.write(0, bytes(b.tx_bytes))
            try:
                test(WindowRig(a=a, b=b), **arguments)
            except AssertionError as exc:
                raise AssertionError(f"{name} {arguments}: {exc}") from exc
            run += 1
            a.close()
            b.close()
    return Evidence(driver=DRIVER, device=f"{address}/bar2", numbers={"tests": run})


@case(on=CARD)
def a_polled_bell_over_ivshmem_passes_the_doorbells_contract(ctx: Context) -> Evidence:
    address = ctx.pci(IDS)
    run = 0
    for name, test in _tests_of(test_doorbell):
        world = RealWorld()
        windows = [open_pci_window(f"{address}/bar2", side) for side in ("a", "b")]
        a, b = (PolledBell(window, world.reactor) for window in windows)
        wanted = {"rig": DoorbellRig(a=a, b=b), "world": world}
        names = test.__code__.co_varnames[: test.__code__.co_argcount]
        try:
            test(**{key: wanted[key] for key in names})
            run += 1
        except pytest.skip.Exception:
            pass  # the death of an end does not show on a polled bell
        except AssertionError as exc:
            raise AssertionError(f"{name}: {exc}") from exc
        for part in (a, b, *windows):
            part.close()
        world.close()
    return Evidence(driver=DRIVER, device=f"{address}/bar2", numbers={"tests": run})


@case(on=CARD, deadline_s=90)
def a_bar_through_vfio_is_a_window_too(ctx: Context) -> Evidence:
    """The whole contract over one mapping that VFIO gave, both sides in it."""
    ctx.modprobe("vfio-pci")
    address = PciAddress.parse(ctx.pci(IDS))
    world = RealWorld()
    bus = LinuxPciBus(world.reactor)
    bus.bind(address, "vfio-pci")
    registry = Registry(World(reactor=world.reactor))
    opened: list[Any] = []
    try:
        registry.submit_open_window(f"vfio:{address}/bar2?side=a", 0, 0, opened.append)
        world.run_until(lambda: bool(opened), 30)
        assert not isinstance(opened[0], HalError), opened[0]
        a, bell = opened[0]
        b = BarWindow(a._mapping, "b", "the same mapping")
        run = 0
        for name, test in _tests_of(test_window):
            if "parametrize" in [mark.name for mark in getattr(test, "pytestmark", [])]:
                continue
            if "closing" in name:
                continue  # the last one closes them
            a.write(0, bytes(a.tx_bytes))
            b.write(0, bytes(b.tx_bytes))
            test(WindowRig(a=a, b=b))
            run += 1
        bell.close()
        b.close()
        a.close()
        a.close()
    finally:
        bus.restore()
        bus.close()
        world.close()
    return Evidence(driver="vfio-pci", device=f"{address}/bar2", numbers={"tests": run})


# --- several machines ---


@rig_case(deadline_s=LIMIT_S)
def a_gibibyte_goes_from_the_host_to_a_guest(rig: Rig) -> Evidence:
    with _shared() as folder:
        (guest,) = rig.boot(_machine("reader", folder))
        writer = Worker(lambda: write(f"map:{folder}/window?side=a", GIB_CHUNKS))
        writer.start()
        start = time.monotonic()
        try:
            got = guest.start(pump_read, deadline_s=LIMIT_S, chunks=GIB_CHUNKS).result()
            took_s = time.monotonic() - start
            for _ in range(100):
                if writer.ended():
                    break
                time.sleep(0.1)
            else:
                raise AssertionError("the writer was not told that all has come")
        finally:
            writer.stop()
    assert got["progress"] == [GIB_CHUNKS, crc_of(GIB_CHUNKS)]
    rate = int(GIB_CHUNKS * CHUNK_BYTES / MIB / took_s)
    return Evidence(
        driver=DRIVER,
        device=f"{got['device']}/bar2",
        numbers={"bytes": GIB_CHUNKS * CHUNK_BYTES, "mib_per_s": rate},
    )


@rig_case(deadline_s=LIMIT_S)
def a_gibibyte_goes_between_two_guests_whose_ends_are_killed(rig: Rig) -> Evidence:
    """Each end is killed with SIGKILL again and again, at random points, and started anew."""
    with _shared() as folder:
        left, right = rig.boot(_machine("writer", folder), _machine("reader", folder))
        start = time.monotonic()
        wrote: Pending = left.start(
            pump_write, deadline_s=LIMIT_S, chunks=GIB_CHUNKS, kills=KILLS, seed=1
        )
        got = right.start(
            pump_read, deadline_s=LIMIT_S, chunks=GIB_CHUNKS, kills=KILLS, seed=2
        ).result()
        took_s = time.monotonic() - start
        writer_kills = wrote.result()["kills"]
    assert got["progress"] == [GIB_CHUNKS, crc_of(GIB_CHUNKS)]
    assert got["kills"] + writer_kills >= KILLS
    return Evidence(
        driver=DRIVER,
        device=f"{got['device']}/bar2 in both",
        numbers={
            "bytes": GIB_CHUNKS * CHUNK_BYTES,
            "mib_per_s": int(GIB_CHUNKS * CHUNK_BYTES / MIB / took_s),
            "reader_kills": got["kills"],
            "writer_kills": writer_kills,
        },
    )


@rig_case(deadline_s=120)
def a_window_that_is_pulled_ends_its_mover_and_not_its_owner(rig: Rig) -> Evidence:
    """Pulled in the middle of a transfer, missed with its cause, plugged in and used again."""
    with _shared() as folder:
        (guest,) = rig.boot(_machine("pulled", folder))
        got = guest.start(pull_window, deadline_s=100, path=f"{folder}/window").result()
    return Evidence(
        driver="pcieport (pciehp)",
        device=got["device"],
        numbers={"cause": got["cause"], "restarts": got["restarts"], "chunks_after": got["after"]},
    )


# --- what runs in the guests ---


def pull_window(ctx: Context, *, path: str) -> dict[str, object]:
    """By its port, as a bus number may change. Both ends are here; the far one comes back later."""
    address = ctx.pci(IDS)
    function = Path("/sys/bus/pci/devices") / address
    bridge = function.resolve().parent.name
    world = RealWorld()
    faults: list[str] = []
    came: list[bytes] = []
    mover = Mover(
        f"pci:{bridge}/00.0/bar2?side=a",
        LinuxSpawner(Children(world.reactor), CgroupTree.detect()),
        world.reactor,
        mover_argv,
    )

    def owner() -> tuple[WindowChannel, list[Any]]:
        window, bell = mover.pair()
        channel = WindowChannel(window, bell, world.reactor, LinuxEntropy(), on_fault=faults.append)
        channel.attach()
        return channel, [bell, window]

    def module() -> tuple[WindowChannel, list[Any]]:
        window = open_pci_window(f"{bridge}/00.0/bar2", "b")
        bell = PolledBell(window, world.reactor)
        channel = WindowChannel(
            window,
            bell,
            world.reactor,
            LinuxEntropy(),
            on_chunk=lambda _kind, _transfer, _chunk, data: came.append(data),
        )
        channel.attach()
        return channel, [bell, window]

    def send(channel: WindowChannel, data: bytes) -> None:
        world.run_until(lambda: channel.send(1, 1, 0, data), 60)

    card, card_parts = owner()
    cnm, cnm_parts = module()
    world.run_until(lambda: mover.up and card.connected, 60)
    first = mover.pid
    for _ in range(20):
        send(card, bytes(CHUNK_BYTES))
    cnm.close()
    for part in cnm_parts:
        part.close()
    ctx.host("device_del", {"id": "window0"})
    ctx.host_event("DEVICE_DELETED", device="window0")
    world.run_until(lambda: bool(faults), 60)
    came.clear()
    # with a memory of another name: QEMU 7.2 aborts when one that was unplugged is plugged again
    ctx.host(
        "object-add",
        {
            "qom-type": "memory-backend-file",
            "id": "again",
            "mem-path": path,
            "size": 16 * MIB,
            "share": True,
        },
    )
    ctx.host(
        "device_add",
        {"driver": "ivshmem-plain", "id": "window1", "memdev": "again", "bus": "port1"},
    )
    ctx.wait(
        lambda: list(function.parent.glob(f"{bridge}/*:00.0/resource2")) or function.exists(),
        "the function is back",
        timeout_s=30,
    )
    world.run_until(lambda: mover.up, 60)
    assert mover.pid != first
    card.close()
    for part in card_parts:
        part.close()
    card, card_parts = owner()
    cnm, cnm_parts = module()
    send(card, b"after")
    world.run_until(lambda: came == [b"after"], 60)
    restarts = mover.restarts
    card.close()
    cnm.close()
    mover.close()
    world.run_until(lambda: mover._process is None, 60)
    for part in (*card_parts, *cnm_parts):
        part.close()
    world.close()
    return {
        "device": f"{address} below {bridge}",
        "cause": faults[0].partition(" ended: ")[2][:160],
        "restarts": restarts,
        "after": len(came),
    }


def pump_write(ctx: Context, *, chunks: int, kills: int = 0, seed: int = 0) -> dict[str, object]:
    address = ctx.pci(IDS)
    worker = Worker(lambda: write(f"pci:{address}/bar2?side=a", chunks))
    _run(ctx, worker, kills, seed)
    return {"device": address, "kills": worker.kills}


def pump_read(ctx: Context, *, chunks: int, kills: int = 0, seed: int = 0) -> dict[str, object]:
    address, kept = ctx.pci(IDS), Path("/tmp/kept")  # the guest's own, in its memory
    kept.unlink(missing_ok=True)
    worker = Worker(lambda: read(f"pci:{address}/bar2?side=b", chunks, kept))
    _run(ctx, worker, kills, seed)
    return {"device": address, "kills": worker.kills, "progress": list(progress(kept))}


def _run(ctx: Context, worker: Worker, kills: int, seed: int) -> None:
    """Until it ends by itself; killed before that, at random points."""
    draw = random.Random(seed)
    worker.start()
    try:
        while worker.kills < kills and not worker.ended():
            time.sleep(draw.uniform(0.2, 2.0))
            worker.kill_and_restart()
        ctx.wait(worker.ended, "the worker ends", timeout_s=LIMIT_S)
    finally:
        worker.stop()


# --- machines ---


def _machine(name: str, folder: Path) -> Machine:
    return Machine(
        name=name,
        memory_mib=640,
        processors=1,
        options=(
            *NATIVE_HOTPLUG,
            *port(1),
            *memory("window", "16M", str(folder)),
            *device("ivshmem-plain,id=window0,memdev=window,bus=port1"),
        ),
    )


@contextmanager
def _shared() -> Iterator[Path]:
    """A folder in memory that both sides' QEMU map their window from."""
    folder = Path(tempfile.mkdtemp(prefix="apf-hil-", dir="/dev/shm"))
    try:
        (folder / "window").write_bytes(bytes(16 * MIB))
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tests_of(module: object) -> list[tuple[str, Callable[..., None]]]:
    found = [(name, test) for name, test in vars(module).items() if name.startswith("test_")]
    assert found
    return found
