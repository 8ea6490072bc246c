"""Power of the local board: what runs, what is dead, judged by /proc and the cgroup files."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hal.errors import Unavailable
from hal.local.procview import read_stat
from tests.process.hal.keepers import (
    FORKING_INIT,
    PROJECT,
    error_of,
    gone,
    python_init,
    slot,
    until,
)

pytestmark = pytest.mark.process

REPORTING_INIT = """
import json, os, time
print(json.dumps({
    "pid": os.getpid(), "sid": os.getsid(0), "ppid": os.getppid(),
    "fds": {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in (0, 1, 2, 3)},
    "more_fds": [fd for fd in range(4, 256) if os.path.exists(f"/proc/self/fd/{fd}")],
    "processes": [name for name in os.listdir("/proc") if name.isdigit()],
    "env": dict(os.environ), "cwd": os.getcwd(),
    "status": open("/proc/self/status").read(), "cgroup": open("/proc/self/cgroup").read(),
}), flush=True)
time.sleep(1000)
"""


def log_of(keeper, number: int = 0) -> str:
    path = keeper.run_dir / "cnm" / f"cnm{number}" / "init.log"
    with contextlib.suppress(FileNotFoundError):  # not yet, or just becoming init.log.1
        return path.read_text()
    return ""


def wait_for_log(keeper, text: str) -> str:
    until(lambda: text in log_of(keeper))
    return log_of(keeper)


def all_three(keeper) -> list[dict]:
    """The forking init's processes, once they are all there."""
    until(lambda: len(keeper.pids(0)) == 3)
    return keeper.pids(0)


def test_the_init_is_pid_1_of_its_own_namespaces_with_nothing_but_four_descriptors(
    start_keeper,
) -> None:
    keeper = start_keeper(
        slot(argv=python_init(REPORTING_INIT), env={"WHO": "{id}/{slot} {json}"}, cwd="/usr")
    )
    state = keeper.power(0, "on")
    report = json.loads(wait_for_log(keeper, "}\n"))
    assert (report["pid"], report["sid"], report["ppid"]) == (1, 1, 0)
    assert report["processes"] == ["1"]
    assert report["more_fds"] == []
    assert report["fds"]["0"] == "/dev/null"
    assert report["fds"]["3"].startswith("socket:")
    assert report["cwd"] == "/usr"
    env = report["env"]
    assert env["WHO"] == "cnm0/0 {json}"
    assert env["APF_CGROUP"] == state["cgroup"] == f"/apf/{keeper.run_id}/cnm0"
    assert (env["APF_CNM_ID"], env["APF_SLOT"], env["APF_FENCE"]) == ("cnm0", "0", "power")
    assert env["APF_RUN"] == str(keeper.run_dir)
    assert "SigBlk:\t0000000000000000" in report["status"]
    assert "SigIgn:\t0000000001000000" not in report["status"]
    assert f"0::{state['cgroup']}/init\n" in report["cgroup"]
    assert state["fence"] == "power"


def test_off_kills_daemons_in_sessions_of_their_own_and_leaves_no_cgroup(start_keeper) -> None:
    keeper = start_keeper(slot())
    on = keeper.power(0, "on")
    processes = all_three(keeper)
    assert on["init_pid"] in [row["pid"] for row in processes]
    off = keeper.power(0, "off")
    assert all(gone(row["pid"], row["start_ticks"]) for row in processes)
    assert not off["power_good"]
    assert off["init_pid"] is None
    assert f"init {on['init_pid']} gone" in off["text"]
    assert "empty after" in off["text"]
    assert not [path for path in keeper.cgroups() if os.path.isdir(f"{path}/cnm0")]


def test_the_host_view_maps_pids_and_start_times_and_cgroups(start_keeper) -> None:
    keeper = start_keeper(slot())
    on = keeper.power(0, "on")
    rows = {row["nspid"]: row for row in all_three(keeper)}
    assert sorted(rows) == [1, 2, 3]
    assert rows[1]["pid"] == on["init_pid"]
    for row in rows.values():
        stat = read_stat(row["pid"])
        assert stat is not None
        assert stat.start_ticks == row["start_ticks"]
        assert row["cgroup"] == on["cgroup"] + "/init"
    some = keeper.control.call("pids", slot=0, nspids=[2, 99])
    assert [row["nspid"] for row in some["processes"]] == [2]


