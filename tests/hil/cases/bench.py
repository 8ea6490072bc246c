"""Figures of `apf bench vfio|window` on real functions, and of a module that comes and goes.

Virtual times on emulated processors: only the ratios say something about the code.
"""

import mmap
import os
from pathlib import Path
from typing import Any, Final

from hal.linux.clock import LinuxClock
from tests.hil import whole
from tests.hil.case import Context, Evidence, case, rig_case
from tests.hil.cases import system
from tests.hil.machines import CARD
from tests.hil.rig import Rig
from tools.bench import vfio, window
from tools.bench.figures import Figure
from tools.bench.measure import Bench
from tools.bench.window_bar import bar_rows
from tools.client import Client
from tools.polls import polls
from tools.rig.qemu import Machine

WINDOW: Final = "1af4:1110"
EDU: Final = "1234:11e8"
SOCKET: Final = "/run/apf/apf.sock"
MS: Final = 1_000_000


def numbers_of(figures: list[Figure]) -> dict[str, Any]:
    """Value and ratio of each. AssertionError names those that could not be measured."""
    bad = [f"{figure.name}: {figure.error}" for figure in figures if figure.value is None]
    assert not bad, bad
    return {
        f"{figure.name} [{figure.unit}]": f"{figure.value:.4g} (x{figure.ratio:.3g})"
        for figure in figures
        if figure.value is not None and figure.ratio is not None
    }


def bench_of(ctx: Context) -> Bench:
    return Bench(state_dir=lambda: Path("/tmp"), quick=True, say=ctx.log)


@case(on=CARD, deadline_s=120)
def figures_of_registers_and_interrupts_through_vfio(ctx: Context) -> Evidence:
    ctx.modprobe("vfio-pci")
    address = ctx.pci(EDU)
    figures = numbers_of(vfio.run(bench_of(ctx)))
    return Evidence(driver="vfio-pci", device=address, numbers=figures)


@case(on=CARD, deadline_s=120)
def figures_of_copies_through_a_bar(ctx: Context) -> Evidence:
    address = ctx.pci(WINDOW)
    device = Path("/sys/bus/pci/devices") / address
    (device / "enable").write_text("1")
    path = device / "resource2_wc"
    size = (device / "resource2").stat().st_size

    def mapping() -> mmap.mmap:
        fd = os.open(path, os.O_RDWR | os.O_SYNC)
        try:
            return mmap.mmap(fd, size)
        finally:
            os.close(fd)

    figures = numbers_of(bar_rows("bar", mapping, bench_of(ctx), window.take_turns))
    return Evidence(driver="none (sysfs resource2_wc)", device=address, numbers=figures)


# --- a module that comes and goes ---


@rig_case(deadline_s=400)
def a_module_is_found_when_it_is_plugged_in_and_given_up_when_it_is_pulled(rig: Rig) -> Evidence:
    """From the host's answer to device_add until the module is known and leased; from the removal
    of its function until it is a suspect and its failover has been decided."""
    card, module = rig.boot(_card_machine(rig.folder), system.module_machine(rig.folder, 0))
    card.call(whole.start_card, deadline_s=200)
    module.call(whole.start_module, slot=0)
    plugged = card.start(plug_in, deadline_s=120).result()
    pulled = card.start(pull_out, deadline_s=120).result()
    return Evidence(
        driver="pcieport (pciehp), 8250_pci",
        device="0000:00:10.0",
        numbers={**plugged, **pulled},
    )


def _card_machine(folder: Path) -> Machine:
    """The card of the whole-system case, its first slot empty."""
    found = system.card_machine(folder)
    options = list(found.options)
    at = next(n for n, word in enumerate(options) if word.startswith("ivshmem-plain,id=window0"))
    del options[at - 1 : at + 1]
    return Machine(
        name="plugged-card",
        memory_mib=found.memory_mib,
        options=tuple(options),
        kernel_args=found.kernel_args,
    )


def plug_in(ctx: Context) -> dict[str, int]:
    clock = LinuxClock()
    before = len(card_events())
    ctx.host(
        "device_add",
        {"driver": "ivshmem-plain", "id": "window0", "memdev": "win0", "bus": "slot0"},
    )
    start_ms = clock.now_ns() // MS
    link = _await(before, "slot.link")
    up = _await(before, "window.up")
    leased = _await(0, "cnm.leased")
    clock.close()
    return {
        "plugged_to_seen_ms": link - start_ms,
        "plugged_to_window_ms": up - start_ms,
        "plugged_to_leased_ms": leased - start_ms,
    }


def pull_out(_ctx: Context) -> dict[str, int]:
    """By the power of its slot, as a surprise is for us: no attention button, no five seconds."""
    clock = LinuxClock()
    before = len(card_events())
    start_ms = clock.now_ns() // MS
    Path("/sys/bus/pci/slots/16/power").write_text("0")
    suspect = _await(before, "cnm.suspect")
    down = _await(before, "window.down")
    clock.close()
    return {
        "pulled_to_suspect_ms": suspect - start_ms,
        "pulled_to_window_down_ms": down - start_ms,
    }


def card_events() -> list[dict[str, Any]]:
    """All that the card has told since its start."""
    found: list[dict[str, Any]] = []
    with Client(SOCKET, timeout_ms=60_000) as client:
        next_seq = client.call("events.subscribe", {"since_seq": 0})["next_seq"]
        for note in client.notifications(timeout_ms=20_000) if next_seq > 1 else ():
            if note.get("method") == "event":
                found.append(note["params"])
                if note["params"]["seq"] + 1 >= next_seq:
                    break
    return found


def _await(after: int, code: str) -> int:
    """When the card told that event first, in ms of CLOCK_BOOTTIME."""
    for _ in polls(90_000, step_ms=200):
        for event in card_events()[after:]:
            if event["code"] == code and event["cnm"] == "cnm0":
                found: int = event["mono_ms"]
                return found
    raise AssertionError(f"no event {code}; there are {card_events()[-10:]}")
