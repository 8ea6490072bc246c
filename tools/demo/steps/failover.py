"""`fail over`: a CNM's init is killed, and its components run elsewhere."""

import os
import signal
from collections import Counter
from typing import Final

from firmware.board_types import Timing
from tools.demo import observe, observe_card
from tools.demo.context import SHOP, Context
from tools.demo.errors import hold
from tools.demo.expected import last_stay, ledger_entries
from tools.demo.manifest import read_volume
from tools.demo.runner import Proofs
from tools.demo.sampler import first_pids
from tools.output import human_ms

LEDGER: Final = f"{SHOP}/ledger/0"
POWER_MUST_MS: Final = 1500  # DESIGN section 6, dead CNM -> components running again
POWER_AIM_MS: Final = 700
LEASE_MUST_MS: Final = 6500
LEASE_AIM_MS: Final = 5800


def fail_over(context: Context) -> Proofs:
    """`kill -9` of the init of the CNM that has most to lose, found in /proc."""
    victim = busiest(context)
    before = {name: pids for name, pids in context.alive().items() if name in victim.instances}
    flushed = _flush_ledger(context)
    sampler = context.sampler()
    sampler.look()
    inits = observe_card.by_cnm(context.demo.run, observe_card.INIT)
    timer = context.timer()
    os.kill(inits[victim.cnm].pid, signal.SIGKILL)

    def dead() -> bool:
        sampler.look()
        return not any(gone_wrong(pids) for pids in before.values())

    if context.fence == "power":
        context.wait(f"all processes of {victim.cnm} gone", dead, every_ms=5)
        gone = f"their {len(before)} old processes were gone after {timer.ms} ms"
    else:
        gone = f"fence by lease: {_lease_words(context.board.timing)}"
    times: dict[str, int] = {}

    def again() -> bool:
        for name, copies in sampler.look().items():
            fresh = first_pids(copies) - before.get(name, {}).keys()
            if name in before and name not in times and fresh:
                times[name] = timer.ms
        return len(times) == len(before)

    context.wait(
        f"the {len(before)} instances of {victim.cnm} as new processes",
        again,
        every_ms=5,
        seen=lambda: context.late(SHOP),
    )
    hold(not any(gone_wrong(pids) for pids in before.values()), "an old process still lives")
    rows = context.wait_up(context.services(), look=sampler.look)
    stayed = [name for name in before if rows[name].cnm == victim.cnm]
    hold(not stayed, f"{', '.join(stayed)} run on {victim.cnm} again, not elsewhere")
    yield _against_design(context, max(times.values()))
    yield f"kill -9 {inits[victim.cnm].pid} (init of {victim.cnm}); {gone}"
    yield f"running elsewhere: {', '.join(f'{n} {human_ms(t)}' for n, t in sorted(times.items()))}"
    yield sampler.words()
    if flushed:
        yield _ledger_goes_on(context, flushed)
    yield _back(context, victim.cnm)


class Victim:
    """A CNM and the instances on it, by cgroup."""

    def __init__(self, cnm: str, instances: list[str]) -> None:
        self.cnm, self.instances = cnm, instances


def busiest(context: Context) -> Victim:
    """The CNM of the ledger, else the one with most instances; not the only accelerated one."""
    rows = context.rows()
    where = {name: rows[name].cnm for name in context.services()}
    counts = Counter(cnm for cnm in where.values() if cnm not in context.accelerated)
    best = counts.most_common(1)[0][0]
    cnm = where[LEDGER] if where[LEDGER] in counts else best
    return Victim(cnm, [name for name in where if where[name] == cnm])


def gone_wrong(pids: dict[int, int]) -> bool:
    """Does one of these processes still live?"""
    return any(observe.start_ticks(pid) == ticks for pid, ticks in pids.items())


def _flush_ledger(context: Context) -> int:
    """The last number that is safe on the card before the blow; 0 without a volume."""
    if not context.mode.root:
        return 0
    name = str(context.component("ledger")["volumes"][0]["name"])
    context.apf.call("volume", "flush", name, timeout_ms=context.patience_ms)
    volume = read_volume(context.demo.state, context.apf.volume(name)["manifest"])
    return ledger_entries(volume.paths["ledger"].read_text())[-1][0]


def _ledger_goes_on(context: Context, flushed: int) -> str:
    """It goes on behind what was flushed last: what came after that died with the CNM."""

    def fresh() -> list[tuple[int, int]] | None:
        entries = last_stay(ledger_entries(context.apf.log(LEDGER)))
        return entries if entries and entries[-1][0] > flushed else None

    entries = context.wait("new lines of the ledger", fresh)
    hold(
        entries[0][0] == flushed + 1,
        f"the ledger goes on with {entries[0][0]}; flushed was up to {flushed}",
    )
    return f"the ledger goes on with {entries[0][0]}: {flushed} were flushed before the blow"


def _against_design(context: Context, ms: int) -> str:
    power = context.fence == "power"
    must, aim = (POWER_MUST_MS, POWER_AIM_MS) if power else (LEASE_MUST_MS, LEASE_AIM_MS)
    return (
        f"dead CNM -> all running again: {ms} ms with their own start ({context.fence} fence; "
        f"DESIGN section 6 without it: must {must} ms, aim {aim} ms)"
    )


def _lease_words(timing: Timing) -> str:
    return f"nothing starts elsewhere before {timing.fence_wait_ms} ms have passed"


def _back(context: Context, cnm: str) -> str:
    """The module is switched on again, as another boot."""

    def leased() -> bool:
        return bool(context.apf.cnms()[cnm]["state"] == "LEASED")

    context.wait(f"{cnm} LEASED again", leased)
    init = observe_card.by_cnm(context.demo.run, observe_card.INIT)[cnm]
    return f"{cnm} has power again: init {init.pid}, LEASED"
