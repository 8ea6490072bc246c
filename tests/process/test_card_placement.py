"""What a person sees of the allocator on a card that is up: explain, plan, top, heatmap."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.local_card import BUSYBOX, ROOT, LocalCard, a_card
from tests.process.test_card_operations import compose, reserve, service

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers and namespaces need root"),
    pytest.mark.skipif(not BUSYBOX, reason="busybox-static is not installed"),
]

CNMS = ["cnm0", "cnm1", "cnm2", "cnm3"]


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


def written(card: LocalCard, name: str, text: str) -> str:
    path = card.place / f"{name}.yaml"
    path.write_text(text)
    return str(path)


def words(card: LocalCard, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tools", *arguments],
        cwd=ROOT, env=card.env, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


def test_a_plan_on_an_idle_card_is_what_a_submit_then_does(card: LocalCard) -> None:
    text = compose(
        service("web", "deploy: {replicas: 3}"),
        service("db", reserve(0.6)),
        service("infer", "deploy: {resources: {reservations: {devices: "
                "[{capabilities: [gpu], count: 1}]}}}"),
    )  # fmt: skip
    plan = card.apf("plan", written(card, "shop", text), "--name", "shop")
    assert plan["fits"]
    assert plan["refusals"] == []
    assert card.ps() == {}, "nothing was made"
    card.submit(text, "shop")
    rows = card.wait(
        "all placed", lambda: (r := card.ps()) and all(x["cnm"] for x in r.values()) and r
    )
    assert {row["instance"]: row["cnm"] for row in plan["instances"]} == {
        name: row["cnm"] for name, row in rows.items()
    }


def test_what_runs_and_what_waits_is_explained_and_a_plan_changes_nothing(card: LocalCard) -> None:
    card.run_compose(compose(service("filler", reserve(0.9, replicas=4))), "full")
    late = compose(service("late", reserve(0.8)))
    card.submit(late, "more")
    card.wait("a reason", lambda: card.ps("more")["more/late/0"]["pending"])
    before = card.ps()

    [waits] = card.apf("explain", "more")
    assert (waits["instance"], waits["cnm"], waits["best"]) == ("more/late/0", None, None)
    assert [row["id"] for row in waits["cnms"]] == CNMS
    for row in waits["cnms"]:
        [cpu] = [line for line in row["resources"] if line["resource"] == "cpu"]
        assert (cpu["want"], cpu["free"], cpu["total"], cpu["short"]) == (800, 100, 1000, 700)
        assert row["reason"] == before["more/late/0"]["pending"][row["id"]]
        assert [remedy["text"] for remedy in row["remedies"]] == ["0.7 cores less cpu"]
        [release] = row["releases"]
        assert before[release]["cnm"] == row["id"], "who fills it"

    [runs] = card.apf("explain", "full/filler/0")
    [here] = [row for row in runs["cnms"] if row["here"]]
    assert here["fits"]
    assert runs["cnm"] == here["id"] == before["full/filler/0"]["cnm"]
    text = words(card, "explain", "full/filler/0")
    assert text.startswith(f"full/filler/0 is on {here['id']}\n")
    assert all(name in text for name in CNMS)

    failed = card.apf("plan", written(card, "again", late), code=1)
    assert failed["error"]["code"] == "would_not_fit"
    assert card.ps() == before
    assert card.apf("explain", "nobody", code=3)["error"]["code"] == "unknown_workload"
    assert card.apf("explain", "more/late/7", code=3)["error"]["code"] == "unknown_instance"
    card.remove("full")
    card.wait_running("more/late/0")


def test_top_shows_what_is_reserved_and_what_the_modules_measured(card: LocalCard) -> None:
    card.run_compose(compose(service("db", reserve(0.6, replicas=2))), "shop")
    card.wait("measured", lambda: measured(card))
    top = card.apf("top", "--once")
    rows = {row["resource"]: row for row in top["resources"]}
    assert (rows["cpu"]["total"], rows["cpu"]["reserved"]) == (4000, 1200)
    assert rows["memory"]["reserved"] == 2 * 16 << 20
    assert rows["link"]["used"] is None
    assert rows["link"]["used_error"]
    assert sorted(row["id"] for row in top["cnms"]) == CNMS
    assert [f"{row['workload']}/{row['component']}" for row in top["components"]] == ["shop/db"]
    assert top["instances"] == 2
    text = words(card, "top", "--once")
    assert "\x1b" not in text
    assert "shop/db" in text


def measured(card: LocalCard) -> bool:
    found = card.call("card.top")["resources"]
    return all(row["used"] is not None for row in found if row["resource"] in ("cpu", "memory"))


def test_a_heatmap_is_a_picture_of_every_module(card: LocalCard, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    card.run_compose(compose(service("db", reserve(0.6))), "shop")
    here = card.ps()["shop/db/0"]["cnm"]

    def sampled() -> bool:
        found = card.call("card.history", since_ms=600_000)
        return any(row["id"] == here and row["permille"]["cpu"][-1] == 600 for row in found["cnms"])

    card.wait("a sample of it", sampled)
    path = tmp_path / "card.svg"
    data = card.apf("heatmap", "--since", "10m", "-o", str(path))
    assert (data["file"], data["step_ms"], data["columns"]) == (str(path), 10_000, 60)
    assert [row["id"] for row in data["cnms"]] == CNMS
    names = ["".join(item.itertext()) for item in ET.parse(path).iter()]
    assert set(CNMS) <= set(names)
    assert {"cpu, reserved", "memory, measured use", "accelerators, reserved"} <= set(names)
