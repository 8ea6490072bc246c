"""`migrate`: the ledger moves away from a busy CNM, and not one of its lines is lost."""

from typing import Final

from tools.demo.context import SHOP, Context
from tools.demo.errors import hold
from tools.demo.expected import check_consecutive, last_stay, ledger_entries
from tools.demo.manifest import read_volume
from tools.demo.runner import Proofs
from tools.demo.sampler import Sampler
from tools.demo.waits import pause

LEDGER: Final = f"{SHOP}/ledger/0"
BURN: Final = f"{SHOP}/burn/0"
AFTER_MS: Final = 300  # for some lines on the new CNM
CENTISECOND_MS: Final = 10


def migrate(context: Context) -> Proofs:
    """To the CNM whose processor burn loads (perhaps a first move), then away from it."""
    rows = context.rows()
    loaded = rows[BURN].cnm
    if rows[LEDGER].cnm != loaded:
        move(context, LEDGER, loaded)
    target = context.emptiest(loaded)
    with context.apf.begin("logs", "-f", LEDGER) as follower:
        sampler = move(context, LEDGER, target)
        follower.kill()
        lines = follower.output().count("\\n")
    yield _nothing_lost(context, sampler)
    yield f"{loaded} -> {target} while burn ran and `apf logs -f` read {lines} lines of it"
    yield sampler.words()


def move(context: Context, instance: str, target: str) -> Sampler:
    """`apf migrate`, watched; ends when it runs on the target. Raises StepFailed."""
    sampler = context.sampler()
    sampler.look()

    context.apf.call(
        "migrate", instance, "--to", target, timeout_ms=context.patience_ms, meanwhile=sampler.look
    )

    def there() -> bool:
        sampler.look()
        row = context.rows()[instance]
        return row.up and row.cnm == target

    context.wait(f"{instance} on {target}", there, every_ms=5, seen=lambda: context.shown(SHOP))
    context.agree({instance: context.rows()[instance]})
    where = context.where()[instance]
    hold(where == target, f"{instance} is in a cgroup of {where}")
    return sampler


def _nothing_lost(context: Context, sampler: Sampler) -> str:
    """Numbers without a gap, in the file on the new CNM and in the log of the new process."""
    pause(context.clock, AFTER_MS)
    log = last_stay(ledger_entries(context.apf.log(LEDGER)))
    gap_ms = sampler.gap_ms(LEDGER)
    if not context.mode.root:
        return f"no volume here; {gap_ms} ms without a process"
    name = str(context.component("ledger")["volumes"][0]["name"])
    cnm = context.rows()[LEDGER].cnm
    text = (context.volume_dir(cnm, name) / "ledger").read_text()
    entries = ledger_entries(text[: text.rindex("\n") + 1])
    check_consecutive(entries, 1, f"the ledger on {cnm}")
    flushed_path = read_volume(context.demo.state, context.apf.volume(name)["manifest"])
    flushed = ledger_entries(flushed_path.paths["ledger"].read_text())
    last, first = flushed[-1][0], log[0][0]
    hold(
        first == last + 1,
        f"the last number flushed at the stop is {last}, the first on {cnm} is {first}",
    )
    by_number = dict(entries)
    silence_ms = (by_number[first] - by_number[last]) * CENTISECOND_MS
    return (
        f"{last} lines were flushed at the stop, the next on {cnm} is {first}, no gap up to "
        f"{entries[-1][0]}; downtime {silence_ms} ms by its own lines, {gap_ms} ms by /proc"
    )
