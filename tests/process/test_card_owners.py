"""Containers that do not run as root and their volumes: first use, a move, a failover.

Judged by lstat(2) on the hot directory of the module, which is a directory of this host.
"""

import io
import os
import signal
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.card_images import make_layout, tar_of, tree_files
from tests.process.local_card import BUSYBOX, LocalCard, a_card

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers and namespaces need root"),
    pytest.mark.skipif(not BUSYBOX, reason="busybox-static is not installed"),
]

# It appends a line at each start and says whether it could.
SCRIPT = (
    "trap 'exit 0' TERM; umask 027; mkdir -p $$DIR/made; "
    "{ echo again >> $$DIR/made/log && echo could write; } || echo could NOT write; "
    "while true; do sleep 0.1; done"
)
STORE = """
services:
  db:
    image: %(image)s
    user: "%(user)s"
    command: ["/bin/sh", "-c", "%(script)s"]
    cpus: 0.1
    mem_limit: 32m
    stop_grace_period: 1s
    environment: {DIR: "%(target)s"}
    volumes: ["%(volume)s:%(target)s"]
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


def run(
    card: LocalCard, name: str, target: str, image: str = "busybox", user: str = "1000:1001"
) -> None:
    given = {"image": image, "user": user, "volume": name, "script": SCRIPT, "target": target}
    card.run_compose(STORE % given, name)


def import_image(card: LocalCard, ref: str, place: Path, owned: dict[str, tuple[int, int]]) -> None:
    """busybox with the user `db`, and these files and directories (with / at the end) of theirs."""
    files = tree_files(card.rootfs()) | {
        "etc/passwd": b"root:x:0:0::/:/bin/sh\ndb:x:1000:1001::/:/bin/sh\n",
        **dict.fromkeys(owned, b"from the image\n"),
    }
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(tar_of(files))) as plain,
        tarfile.open(fileobj=out, mode="w") as tar,
    ):
        for member in plain:
            name = member.name + "/" * member.isdir()
            member.uid, member.gid = owned.get(name, (0, 0))
            tar.addfile(member, plain.extractfile(member))
    make_layout(place, [out.getvalue()], {"User": "db"})
    card.apf("image", "import", ref, str(place))


def hot(card: LocalCard, workload: str) -> Path:
    """The volume's directory on the module that has it now."""
    cnm = card.ps()[f"{workload}/db/0"]["cnm"]
    name = next(row["name"] for row in card.apf("volume", "ls") if row["name"].endswith(workload))
    (found,) = card.state.glob(f"cnm/{cnm}/volumes/{str(name).replace('/', '@')}")
    return found


def owners(top: Path) -> dict[str, tuple[int, int, int]]:
    """Path, "." for the volume itself -> (uid, gid, permission bits), links not followed."""
    found = {}
    for path in (top, *top.rglob("*")):
        info = path.lstat()
        found[str(path.relative_to(top))] = (info.st_uid, info.st_gid, info.st_mode & 0o7777)
    return found


def wait_written(card: LocalCard, workload: str, times: int) -> None:
    card.wait_running(f"{workload}/db/0")
    log = hot(card, workload) / "made/log"
    card.wait(
        f"line {times}", lambda: log.exists() and log.read_text().splitlines() == ["again"] * times
    )


def wait_moved(card: LocalCard, instance: str, source: str) -> None:
    card.wait("it is elsewhere", lambda: card.ps()[instance]["cnm"] != source)
    card.wait_running(instance)


def test_a_user_that_is_not_root_can_write_to_its_volume_wherever_it_goes(card: LocalCard) -> None:
    run(card, "plain", "/srv/plain")
    wait_written(card, "plain", 1)
    first = hot(card, "plain")
    wanted = {
        ".": (1000, 1001, 0o755),
        "made": (1000, 1001, 0o750),
        "made/log": (1000, 1001, 0o640),
    }
    assert owners(first) == wanted
    # What it might make itself, and what only its volume's root could have made.
    (first / "link").symlink_to("/nowhere")
    os.chown(first / "link", 1000, 1001, follow_symlinks=False)
    (first / "setuid").write_bytes(b"x")
    os.chown(first / "setuid", 1002, 1003)
    (first / "setuid").chmod(0o4711)
    os.chown(first, 1000, 50)
    first.chmod(0o2770)
    wanted |= {".": (1000, 50, 0o2770), "link": (1000, 1001, 0o777), "setuid": (1002, 1003, 0o4711)}
    source = card.ps()["plain/db/0"]["cnm"]

    card.apf("migrate", "plain/db/0")
    wait_moved(card, "plain/db/0", source)
    wait_written(card, "plain", 2)
    assert hot(card, "plain") != first
    assert owners(hot(card, "plain")) == wanted

    card.apf("volume", "flush", hot(card, "plain").name.replace("@", "/"))
    source = card.ps()["plain/db/0"]["cnm"]
    os.kill(card.cnms()[source]["init_pid"], signal.SIGKILL)
    wait_moved(card, "plain/db/0", source)
    wait_written(card, "plain", 3)
    assert owners(hot(card, "plain")) == wanted
    assert "NOT" not in card.apf("logs", "plain/db/0")["text"]
    card.wait_leased()


def test_a_volume_begins_with_what_the_image_has_there(card: LocalCard, tmp_path: Path) -> None:
    owned = {"data/": (1000, 1001), "data/conf": (1000, 7)}
    import_image(card, "owned", tmp_path / "layout", owned)
    run(card, "seeded", "/data", "owned", "db")
    wait_written(card, "seeded", 1)
    found = owners(hot(card, "seeded"))
    assert found["."] == (1000, 1001, 0o755)
    assert found["conf"] == (1000, 7, 0o755)
    assert found["made/log"] == (1000, 1001, 0o640)
    (hot(card, "seeded") / "conf").unlink()
    source = card.ps()["seeded/db/0"]["cnm"]
    card.apf("migrate", "seeded/db/0")
    wait_moved(card, "seeded/db/0", source)
    wait_written(card, "seeded", 2)
    assert "conf" not in owners(hot(card, "seeded"))  # deleted is deleted


def test_a_user_by_name_gets_a_volume_of_its_own(card: LocalCard, tmp_path: Path) -> None:
    import_image(card, "named", tmp_path / "layout", {})
    text = STORE.replace('    user: "%(user)s"\n', "")  # the image's own user
    given = {"image": "named", "volume": "named", "script": SCRIPT, "target": "/srv/data"}
    card.run_compose(text % given, "named")
    wait_written(card, "named", 1)
    assert owners(hot(card, "named"))["."] == (1000, 1001, 0o755)
