"""`image`: from a directory to the card, and through the window to a CNM, bit for bit."""

from pathlib import Path
from typing import Any

from tools.demo import observe
from tools.demo.context import Context
from tools.demo.errors import hold
from tools.demo.hashing import blob_path, sha256_file
from tools.demo.rootfs import build_rootfs
from tools.demo.runner import Proofs

HELLO = "hello"


def image(context: Context) -> Proofs:
    """`apf image import`, then one service of it: the layer has to travel."""
    if not context.mode.containers:
        yield f"{context.mode.why}: the image is `host`, processes run instead of containers"
        yield from _hello(context, [])
        return
    root = build_rootfs(context.mode.busybox, context.demo.top / "rootfs")
    manifest: dict[str, Any] = context.apf.call(
        "image", "import", context.mode.image, str(root), timeout_ms=context.patience_ms
    )
    layers = [layer["digest"] for layer in manifest["layers"]]
    for digest in layers:
        _check(blob_path(context.demo.state, digest), digest, "the card")
    yield f"built from {context.mode.busybox}; on the card: {len(layers)} layer, SHA-256 holds"
    yield from _hello(context, layers)


def _hello(context: Context, layers: list[str]) -> Proofs:
    file = str(context.compose(HELLO))
    context.apf.call("submit", file, "--name", HELLO, timeout_ms=context.patience_ms)
    row = context.wait_up([f"{HELLO}/{HELLO}/0"], HELLO)[f"{HELLO}/{HELLO}/0"]
    for digest in layers:
        arrived = blob_path(context.demo.cnm_state(row.cnm), digest)
        _check(arrived, digest, row.cnm)
        yield f"{arrived.stat().st_size} B arrived on the hot tier of {row.cnm}, same SHA-256"
    if layers:
        yield _same_program(context, row.pid)
    text = context.wait("the output of hello", lambda: context.apf.log(row.instance))
    hold(text == "hello\n", f"{row.instance} wrote {text[:80]!r}, wanted 'hello\\n'")
    yield f"a first service printed {text.strip()!r} from process {row.pid} on {row.cnm}"
    context.apf.call("rm", HELLO, "--wait", timeout_ms=context.patience_ms)
    left = [item for item in observe.processes(token=context.token) if item.pid == row.pid]
    hold(not left, f"process {row.pid} still runs after `apf rm {HELLO} --wait`")
    context.wait_leased()  # one that were SUSPECT now would be left out of what is placed next


def _same_program(context: Context, pid: int) -> str:
    """What the process executes is our busybox, byte for byte, from the instance's own root."""
    wanted = sha256_file(Path(context.mode.busybox))
    found = sha256_file(Path(f"/proc/{pid}/exe"))
    hold(found == wanted, f"/proc/{pid}/exe has SHA-256 {found}, {context.mode.busybox} {wanted}")
    root = Path(f"/proc/{pid}/root")
    hold(not root.samefile("/"), f"process {pid} runs on this host's root")
    return f"/proc/{pid}/exe has the SHA-256 of {context.mode.busybox}, on a root of its own"


def _check(path: Path, digest: str, where: str) -> None:
    hold(path.exists(), f"layer {digest[:12]} is not in the blob store of {where} ({path})")
    found = sha256_file(path)
    hold(found == digest, f"layer {digest[:12]} on {where} has SHA-256 {found[:12]}")