LEAVING_INIT = (
    FORKING_INIT.rpartition("time.sleep")[0]
    + """
while not os.path.exists(os.environ["APF_RUN"] + "/leave"):
    time.sleep(0.01)
sys.exit(7)
"""
)


@pytest.mark.parametrize(("ending", "words"), [("kill", "signal SIGKILL"), ("exit", "status 7")])
def test_an_init_that_dies_takes_its_cnm_along_and_every_client_is_told(
    start_keeper, ending: str, words: str
) -> None:
    keeper = start_keeper(slot(argv=python_init(LEAVING_INIT)))
    on = keeper.power(0, "on")
    processes = all_three(keeper)
    if ending == "kill":
        os.kill(on["init_pid"], signal.SIGKILL)
    else:
        (keeper.run_dir / "leave").touch()
    first = keeper.control.wait_event()["slot"]
    assert first["failing"], "told at once"
    assert first["power_good"], "low is said with the proof only"
    event = keeper.control.wait_event()
    assert event["event"] == "slot"
    assert not event["slot"]["power_good"]
    assert not event["slot"]["failing"]
    assert words in event["slot"]["text"]
    assert all(gone(row["pid"], row["start_ticks"]) for row in processes)
    assert keeper.power(0, "read") == event["slot"]
    assert keeper.power(0, "on")["init_pid"] != on["init_pid"]


