"""`transfer`: a volume with known files comes home to the card; 32 MiB go up and down."""

import hashlib
from pathlib import Path
from typing import Final

from tools.demo.context import SHOP, Context
from tools.demo.errors import StepFailed, hold
from tools.demo.expected import CATALOG_LINK, catalog_files, numbered
from tools.demo.hashing import blob_path, partial_path, sha256_file
from tools.demo.manifest import read_directory, read_volume
from tools.demo.runner import Proofs
from tools.demo.waits import MS

BULK: Final = "bulk"
BULK_BYTES: Final = 32 << 20
BULK_INSTANCE: Final = f"{BULK}/{BULK}/0"
MB: Final = 1_000_000
LINES: Final = 600_000  # 4.1 MB: less than a log keeps


def transfer(context: Context) -> Proofs:
    """Everything is hashed here, at both ends."""
    if not context.mode.root:
        yield "volumes need mounts, and mounts need root: a log goes through the window instead"
        yield _log(context)
        return
    catalog = _catalog(context)
    file = str(context.compose(BULK))
    context.apf.call("submit", file, "--name", BULK, timeout_ms=context.patience_ms)
    row = context.wait_up([BULK_INSTANCE], BULK)[BULK_INSTANCE]
    wanted = _said(context)
    volume = context.apf.ask("volume.list")
    name = next(item["name"] for item in volume if BULK_INSTANCE in item["instances"])
    hot = context.volume_dir(row.cnm, name) / "bulk"
    hold(sha256_file(hot) == wanted, f"{hot} is not what {BULK_INSTANCE} says it wrote")
    upwards = _upwards(context, name, row.cnm, wanted)
    yield f"{upwards}; {_downwards(context, name, row.cnm, wanted)}: SHA-256 holds at both ends"
    yield catalog
    context.apf.call("rm", BULK, "--wait", timeout_ms=context.patience_ms)


def _log(context: Context) -> str:
    """Some MB that a component prints, read from its CNM and compared with what they must be."""
    name, instance = "lines", "lines/lines/0"
    file = str(context.compose(name))
    context.apf.call("submit", file, "--name", name, timeout_ms=context.patience_ms)
    context.wait_up([instance], name)
    wanted = numbered(LINES)
    took_ms = 0

    def whole() -> bytes | None:
        nonlocal took_ms
        timer = context.timer()
        text = context.apf.log(instance).encode()
        took_ms = max(1, timer.ms)
        return text if len(text) >= len(wanted) else None

    found = context.wait(f"{len(wanted)} B of log", whole, every_ms=200)
    hold(found == wanted, f"the log of {instance} is not what `seq` prints")
    context.apf.call("rm", name, "--wait", timeout_ms=context.patience_ms)
    rate = len(wanted) / MB * 1000 / took_ms
    return f"CNM -> card: {len(wanted) / MB:.1f} MB of log in {took_ms} ms = {rate:.0f} MB/s, right"


def _catalog(context: Context) -> str:
    """Files with checksums that are known beforehand."""
    instance = f"{SHOP}/catalog/0"
    cnm = context.rows()[instance].cnm
    name = str(context.component("catalog")["volumes"][0]["name"])
    context.apf.call("volume", "flush", name, timeout_ms=context.patience_ms)
    card = read_volume(context.demo.state, context.apf.volume(name)["manifest"])
    wanted = {
        path: hashlib.sha256(content).hexdigest() for path, content in catalog_files().items()
    }
    hold(dict(card.files) == wanted, f"the manifest of {name} has {sorted(card.files)}: {wanted}")
    hold(card.links == dict([CATALOG_LINK]), f"the manifest of {name} has links {card.links}")
    files, links = read_directory(context.volume_dir(cnm, name))
    hold(files == wanted, f"the hot directory of {name} on {cnm} has other files: {files}")
    hold(links == card.links, f"the hot directory of {name} on {cnm} has other links: {links}")
    return (
        f"volume {name}: {len(wanted)} files and a link; manifest, the card's objects and the "
        f"hot directory of {cnm} have the SHA-256 that was known beforehand"
    )


def _said(context: Context) -> str:
    """The digest that the component itself printed last."""

    def look() -> str | None:
        lines = context.apf.log(BULK_INSTANCE).split("\n")[:-1]
        return lines[-1].split()[0] if lines else None

    return context.wait(f"the checksum that {BULK_INSTANCE} prints", look)


def _upwards(context: Context, volume: str, cnm: str, digest: str) -> str:
    watch = _Arrival(context, context.demo.state, digest)
    context.apf.call(
        "volume", "flush", volume, timeout_ms=context.patience_ms, meanwhile=watch.look
    )
    path = read_volume(context.demo.state, context.apf.volume(volume)["manifest"]).paths["bulk"]
    hold(path.stat().st_size == BULK_BYTES, f"{path} has {path.stat().st_size} B")
    return f"{cnm} -> card: {watch.words()}"


def _downwards(context: Context, volume: str, cnm: str, digest: str) -> str:
    """Its move takes the volume along: the card pushes it to the other CNM."""
    target = context.emptiest(cnm)
    watch = _Arrival(context, context.demo.cnm_state(target), digest)
    context.apf.call(
        "migrate",
        BULK_INSTANCE,
        "--to",
        target,
        timeout_ms=context.patience_ms,
        meanwhile=watch.look,
    )

    def moved() -> bool:
        watch.look()
        row = context.rows(BULK)[BULK_INSTANCE]
        return row.up and row.cnm == target

    context.wait(
        f"{BULK_INSTANCE} on {target}", moved, every_ms=2, seen=lambda: context.shown(BULK)
    )
    hot = context.volume_dir(target, volume) / "bulk"
    hold(sha256_file(hot) == digest, f"{hot} does not have SHA-256 {digest[:12]}")
    hold(_said(context) == digest, f"{BULK_INSTANCE} on {target} reads another checksum")
    return f"card -> {target}: {watch.words()}"


class _Arrival:
    """From the first sight of the partial object until it has its name: hashed and synced."""

    def __init__(self, context: Context, state: Path, digest: str) -> None:
        self._clock = context.clock
        self._partial, self._whole = partial_path(state, digest), blob_path(state, digest)
        self._began_ns = self._ended_ns = 0
        if self._whole.exists():
            raise StepFailed(f"{self._whole} was there before the transfer")

    def look(self) -> None:
        now_ns = self._clock.now_ns()
        if not self._began_ns and (self._partial.exists() or self._whole.exists()):
            self._began_ns = now_ns
        if not self._ended_ns and self._whole.exists():
            self._ended_ns = now_ns

    def words(self) -> str:
        """`33.6 MB in 210 ms = 160 MB/s`. Raises StepFailed when it did not come."""
        self.look()
        hold(self._ended_ns, f"{self._whole} did not come")
        ms = max(1, (self._ended_ns - self._began_ns) // MS)
        return f"{BULK_BYTES / MB:.1f} MB in {ms} ms = {BULK_BYTES / MB * 1000 / ms:.0f} MB/s"
