"""Volumes that follow their component, and images from what people have; looked at from outside.

A volume's content is read through /proc/PID/root of the very process that has it mounted.
"""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.card_images import make_layout, tar_of, tree_files
from tests.process.local_card import BUSYBOX, LocalCard, a_card
from tools.demo import observe

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers and namespaces need root"),
    pytest.mark.skipif(not BUSYBOX, reason="busybox-static is not installed"),
]

STORE = """
services:
  db:
    image: busybox
    command: ["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.1; done"]
    cpus: 0.1
    mem_limit: 32m
    stop_grace_period: 1s
    volumes: ["%(volume)s:/data"]
volumes: {%(volume)s: {}}
"""


@pytest.fixture(scope="module")
def card() -> Iterator[LocalCard]:
    with a_card() as card:
        card.import_busybox()
        yield card


@pytest.fixture(autouse=True)
def empty_card(card: LocalCard) -> Iterator[None]:
    yield
    if card.ps():
        card.remove()


def run_db(card: LocalCard, name: str, volume: str) -> Path:
    """/data of a running component, as the host sees it."""
    card.run_compose(STORE % {"volume": volume}, name)
    return data_of(card, f"{name}/db/0")


def data_of(card: LocalCard, instance: str) -> Path:
    row = card.wait_running(instance)[instance]
    return Path(f"/proc/{row['pid']}/root/data")


def fill(data: Path) -> dict[str, tuple[int, bytes]]:
    """A small tree of all that a volume keeps; what it should look like afterwards."""
    (data / "sub" / "deep").mkdir(parents=True)
    (data / "sub" / "deep" / "big").write_bytes(os.urandom(3_000_000))
    (data / "small").write_bytes(b"one\n")
    (data / "small").chmod(0o640)
    (data / "empty").write_bytes(b"")
    (data / "link").symlink_to("sub/deep/big")
    return look(data)


def look(data: Path) -> dict[str, tuple[int, bytes]]:
    """Path -> (mode, content or link target) of everything."""
    found = {}
    for path in sorted(data.rglob("*")):
        info = path.lstat()
        content = b""
        if path.is_symlink():
            content = os.fsencode(os.readlink(path))
        elif path.is_file():
            content = path.read_bytes()
        found[path.relative_to(data).as_posix()] = (info.st_mode, content)
    return found


def wait_moved(card: LocalCard, instance: str, source: str) -> None:
    card.wait("it is elsewhere", lambda: card.ps()[instance]["cnm"] != source)


def volume(card: LocalCard, name: str) -> dict[str, object]:
    return next(row for row in card.apf("volume", "ls") if row["name"].endswith(name))


def test_a_volume_follows_its_component_when_it_moves(card: LocalCard) -> None:
    data = run_db(card, "mover", "moved")
    before = fill(data)
    source = card.ps()["mover/db/0"]["cnm"]
    for change in (b"two\n", b"three\n"):  # there, and a second time
        (data / "small").write_bytes(change)
        (data / "empty").unlink(missing_ok=True)
        card.apf("migrate", "mover/db/0")
        wait_moved(card, "mover/db/0", source)
        data = data_of(card, "mover/db/0")
        mode, _ = before["small"]
        wanted = {name: value for name, value in before.items() if name != "empty"}
        assert look(data) == wanted | {"small": (mode, change)}
        source = card.ps()["mover/db/0"]["cnm"]


def test_after_a_failover_the_last_flushed_state_is_used_and_its_age_is_said(
    card: LocalCard,
) -> None:
    data = run_db(card, "loser", "flushed")
    before = fill(data)
    flushed = card.apf("volume", "flush", str(volume(card, "flushed")["name"]))
    assert flushed["files"] >= 3
    assert volume(card, "flushed")["bytes"] == sum(
        len(content) for mode, content in before.values() if mode & 0o170000 == 0o100000
    )
    (data / "small").write_bytes(b"after the flush: lost with the module\n")
    row = card.ps()["loser/db/0"]
    os.kill(card.cnms()[row["cnm"]]["init_pid"], signal.SIGKILL)
    wait_moved(card, "loser/db/0", row["cnm"])
    assert look(data_of(card, "loser/db/0")) == before
    stale = card.events("volume.stale")[-1]
    assert stale["instance"] == "loser/db/0"
    assert 0 <= stale["data"]["age_ms"] < 60_000
    card.wait_leased()