def test_who_was_told_that_a_power_off_is_late_is_told_of_its_proof_too(start_keeper) -> None:
    keeper = start_keeper(slot(argv=python_init(FORKING_INIT)))
    keeper.power(0, "on")
    processes = all_three(keeper)
    soft, hard = resource.prlimit(keeper.process.pid, resource.RLIMIT_NOFILE)
    # nothing can be looked at
    resource.prlimit(keeper.process.pid, resource.RLIMIT_NOFILE, (0, hard))
    try:
        error = error_of(lambda: keeper.power(0, "off"))
    finally:
        resource.prlimit(keeper.process.pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert isinstance(error, Unavailable)
    assert "no proof" in str(error)
    event = keeper.control.wait_event()
    assert not event["slot"]["power_good"]
    assert not event["slot"]["failing"]
    assert all(gone(row["pid"], row["start_ticks"]) for row in processes)


def test_a_program_that_is_not_there_fails_the_power_on_and_leaves_the_slot_off(
    start_keeper, tmp_path: Path
) -> None:
    script = tmp_path / "bad"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    keeper = start_keeper(slot(0, argv=["/no/such/init"]), slot(1, argv=[str(script)]))
    for number, word in ((0, "no program"), (1, "No such file")):
        error = error_of(lambda number=number: keeper.power(number, "on"))
        assert isinstance(error, Unavailable)
        assert word in str(error)
        state = keeper.power(number, "read")
        assert (state["power_good"], state["init_pid"]) == (False, None)
    assert not [
        path for path in keeper.cgroups() if os.listdir(path) and "cnm" in str(os.listdir(path))
    ]


def test_off_removes_the_runtime_state_and_keeps_the_logs(start_keeper) -> None:
    program = (
        "import os, time\nrun = os.environ['APF_RUN'] + '/cnm/cnm0/runc/x'\nos.makedirs(run)\n"
        "open(run + '/state.json', 'w').write('{}')\n"
        "open(run + '/../../agent.log', 'w').write('words')\n"
        "print('made', flush=True)\ntime.sleep(1000)"
    )
    keeper = start_keeper(slot(argv=python_init(program)))
    keeper.power(0, "on")
    wait_for_log(keeper, "made")
    keeper.power(0, "off")
    assert sorted(os.listdir(keeper.run_dir / "cnm" / "cnm0")) == ["agent.log", "init.log"]
    assert log_of(keeper) == "made\n"


def test_the_log_of_a_talkative_init_is_bounded(start_keeper) -> None:
    program = (
        "import os, time\nfor n in range(60): os.write(1, b'%063d\\n' % n * 1024)\n"
        "os.write(1, b'the end\\n')\ntime.sleep(1000)"
    )
    keeper = start_keeper(slot(argv=python_init(program)))
    keeper.power(0, "on")
    wait_for_log(keeper, "the end")
    directory = keeper.run_dir / "cnm" / "cnm0"
    sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
    assert sorted(sizes) == ["init.log", "init.log.1"]
    assert max(sizes.values()) <= 1 << 20


def test_slots_are_independent(start_keeper) -> None:
    keeper = start_keeper(slot(0), slot(1))
    first, second = keeper.power(0, "on"), keeper.power(1, "on")
    keeper.power(0, "off")
    after = keeper.power(1, "read")
    assert after["init_pid"] == second["init_pid"] != first["init_pid"]
    assert not gone(after["init_pid"], read_stat(after["init_pid"]).start_ticks)


def test_shutdown_powers_everything_off_and_removes_what_it_made(start_keeper) -> None:
    keeper = start_keeper(slot(0), slot(1))
    pids = [keeper.power(number, "on")["init_pid"] for number in (0, 1)]
    ticks = [read_stat(pid).start_ticks for pid in pids]
    assert keeper.control.call("shutdown") == {"stopped": 2}
    assert all(gone(pid, tick) for pid, tick in zip(pids, ticks, strict=True))
    assert keeper.process.wait(10) == 0
    assert not keeper.cgroups()
    assert not (keeper.run_dir / "keeper.sock").exists()
    assert list((keeper.run_dir / "tty").iterdir()) == []


def test_the_keepers_death_is_the_cards_power_loss_and_a_new_one_starts_clean(
    start_keeper,
) -> None:
    keeper = start_keeper(slot())
    keeper.power(0, "on")
    processes = all_three(keeper)
    keeper.kill()
    until(lambda: all(gone(row["pid"], row["start_ticks"]) for row in processes))
    keeper.start()
    assert not keeper.power(0, "read")["power_good"]
    assert not [path for path in keeper.cgroups() if os.path.isdir(f"{path}/cnm0")]
    assert keeper.power(0, "on")["power_good"]


def test_a_second_keeper_is_refused_and_the_first_goes_on(start_keeper) -> None:
    keeper = start_keeper(slot())
    on = keeper.power(0, "on")
    second = keeper.spawn()
    _, words = second.communicate(timeout=10)
    assert second.returncode == 1
    assert f"kept by process {keeper.process.pid} already" in words
    assert keeper.power(0, "read")["init_pid"] == on["init_pid"]


def test_a_keeper_elsewhere_with_the_same_run_id_is_refused(start_keeper, tmp_path: Path) -> None:
    keeper = start_keeper(slot(), run_id=f"twin{os.getpid()}")
    on = keeper.power(0, "on")
    status, words = run_to_its_end((sys.executable,), tmp_path / "other", keeper.config_path)
    assert status == 1
    assert f"another keeper on this host has run id twin{os.getpid()}" in words
    assert keeper.power(0, "read")["init_pid"] == on["init_pid"]


def test_too_many_power_requests_on_one_slot_are_refused(start_keeper, tmp_path: Path) -> None:
    keeper = start_keeper(slot())
    for number in range(40):  # sent without waiting for answers: they stack up behind the first
        message = {
            "id": 1000 + number,
            "op": "power",
            "slot": 0,
            "action": ["on", "off"][number % 2],
        }
        keeper.control._sock.send(json.dumps(message).encode())
    answers = [json.loads(keeper.control._sock.recv(65536)) for _ in range(40)]
    refused = [answer for answer in answers if not answer["ok"]]
    assert refused
    assert all("power requests wait already" in answer["error"]["text"] for answer in refused)
    assert len(refused) < 40


# --- without namespaces, and without root ---


def test_without_namespaces_the_fence_is_the_lease_and_the_family_is_killed_all_the_same(
    start_keeper,
) -> None:
    keeper = start_keeper(slot(), namespaces="off")
    assert "fence = lease" in keeper.control.call("status")["fence"]
    on = keeper.power(0, "on")
    assert on["fence"] == "lease"
    processes = all_three(keeper)
    off = keeper.power(0, "off")
    assert all(gone(row["pid"], row["start_ticks"]) for row in processes)
    assert "the lease is the fence" in off["text"]


def test_without_root_it_keeps_its_cnms_with_the_lease_as_fence(start_keeper, nobody) -> None:
    argv = python_init(FORKING_INIT, nobody.python)
    slots = (slot(0, argv=argv), slot(1, argv=argv))
    keeper = start_keeper(*slots, where=nobody.home, command=nobody.command)
    on = keeper.power(0, "on")
    other = keeper.power(1, "on")
    assert on["fence"] == "lease"
    assert os.stat(f"/proc/{on['init_pid']}").st_uid == nobody.uid
    processes = all_three(keeper)
    keeper.power(0, "off")
    assert all(gone(row["pid"], row["start_ticks"]) for row in processes)
    assert keeper.power(1, "read")["init_pid"] == other["init_pid"]
    keeper.process.terminate()
    assert keeper.process.wait(10) == 0
    assert "fence = lease: no pid and mount namespaces" in keeper.process.stderr.read()


def test_without_root_an_init_that_dies_takes_its_daemons_along(start_keeper, nobody) -> None:
    argv = python_init(FORKING_INIT, nobody.python)
    keeper = start_keeper(slot(0, argv=argv), where=nobody.home, command=nobody.command)
    on = keeper.power(0, "on")
    processes = all_three(keeper)
    os.kill(on["init_pid"], signal.SIGKILL)
    assert keeper.control.wait_event()["slot"]["failing"]
    assert not keeper.control.wait_event()["slot"]["power_good"]
    assert all(gone(row["pid"], row["start_ticks"]) for row in processes)


# A subreaper, as a CNM's init is, with a daemon in a session of its own and no environment at all.
CLEARED_INIT = """
import ctypes, os, signal, time
ctypes.CDLL(None).prctl(36, 1)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve("/bin/sleep", ["sleep", "1000"], {})
    os._exit(0)
os.wait()
while True:
    time.sleep(1000)
"""


def test_without_root_a_daemon_that_hides_from_its_mark_dies_with_its_init_and_no_other_does(
    start_keeper, nobody
) -> None:
    argv = python_init(CLEARED_INIT, nobody.python)
    slots = (slot(0, argv=argv), slot(1, argv=argv))
    keeper = start_keeper(*slots, where=nobody.home, command=nobody.command)
    ons = [keeper.power(number, "on") for number in (0, 1)]
    for number in (0, 1):
        until(lambda number=number: b"sleep\x001000\0" in words_of(keeper, number))
    first, second = processes_of(keeper, 0), processes_of(keeper, 1)
    os.kill(ons[0]["init_pid"], signal.SIGKILL)
    until(lambda: not keeper.power(0, "read")["power_good"])
    assert all(gone(row["pid"], row["start_ticks"]) for row in first)
    assert processes_of(keeper, 1) == second


def words_of(keeper, number: int) -> set[bytes]:
    """The command lines of a CNM's processes, as soon as they are two."""
    rows, words = processes_of(keeper, number), set()
    for row in rows:
        with contextlib.suppress(OSError):  # it has ended since
            words.add(Path(f"/proc/{row['pid']}/cmdline").read_bytes())
    return words if len(rows) == 2 else set()


def processes_of(keeper, number: int) -> list[dict[str, int]]:
    rows = keeper.control.call("pids", slot=number)["processes"]
    return sorted(rows, key=lambda row: row["pid"])


def run_to_its_end(command: tuple[str, ...], run_dir: Path, config: Path) -> tuple[int, str]:
    """A keeper that can't start: status and words."""
    argv = [*command, "-m", "hal.local.keeper", "--run", str(run_dir), "--config", str(config)]
    done = subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def test_a_run_directory_that_may_not_be_written_is_said(nobody) -> None:
    config = nobody.home / "keeper.json"
    config.write_text(json.dumps({"slots": []}))
    closed = nobody.home / "closed"
    closed.mkdir(mode=0o755)
    status, words = run_to_its_end(nobody.command, closed / "run", config)
    assert status == 1
    assert "set APF_RUN to a directory that you may write" in words


def test_a_wrong_config_is_refused_with_its_place(tmp_path: Path) -> None:
    config = tmp_path / "keeper.json"
    config.write_text(json.dumps({"slots": [slot(0), {**slot(1), "watts": 3}]}))
    status, words = run_to_its_end((sys.executable,), tmp_path / "run", config)
    assert status == 1
    assert "slots[1]: unknown key 'watts'" in words
    assert "Traceback" not in words
