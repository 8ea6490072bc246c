"""What a person does with a card that is up, command by command; judged by /proc and cgroups."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.process.local_card import BUSYBOX, ROOT, LocalCard, a_card
from tools.demo import observe

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(180),
    pytest.mark.skipif(os.geteuid() != 0, reason="containers and namespaces need root"),
    pytest.mark.skipif(not BUSYBOX, reason="busybox-static is not installed"),
]

LOOP = """["/bin/sh", "-c", "trap 'exit 0' TERM; while true; do sleep 0.1; done"]"""


def service(name: str, *lines: str, command: str = LOOP) -> str:
    """One service of a Compose file, small and quick to stop."""
    text = f"  {name}:\n    image: busybox\n    command: {command}\n    stop_grace_period: 1s\n"
    text += "    mem_limit: 16m\n" if not any("mem_limit" in line for line in lines) else ""
    text += "" if any("cpus:" in line for line in lines) else "    cpus: 0.05\n"
    return text + "".join(f"    {line}\n" for line in lines)


def compose(*services: str) -> str:
    return "services:\n" + "".join(services)


def reserve(cores: float, replicas: int = 1) -> str:
    """`deploy` that asks for so much of a processor, by reservation alone."""
    resources = f"resources: {{reservations: {{cpus: '{cores}'}}, limits: {{cpus: '{cores}'}}}}"
    return f"deploy: {{replicas: {replicas}, {resources}}}  # cpus:"


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
    assert card.left_in_modules() == []


def instances_on(card: LocalCard, cnm: str) -> set[str]:
    """By the kernel: whose processes are in this module's cgroup."""
    return {seen.instance for seen in observe.processes(card.cnms()[cnm]["cgroup"])}


def inner_cgroups(cgroup: str) -> set[str]:
    paths = {path for top in observe.cgroup_dirs(cgroup) for path in top.iterdir()}
    return {path.name for path in paths if path.is_dir()}


# --- modules ---


def test_drain_empties_a_module_and_undrain_lets_it_be_used_again(card: LocalCard) -> None:
    card.run_compose(compose(service("web", "deploy: {replicas: 4}")), "shop")
    victim = card.ps()["shop/web/0"]["cnm"]
    cgroup = card.cnms()[victim]["cgroup"]
    moved = instances_on(card, victim)
    assert moved
    card.apf("drain", victim)
    card.wait("its cgroup is empty", lambda: not observe.processes(cgroup))
    card.wait_running(*moved)
    assert {row["cnm"] for row in card.ps().values()} & {victim} == set()
    assert card.cnms()[victim]["state"] == "DRAINING"
    card.wait("no cgroup is left", lambda: not inner_cgroups(cgroup) - {"init", "agent"})
    refused = card.apf("migrate", "shop/web/0", "--to", victim, code=3)
    assert "drain" in refused["error"]["text"]
    card.apf("undrain", victim)
    card.apf("migrate", "shop/web/0", "--to", victim)
    card.wait("it is used again", lambda: instances_on(card, victim) == {"shop/web/0"})
    card.wait_running("shop/web/0")


def test_power_off_is_hard_and_stays_until_power_on(card: LocalCard) -> None:
    card.run_compose(compose(service("web", "deploy: {replicas: 2}")), "shop")
    cnm = card.cnms()[card.ps()["shop/web/0"]["cnm"]]
    card.apf("cnm", "power", "off", str(cnm["slot"]))
    card.wait("its init is gone", lambda: observe.start_ticks(cnm["init_pid"]) is None)
    card.wait("all elsewhere", lambda: cnm["id"] not in {r["cnm"] for r in card.ps().values()})
    card.wait_running()
    assert observe.cgroup_dirs(cnm["cgroup"]) == []
    assert card.cnms()[cnm["id"]]["state"] in ("FENCED", "OFF")
    assert card.cnms()[cnm["id"]]["init_pid"] is None
    card.apf("cnm", "power", "on", str(cnm["slot"]))
    card.wait_leased()
    assert card.cnms()[cnm["id"]]["boot_id"] != cnm["boot_id"]


def test_an_accelerator_is_found_where_it_is(card: LocalCard) -> None:
    devices = "[{capabilities: [gpu], count: 1}]"
    gpu = f"deploy: {{resources: {{reservations: {{devices: {devices}}}}}}}"
    rows = card.run_compose(compose(service("infer", gpu)), "ai")
    assert rows["ai/infer/0"]["cnm"] == "cnm1"
    assert instances_on(card, "cnm1") == {"ai/infer/0"}


def test_what_fits_nowhere_now_waits_with_a_reason_for_each_module(card: LocalCard) -> None:
    card.run_compose(compose(service("filler", reserve(0.9, replicas=4))), "full")
    card.submit(compose(service("late", reserve(0.8))), "more")
    row = card.wait(
        "a reason", lambda: card.ps("more")["more/late/0"]["pending"] and card.ps("more")
    )
    row = row["more/late/0"]
    assert (row["phase"], row["cnm"], row["pid"]) == ("PENDING", None, None)
    assert row["pending"].keys() == {"cnm0", "cnm1", "cnm2", "cnm3"}
    assert all("cpu" in why or "core" in why for why in row["pending"].values()), row["pending"]
    assert "more/late/0" not in {seen.instance for seen in card.mine()}
    card.remove("full")
    card.wait_running("more/late/0")


# --- instances ---


