"""The command line: exit codes, one envelope, words apart from data, and each command's request."""

import base64
import json
import shlex
from contextlib import closing

import pytest

from firmware.board_file import BOARDS_DIR
from firmware.crash_store import CrashStore
from firmware.flight_recorder import RING_BYTES, FlightRecorder
from hal.linux.files import LinuxFiles
from hal.mock.trace_memory import MockTraceMemory

ROW = {
    "workload": "shop",
    "component": "web",
    "instance": "shop/web/0",
    "generation": 3,
    "cnm": "cnm0",
    "phase": "RUNNING",
    "runtime": "oci",
    "pid": 4711,
    "start_ticks": 1,
    "cgroup": "/apf/x",
    "restarts": 0,
    "reason": "",
    "pending": {},
    "health": None,
}
COMPOSE = "services:\n  web:\n    image: nginx:1\n    ports: ['80:80']\n"


@pytest.fixture
def compose(tmp_path):
    path = tmp_path / "shop.yaml"
    path.write_text(COMPOSE)
    return path


def refusal(code, text, number=-32000, **data):
    return {"error": {"code": number, "message": text, "data": {"code": code, **data}}}


# --- the frame ---


def test_help_lists_every_command_without_importing_it(apf):
    result = apf("--help")
    assert result.exit_code == 0
    for name in ("up", "down", "demo", "submit", "decode", "bench", "completion"):
        assert name in result.stdout


def test_an_unknown_command_is_usage(apf):
    result = apf("frob")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "No such command" in result.stderr