def test_rm_keeps_the_volume_and_the_next_workload_sees_the_data(card: LocalCard) -> None:
    data = run_db(card, "first", "kept")
    before = fill(data)
    name = str(volume(card, "kept")["name"])
    card.apf("rm", "first", "--wait")
    kept = volume(card, "kept")
    assert (kept["instances"], kept["cnms"]) == ([], [])
    text = STORE % {"volume": "kept"}
    if name != "kept":  # a volume of a project: the next one names it as it is
        text = text.replace("{kept: {}}", f"{{kept: {{external: true, name: {name}}}}}")
    card.run_compose(text, "second")
    assert look(data_of(card, "second/db/0")) == before


def test_an_oci_layout_runs_as_its_config_and_layers_say(card: LocalCard, tmp_path: Path) -> None:
    base = tar_of(tree_files(card.rootfs()) | {"srv/": b"", "srv/old": b"", "srv/kept": b"kept\n"})
    top = tar_of({"srv/.wh.old": b"", "srv/new": b"new\n"})
    script = (
        'echo "$GREETING $0 $1 $PWD $(id -u)"; echo *; cat kept new; while true; do sleep 1; done'
    )
    config = {
        "Env": ["PATH=/bin", "GREETING=good day"],
        "Entrypoint": ["/bin/sh", "-c", script, "zero"],
        "Cmd": ["one"],
        "WorkingDir": "/srv",
        "User": "1000",
        "StopSignal": "SIGKILL",
    }
    layers = make_layout(tmp_path / "layout", [base, top], config)
    imported = card.apf("image", "import", "greeter", str(tmp_path / "layout"))
    assert imported["source_kind"] == "OCI layout"
    card.run_compose("services: {hi: {image: greeter, stop_grace_period: 1s}}", "oci")
    wanted = ["good day zero one /srv 1000", "kept new", "kept", "new"]
    card.wait("its words", lambda: card.apf("logs", "oci/hi/0")["text"].splitlines() == wanted)
    pid = card.ps()["oci/hi/0"]["pid"]
    assert observe.environment(pid)["GREETING"] == "good day"
    assert not Path(f"/proc/{pid}/root/srv/old").exists()
    # refused while it is used, gone afterwards
    refused = card.apf("image", "rm", "greeter", code=3)
    assert refused["error"]["code"] == "image_in_use"
    card.remove("oci")
    card.apf("image", "rm", "greeter")
    assert "greeter" not in " ".join(row["ref"] for row in card.apf("image", "ls"))
    blobs = card.state / "blobs"
    own = layers[1].name  # nobody else's: it goes as soon as the volumes have been asked
    card.wait("its own layer has gone with it", lambda: not [*blobs.rglob(own)])


@pytest.mark.parametrize("kind", ["rootfs", "rootfs.gz", "layout"])
def test_a_tar_is_an_image_too(card: LocalCard, tmp_path: Path, kind: str) -> None:
    source = tmp_path / "image.tar"
    if kind == "layout":
        make_layout(tmp_path / "layout", [tar_of(tree_files(card.rootfs()))], {})
        source.write_bytes(tar_of(tree_files(tmp_path / "layout")))
    else:
        plain = tar_of(tree_files(card.rootfs()))
        source.write_bytes(plain)
        if kind == "rootfs.gz":
            shutil.make_archive(str(tmp_path / "image"), "gztar", card.rootfs())
            source = tmp_path / "image.tar.gz"
    ref = f"tar-{kind}"
    card.apf("image", "import", ref, str(source))
    command = '["/bin/sh", "-c", "echo here; while true; do sleep 1; done"]'
    card.run_compose(
        f"services: {{t: {{image: {ref}, command: {command}, stop_grace_period: 0.2s}}}}", "tarred"
    )
    card.wait("its words", lambda: card.apf("logs", "tarred/t/0")["text"] == "here\n")


def test_a_layout_with_a_wrong_digest_is_refused_and_nothing_is_kept(
    card: LocalCard, tmp_path: Path
) -> None:
    layers = make_layout(tmp_path / "layout", [tar_of(tree_files(card.rootfs()))], {})
    data = bytearray(layers[0].read_bytes())
    data[len(data) // 2] ^= 1
    layers[0].write_bytes(data)
    images = card.call("image.list")
    refused = card.apf("image", "import", "broken", str(tmp_path / "layout"), code=2)
    assert layers[0].name in refused["error"]["text"]
    assert "found sha256:" in refused["error"]["text"]
    assert card.call("image.list") == images