@pytest.mark.parametrize(
    ("policy", "status", "runs", "phase"),
    [
        ("no", 0, 1, "STOPPED"),
        ("no", 3, 1, "FAILED"),
        ("on-failure:2", 3, 3, "FAILED"),
        ("on-failure", 0, 1, "STOPPED"),
        ("always", 0, 3, "RUNNING"),
        ("unless-stopped", 3, 3, "RUNNING"),
    ],
)
def test_what_ends_is_started_again_as_its_restart_policy_says(
    card: LocalCard, policy: str, status: int, runs: int, phase: str
) -> None:
    """The component itself counts its runs, in a volume."""
    card.submit(
        compose(
            service(
                "job",
                f'restart: "{policy}"',
                "volumes: ['runs:/data']",
                command=f'["/bin/sh", "-c", "echo run; exit {status}"]',
            )
        )
        + "volumes: {runs: {}}\n",
        "ends",
    )
    if phase == "RUNNING":
        card.wait("it ran again", lambda: card.ps()["ends/job/0"]["restarts"] >= runs - 1)
        return
    row = card.wait(
        "its end", lambda: (r := card.ps()["ends/job/0"])["phase"] in ("STOPPED", "FAILED") and r
    )
    assert (row["phase"], row["exit_status"], row["restarts"]) == (phase, status, runs - 1)
    assert f"status {status}" in row["reason"]
    assert card.apf("logs", "ends/job/0")["text"] == "run\n" * runs


def test_out_of_memory_is_the_reason_that_is_shown(card: LocalCard) -> None:
    hungry = '["/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"]'
    card.submit(compose(service("eater", "mem_limit: 16m", 'restart: "no"', command=hungry)), "oom")
    row = card.wait(
        "its end", lambda: (r := card.ps()["oom/eater/0"])["phase"] == "FAILED" and r, timeout_s=20
    )
    assert "memory" in row["reason"].lower(), row["reason"]
    assert not [seen for seen in card.mine() if seen.instance == "oom/eater/0"]


def test_logs_follow_an_instance_until_it_has_ended(card: LocalCard) -> None:
    count = '["/bin/sh", "-c", "for i in $$(seq 1 20); do echo line $$i; sleep 0.05; done"]'
    card.submit(compose(service("talker", 'restart: "no"', command=count)), "talk")
    card.wait("it is there", lambda: card.ps()["talk/talker/0"]["cnm"])
    follower = card.start("logs", "-f", "talk/talker/0")
    try:
        out, _ = follower.communicate(timeout=30)
    finally:
        follower.kill()
        follower.wait()
    assert out.splitlines() == [f"line {number}" for number in range(1, 21)]
    assert follower.returncode == 0


def test_logs_and_events_stream_while_things_happen(card: LocalCard) -> None:
    ticking = '["/bin/sh", "-c", "while true; do echo tick; sleep 0.1; done"]'
    events = card.start("events", "-f", "--json")
    running = ("instance.running", "time/clock/0")
    try:
        card.run_compose(compose(service("clock", command=ticking)), "time")
        log = card.start("logs", "-f", "time/clock/0")
        try:
            assert [read_line(log) for _ in range(20)] == ["tick\n"] * 20  # 2 s of them, live
        finally:
            stop(log)
        seen: list[dict[str, Any]] = []
        while not seen or (seen[-1]["code"], seen[-1]["instance"]) != running:
            seen.append(json.loads(read_line(events)))
        assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))
        for event in seen:
            keys = {"seq", "at", "mono_ms", "code", "cnm", "instance", "text", "data"}
            assert event.keys() == keys
    finally:
        stop(events)


def read_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def stop(process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    process.kill()
    process.wait()
    process.stdout.close()


# --- the command's exit codes (INTERFACES.md) ---


def test_exit_codes_say_what_kind_of_end_it_was(card: LocalCard, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("services:\n  web:\n    image: busybox\n    replicas_: 1\n")
    failing = tmp_path / "failing.yaml"
    failing.write_text(
        compose(service("job", 'restart: "no"', command='["/bin/sh", "-c", "exit 9"]'))
    )
    big = tmp_path / "big.yaml"
    big.write_text(compose(service("filler", reserve(0.9, replicas=5))))
    assert card.apf("status")["ready"]
    assert card.apf("decode", "7e0102", code=1)["data"]["ok"] is False
    failed = card.apf("submit", str(failing), "--name", "failing", "--wait", code=1)
    assert failed["error"]["code"] == "instance_failed"
    assert "9" in failed["error"]["text"]
    error = card.apf("submit", str(bad), "--name", "bad", code=2)["error"]
    assert f"{bad}:4" in error["text"]
    card.apf("migrate", code=2)  # usage: which instance?
    assert card.apf("rm", "nobody", code=3)["error"]["code"] == "unknown_workload"
    late = card.apf("submit", str(big), "--name", "big", "--wait", "--timeout", "2", code=124)
    assert late["error"]["code"] == "not_running"
    elsewhere = card.env | {"APF_RUN": str(tmp_path / "none")}
    done = run("status", env=elsewhere)
    assert (done.returncode, done.stdout) == (4, "")  # words go to stderr, data to stdout
    assert "apf up" in done.stderr


def test_data_goes_to_stdout_and_words_to_stderr_without_colour(card: LocalCard) -> None:
    done = run("cnm", "ls", env=card.env)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == [
        "cnm0", "cnm1", "cnm2", "cnm3",
    ]  # fmt: skip
    assert "\x1b" not in done.stdout
    done = run("rm", "nobody", env=card.env)
    assert (done.returncode, done.stdout) == (3, "")
    assert "nobody" in done.stderr


def run(*words: str, env: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tools", *words],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