def test_usage_errors_have_an_envelope_too(apf):
    result = apf("submit", "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)
    assert (error["schema"], error["kind"]) == ("apf/1", "error")
    assert error["error"]["code"] == "usage"
    assert "FILE" in result.stderr


def test_no_daemon_is_4_and_says_what_to_do(apf, tmp_path):
    result = apf("ps")
    assert (result.exit_code, result.stdout) == (4, "")
    assert "apf up" in result.stderr
    error = json.loads(apf("ps", "--json").stdout)["error"]
    assert error["code"] == "daemon_unreachable"
    assert error["data"]["socket"] == str(tmp_path / "apf.sock")


def test_a_refusal_is_3_with_the_daemons_own_code(apf, daemon):
    daemon.answers["workload.remove"] = refusal("unknown_workload", "there is no workload 'x'")
    result = apf("rm", "x", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout) == {
        "schema": "apf/1",
        "kind": "error",
        "error": {
            "code": "unknown_workload",
            "text": "there is no workload 'x'",
            "data": {"method": "workload.remove"},
        },
    }
    assert result.stderr == "apf: there is no workload 'x'\n"


def test_an_error_without_data_still_has_a_code(apf, daemon):
    daemon.answers["status"] = {"error": {"code": -32601, "message": "no such method"}}
    error = json.loads(apf("status", "--json").stdout)["error"]
    assert error["code"] == "rpc_-32601"


def test_a_daemon_that_hangs_up_or_talks_nonsense_is_4(apf, daemon):
    daemon.raw["status"] = None
    assert apf("status").exit_code == 4
    daemon.raw["status"] = b"hello\n"
    result = apf("status")
    assert (result.exit_code, "not JSON" in result.stderr) == (4, True)


def test_a_daemon_that_never_answers_is_124(apf, daemon):
    daemon.raw["volume.flush"] = b""
    result = apf("volume", "flush", "data", "--timeout", "0", "--json")
    assert result.exit_code == 124
    assert json.loads(result.stdout)["error"]["code"] == "deadline_passed"


def test_control_characters_from_elsewhere_are_made_visible(apf, daemon):
    daemon.answers["workload.ps"] = [{**ROW, "reason": "\x1b[2Jgone [red]x"}]
    shown = apf("ps").stdout
    assert "\x1b" not in shown
    assert "\\x1b[2Jgone [red]x" in shown


def test_no_place_for_the_socket_is_usage():
    from click.testing import CliRunner

    from tools.cli import cli

    long = "/" + "x" * 200
    result = CliRunner().invoke(cli, ["--run", long, "status"])
    assert (result.exit_code, "too long" in result.stderr or "longer" in result.stderr) == (2, True)


# --- reading commands ---


def test_ps_is_a_list_in_an_envelope(apf, daemon):
    daemon.answers["workload.ps"] = [ROW]
    envelope = json.loads(apf("ps", "--json").stdout)
    assert envelope == {"schema": "apf/1", "kind": "ps", "data": [ROW], "warnings": []}
    assert daemon.calls == [("workload.ps", {})]
    assert json.loads(apf("--json", "ps", "shop").stdout)["data"] == [ROW]
    assert daemon.calls[-1] == ("workload.ps", {"workload": "shop"})


def test_an_empty_list_stays_a_list(apf, daemon):
    daemon.answers["workload.ps"] = []
    assert json.loads(apf("ps", "--json").stdout)["data"] == []
    assert apf("ps").exit_code == 0


def test_ps_shows_why_an_instance_waits(apf, daemon):
    waiting = {**ROW, "phase": "PENDING", "cnm": None, "pending": {"cnm0": "memory: 2 GiB of 1"}}
    daemon.answers["workload.ps"] = [waiting]
    shown = apf("ps").stdout
    assert "cnm0: memory: 2 GiB of 1" in shown
    assert shown.splitlines()[0].split()[:3] == ["INSTANCE", "PHASE", "CNM"]


def test_cnm_ls_and_show(apf, daemon):
    module = {
        "id": "cnm0",
        "slot": 0,
        "state": "LEASED",
        "lease_ms_left": 4900,
        "capacity": {"arch": "amd64", "cpu_milli": 1000, "memory_bytes": 1 << 30},
        "used": {"cpu_milli": 250, "memory_bytes": 1 << 20},
    }
    daemon.answers["cnm.list"] = [module, {"id": "cnm1", "slot": 1, "capacity": None}]
    shown = apf("cnm", "ls").stdout
    assert "0.25 of 1" in shown
    assert "1.0 MiB of 1.0 GiB" in shown
    daemon.answers["cnm.show"] = module
    assert json.loads(apf("cnm", "show", "cnm0", "--json").stdout)["kind"] == "cnm_show"
    assert daemon.calls[-1] == ("cnm.show", {"id": "cnm0"})


def test_status_images_and_volumes(apf, daemon):
    daemon.answers["status"] = {"daemon_pid": 1, "uptime_ms": 61_000, "journal": {"commits": 2}}
    shown = apf("status").stdout
    assert "1m01s" in shown
    assert "commits=2" in shown
    daemon.answers["image.list"] = [{"ref": "x:1", "arch": "amd64", "size_bytes": 10, "layers": 1}]
    assert "x:1" in apf("image", "ls").stdout
    daemon.answers["volume.list"] = [{"name": "v", "bytes": 10, "age_ms": None, "cnms": ["cnm0"]}]
    assert "cnm0" in apf("volume", "ls").stdout


@pytest.mark.parametrize(
    "words",
    [
        "volume flush v --timeout -1",
        "volume flush v --timeout 99999999999",
        "cnm power on 0 --timeout -1",
        "cxl show cxl:mem0 --timeout -1",
        "submit shop.yaml --wait --timeout -2",
        "rm shop --wait --timeout -1",
        "up --timeout -5",
        "down --timeout 86401",
        "logs a/b/0 --offset -1",
        "events --since -5",
        "top --once --components -1",
        "top --once --components 4097",
    ],
)
def test_a_number_out_of_bounds_is_usage_before_anything_is_asked(apf, daemon, words):
    result = apf(*words.split())
    assert (result.exit_code, daemon.calls) == (2, [])
    assert f"Invalid value for '{words.split()[-2]}'" in result.stderr


# --- doing commands ---


@pytest.mark.parametrize(
    ("words", "method", "params"),
    [
        (["drain", "cnm1"], "cnm.drain", {"id": "cnm1"}),
        (["undrain", "cnm1"], "cnm.undrain", {"id": "cnm1"}),
        (["cnm", "power", "off", "2"], "cnm.power", {"slot": 2, "action": "off"}),
        (["migrate", "a/b/0"], "instance.migrate", {"instance": "a/b/0"}),
        (
            ["migrate", "a/b/0", "--to", "cnm3"],
            "instance.migrate",
            {"instance": "a/b/0", "to": "cnm3"},
        ),
        (["rm", "shop"], "workload.remove", {"name": "shop"}),
        (["image", "rm", "x:1"], "image.remove", {"ref": "x:1"}),
        (["volume", "flush", "v"], "volume.flush", {"name": "v"}),
    ],
)
def test_a_command_asks_for_exactly_this(apf, daemon, words, method, params):
    daemon.answers[method] = {"good": True}
    assert apf(*words).exit_code == 0
    result = apf(*words, "--json")
    assert daemon.calls == [(method, params)] * 2
    assert json.loads(result.stdout)["data"] == {"good": True}


def test_rm_wait_ends_when_the_name_is_free(apf, daemon):
    daemon.answers["workload.remove"] = {"name": "shop"}
    row = {"workload": "shop", "removing": True, "instances": 1}
    gone = refusal("unknown_workload", "there is no workload 'shop'")
    left = [[row], [{**row, "instances": 0}], gone]
    daemon.answers["workload.list"] = lambda params: left.pop(0)
    assert apf("rm", "shop", "--wait").exit_code == 0
    assert left == []
    assert daemon.calls[-1] == ("workload.list", {"workload": "shop"})


# --- submit ---


def test_submit_dry_run_asks_nobody_and_shows_the_normal_form(apf, compose):
    result = apf("submit", str(compose), "--dry-run", "--json")
    assert result.exit_code == 0
    envelope = json.loads(result.stdout)
    assert envelope["kind"] == "submit_dry_run"
    assert envelope["data"]["name"] == "shop"
    component = envelope["data"]["components"][0]
    keys = "name image argv env resources replicas volumes depends_on restart healthcheck"
    assert set(keys.split()) <= set(component)
    assert envelope["warnings"] == [
        {
            "code": "unsupported_ports",
            "file": str(compose),
            "line": 4,
            "key": "services.web.ports",
            "text": "instances have a loopback network only; this is left out",
        }
    ]


def test_warnings_for_people_are_on_stderr_with_file_and_line(apf, compose):
    result = apf("submit", str(compose), "--dry-run")
    assert f"{compose}:4: services.web.ports" in result.stderr
    assert "nginx:1" in result.stdout


def test_an_invalid_file_is_usage_with_file_line_and_key(apf, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("services:\n  web:\n    imagee: x\n")
    result = apf("submit", str(path), "--dry-run", "--json")
    assert result.exit_code == 2
    problem = json.loads(result.stdout)["error"]["data"]["problems"][0]
    assert (problem["file"], problem["line"]) == (str(path), 3)
    assert problem["key"] == "services.web.imagee"


def test_submit_sends_the_normal_form(apf, daemon, compose):
    daemon.answers["workload.submit"] = {"name": "mine", "instances": 1}
    result = apf("submit", str(compose), "--name", "mine", "--json")
    assert json.loads(result.stdout)["data"]["result"] == {"name": "mine", "instances": 1}
    method, params = daemon.calls[0]
    assert method == "workload.submit"
    assert params["workload"]["schema"] == "apf-workload/1"
    assert params["workload"]["name"] == "mine"


def test_submit_wait_ends_when_all_run_and_are_healthy(apf, daemon, compose):
    daemon.answers["workload.submit"] = {}
    phases = [
        [],
        [{**ROW, "phase": "STAGING"}],
        [{**ROW, "health": "starting"}],
        [{**ROW, "health": "healthy"}],
    ]
    daemon.answers["workload.ps"] = lambda params: phases.pop(0)
    result = apf("submit", str(compose), "--wait")
    assert (result.exit_code, phases) == (0, [])
    assert "1 STAGING" in result.stderr


def test_submit_wait_is_1_when_an_instance_fails(apf, daemon, compose):
    daemon.answers["workload.submit"] = {}
    daemon.answers["workload.ps"] = [{**ROW, "phase": "FAILED", "reason": "exited with 3"}]
    result = apf("submit", str(compose), "--wait", "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "instance_failed"
    assert "exited with 3" in error["text"]


def test_submit_wait_is_124_with_the_reason_for_each_cnm(apf, daemon, compose):
    daemon.answers["workload.submit"] = {}
    daemon.answers["workload.ps"] = [{**ROW, "phase": "PENDING", "pending": {"cnm0": "too small"}}]
    result = apf("submit", str(compose), "--wait", "--timeout", "0")
    assert result.exit_code == 124
    assert "cnm0: too small" in result.stderr


REFUSED = refusal("no_room", "no")
NEVER = [{**ROW, "phase": "PENDING", "pending": {"cnm0": "too small"}}]


@pytest.mark.parametrize(
    ("answers", "status"),
    [
        ({"workload.submit": REFUSED}, 3),
        ({"workload.submit": {}, "workload.ps": NEVER}, 124),
        ({"workload.submit": {}, "workload.ps": [{**ROW, "phase": "FAILED"}]}, 1),
    ],
)
def test_submit_keeps_its_warnings_when_it_does_not_end_well(apf, daemon, compose, answers, status):
    daemon.answers.update(answers)
    words = ("submit", str(compose), "--wait", "--timeout", "0")
    for_people = apf(*words)
    assert for_people.exit_code == status
    assert for_people.stderr.count("services.web.ports") == 1
    assert for_people.stderr.index("services.web.ports") < for_people.stderr.index("apf: ")
    for_programs = json.loads(apf(*words, "--json").stdout)
    assert [item["key"] for item in for_programs["warnings"]] == ["services.web.ports"]


def test_submit_says_its_warnings_once_when_it_ends_well(apf, daemon, compose):
    daemon.answers["workload.submit"] = {}
    assert apf("submit", str(compose)).stderr.count("services.web.ports") == 1


def test_an_interrupted_wait_says_that_the_workload_stays(apf, daemon, compose, monkeypatch):
    def interrupt(*_args, **_more):
        raise KeyboardInterrupt

    monkeypatch.setattr("tools.commands.submit.wait_until_running", interrupt)
    daemon.answers["workload.submit"] = {}
    result = apf("submit", str(compose), "--wait", "--json")
    assert result.exit_code == 130
    assert "shop stays submitted; `apf rm shop` removes it" in result.stderr
    envelope = json.loads(result.stdout)
    assert (envelope["kind"], envelope["error"]["code"]) == ("error", "interrupted")
    assert envelope["warnings"]


# --- logs, events ---


def log_of(data, start=0, *, ended=True):
    def answer(params):
        offset = max(params["offset"], start)
        part = data[offset - start :][:4]
        encoded = base64.b64encode(part).decode()
        end = start + len(data)
        return {"start": offset, "end": end, "data_base64": encoded, "ended": ended}

    return answer


def test_logs_are_the_instances_own_bytes(apf, daemon):
    daemon.answers["instance.logs"] = log_of(b"hello\xff\nworld\n")
    assert apf("logs", "a/b/0").stdout_bytes == b"hello\xff\nworld\n"
    assert apf("logs", "-f", "a/b/0").stdout_bytes == b"hello\xff\nworld\n"


def test_a_gap_in_a_log_is_said(apf, daemon):
    daemon.answers["instance.logs"] = log_of(b"late", start=100)
    result = apf("logs", "a/b/0")
    assert result.stdout == "late"
    assert "bytes 0 to 100 are no longer kept" in result.stderr
    data = json.loads(apf("logs", "a/b/0", "--json").stdout)["data"]
    assert data == {
        "instance": "a/b/0",
        "start": 100,
        "end": 104,
        "text": "late",
        "gaps": [{"from": 0, "to": 100}],
    }


def event(seq):
    return {
        "seq": seq,
        "at": "2026-03-01T12:00:00.000Z",
        "mono_ms": 1,
        "code": "cnm.leased",
        "cnm": "cnm0",
        "instance": None,
        "text": "epoch 3",
        "data": {},
    }


def test_events_end_with_what_is_there(apf, daemon):
    daemon.answers["events.subscribe"] = {"next_seq": 3}
    daemon.notifications = [event(1), event(2)]
    assert json.loads(apf("events", "--json").stdout)["data"] == [event(1), event(2)]
    assert "cnm.leased" in apf("events").stdout


def test_events_without_any_do_not_wait(apf, daemon):
    daemon.answers["events.subscribe"] = {"next_seq": 1}
    assert json.loads(apf("events", "--json").stdout)["data"] == []


def test_followed_events_are_one_object_a_line(apf, daemon):
    daemon.answers["events.subscribe"] = {"next_seq": 3}
    daemon.notifications = [event(1), event(2)]
    daemon.raw = {}
    original = daemon._answer

    def then_hang_up(connection, request, fds):
        original(connection, request, fds)
        return False

    daemon._answer = then_hang_up
    result = apf("events", "-f", "--json")
    lines = result.stdout.splitlines()
    assert [json.loads(line) for line in lines[:2]] == [event(1), event(2)]
    assert result.exit_code == 4  # the daemon went


@pytest.fixture
def dump(tmp_path):
    """A daemon's last crash, as it is kept in the state directory."""
    kept = bytearray(RING_BYTES)
    FlightRecorder(MockTraceMemory(kept), lambda: 7_000_000).begin(pid=42, wall_ns=1, text="begun")
    with closing(LinuxFiles(tmp_path / "state" / "crashes")) as files:
        assert (
            CrashStore(files).take(bytes(kept), wall_ns=5, reason="signal 9", stack="") is not None
        )


@pytest.mark.usefixtures("dump")
def test_the_last_crash_is_read_from_its_folder_while_the_card_is_down(apf, tmp_path):
    result = apf("events", "--last-crash", "--json")
    assert result.exit_code == 0
    data = json.loads(result.stdout)["data"]
    assert (data["found"], data["kept"], data["pid"], data["reason"]) == (True, 1, 42, "signal 9")
    assert f"can't be reached: this is what {tmp_path}/state/crashes holds" in result.stderr
    assert "signal 9; 1 dumps are kept" in apf("events", "--last-crash").stdout
    assert apf("events").exit_code == 4


def test_a_last_crash_of_a_card_that_never_was_is_4_and_makes_no_folder(apf, tmp_path):
    assert apf("events", "--last-crash").exit_code == 4
    assert not (tmp_path / "state").exists()


# --- options that would go unheard ---


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("events -f --last-crash", "neither -f nor --since"),
        ("events --since 3 --last-crash", "neither -f nor --since"),
        ("submit shop.yaml --name ''", "'--name' / '--project-name': it is empty"),
        ("plan shop.yaml --name ''", "'--name' / '--project-name': it is empty"),
        ("migrate a/b/0 --to ''", "'--to': it is empty"),
    ],
)
def test_what_would_go_unheard_is_usage_before_anything_is_asked(apf, daemon, words, said):
    result = apf(*shlex.split(words))
    assert (result.exit_code, daemon.calls) == (2, [])
    assert said in result.stderr


# --- board, completion, up ---


def test_board_check_shows_a_good_board(apf):
    result = apf("board", "check", "local", "--json")
    data = json.loads(result.stdout)["data"]
    assert (data["name"], data["fence_wait_ms"], len(data["slots"])) == ("local", 5600, 4)
    assert "cnm3" in apf("board", "check", "local").stdout


def test_board_check_is_1_for_a_bad_board(apf, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text('[board]\nname = "x"\nkind = "local"\ncolour = 1\n[[slot]]\nslot = 0\n')
    result = apf("board", "check", str(path), "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "bad_board"
    assert error["data"]["line"] > 0


def test_completion_prints_a_script(apf):
    assert "_APF_COMPLETE" in apf("completion", "bash").stdout
    assert "compdef" in apf("completion", "zsh").stdout


def test_up_is_done_when_the_same_board_is_up_and_refused_with_another(apf, daemon):
    daemon.answers["status"] = {"board": "local", "daemon_pid": 5, "ready": True}
    result = apf("up", "--board", "local")
    assert result.exit_code == 0
    assert "already up" in result.stderr
    result = apf("up", "--board", "mock_4")
    assert result.exit_code == 3
    assert "apf down" in result.stderr


def test_up_refuses_a_bad_board_before_anything_starts(apf, tmp_path):
    result = apf("up", "--board", "nowhere", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["code"] == "bad_board"
    assert not (tmp_path / "supervisor.log").exists()


@pytest.mark.parametrize("option", ["--run", "--state"])
def test_a_place_that_can_not_be_made_is_usage_with_its_option(apf, option):
    result = apf(option, "/dev/null/x", "up", "--json")
    assert result.exit_code == 2
    error = json.loads(result.stdout)["error"]
    assert error["code"] == "bad_place"
    variable = {"--run": "APF_RUN", "--state": "APF_STATE"}[option]
    assert f"{option} ({variable}) /dev/null/x: Not a directory; choose" in error["text"]


def test_a_run_directory_that_takes_no_log_is_usage(apf):
    result = apf("--run", "/proc", "up")
    assert (result.exit_code, "--run (APF_RUN) /proc:" in result.stderr) == (2, True)


@pytest.fixture
def started(monkeypatch):
    """The argv of what `apf up --foreground` would have started."""
    calls = []

    def call(argv, **_more):
        calls.append(argv)
        return 0

    monkeypatch.setattr("tools.daemon.subprocess.call", call)
    return calls


def test_a_file_in_the_working_directory_is_not_taken_for_a_board(
    apf, tmp_path, monkeypatch, started
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").write_text("garbage")
    assert apf("up", "--board", "local", "--foreground").exit_code == 0
    assert started[0][started[0].index("--board") + 1] == str(BOARDS_DIR / "local.toml")


def test_a_board_file_is_handed_on_with_its_whole_path(apf, tmp_path, monkeypatch, started):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text('[board]\nname = "mine"\ninherit = "local"\n')
    assert apf("up", "--board", "./mine", "--foreground").exit_code == 0
    assert started[0][started[0].index("--board") + 1] == str(tmp_path / "mine")


def test_a_name_that_is_only_a_file_here_is_told_how_to_say_so(apf, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_text("")
    assert "write ./mine" in apf("board", "check", "mine").stderr
    assert "write ./other" not in apf("board", "check", "other").stderr


def test_down_when_nothing_is_up_is_good(apf):
    result = apf("down", "--json")
    assert (result.exit_code, json.loads(result.stdout)["data"]) == (0, {"stopped": False})
