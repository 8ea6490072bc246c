"""`apf image import|ls|rm`."""

import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from tools.client import Client
from tools.images import PackedImage, open_image, open_layer
from tools.output import human_bytes, is_tty
from tools.session import ApfGroup, Session

BLOB_TIMEOUT_MS: Final = 620_000  # above the daemon's own limit for an answer


@click.group("image", cls=ApfGroup)
def image_group() -> None:
    """Images on the card. The image `host` is built in: the CNM's own root filesystem."""


@image_group.command("import")
@click.argument("ref")
@click.argument("source", type=click.Path())
@click.option("--arch", default=platform.machine(), help="Which one of a multi-arch image.")
@click.pass_obj
def image_import(session: Session, ref: str, source: str, arch: str) -> None:
    """Bring an image onto the card, under the name REF.

    SOURCE is an OCI image layout (directory or tar), a `docker save` tar, or a root filesystem
    (directory or tar).
    """
    with open_image(ref, source, arch=arch) as image, session.connect() as client:
        sent = _send(session, client, image)
    data = {**image.manifest(), "source_kind": image.source_kind, "sent_bytes": sent}
    words = f"imported {ref} ({image.source_kind}, {image.arch}), {human_bytes(sent)} sent"
    session.out.data("image_import", data, lambda: session.out.say(words))


def _send(session: Session, client: Client, image: PackedImage) -> int:
    """Hand over what the card does not have; bytes that went. Raises what Client raises."""
    begun = client.call("image.begin", {"ref": image.ref, "manifest": image.manifest()})
    missing = set(begun["missing"])
    layers = {layer.digest: layer for layer in image.layers if layer.digest in missing}
    total = sum(layer.size_bytes for layer in layers.values())
    with _progress(session, f"importing {image.ref}", total) as advance:
        for layer in layers.values():
            with open_layer(layer) as file:
                params = {
                    "ref": image.ref,
                    "digest": layer.digest,
                    "size_bytes": layer.size_bytes,
                }
                client.call("image.blob", params, fds=[file.fileno()], timeout_ms=BLOB_TIMEOUT_MS)
            advance(layer.size_bytes)
    client.call("image.commit", {"ref": image.ref})
    return total


@contextmanager
def _progress(session: Session, words: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; elsewhere nothing."""
    if session.out.as_json or not is_tty(sys.stderr) or total == 0:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(words, total=total)
        yield lambda count: bar.advance(task, count)


@image_group.command("ls")
@click.pass_obj
def image_ls(session: Session) -> None:
    """Images on the card."""
    with session.connect() as client:
        images: list[dict[str, Any]] = client.call("image.list")
    columns = ["ref", "arch", "layers", "size", "used by"]
    rows = [
        [
            item.get("ref"),
            item.get("arch"),
            item.get("layers"),
            human_bytes(item.get("size_bytes")),
            item.get("workloads"),
        ]
        for item in images
    ]
    session.out.data("image_ls", images, lambda: session.out.table(columns, rows))


@image_group.command("rm")
@click.argument("ref")
@click.pass_obj
def image_rm(session: Session, ref: str) -> None:
    """Remove an image from the card; refused while a workload uses it."""
    with session.connect() as client:
        result = client.call("image.remove", {"ref": ref})
    session.out.data("image_rm", result, lambda: session.out.say(f"removed {ref}"))
