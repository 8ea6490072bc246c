"""What becomes of a command when nobody takes what it writes: the shell's view of a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
FULL = (2, "apf: stdout: No space left on device\n")


@pytest.fixture(params=["", "1"], ids=["buffered", "unbuffered"])
def apf_into(request, tmp_path):
    """`apf_into(stdout, *words)` -> (status, stderr) of that command as a process."""

    def run(stdout, *words, **more):
        argv = [sys.executable, "-m", "tools", "--run", tmp_path, "--state", tmp_path / "state"]
        env = {**os.environ, "PYTHONUNBUFFERED": request.param, "PYTHONPATH": str(ROOT)}
        with_defaults = {"stderr": subprocess.PIPE, "env": env, "timeout": 60, **more}
        done = subprocess.run([*argv, *words], stdout=stdout, check=False, **with_defaults)
        return done.returncode, (done.stderr or b"").decode()

    return run


@pytest.fixture
def full():
    with open("/dev/full", "wb") as file:
        yield file


@pytest.fixture
def no_reader():
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.fixture
def there(daemon):
    daemon.answers["workload.ps"] = []
    daemon.answers["status"] = {"daemon_pid": 1}
    daemon.answers["workload.remove"] = {"error": {"code": -1, "message": "no such workload"}}
    return daemon


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("words", ["ps", "status --json", "--help", "completion bash"])
def test_a_full_disk_behind_stdout_is_one_line(apf_into, full, words):
    assert apf_into(full, *words.split()) == FULL


@pytest.mark.usefixtures("there")
def test_a_refusal_whose_envelope_can_not_be_written_is_said_first(apf_into, full):
    status, said = apf_into(full, "rm", "x", "--json")
    assert (status, said) == (FULL[0], f"apf: no such workload\n{FULL[1]}")


@pytest.mark.usefixtures("there")
@pytest.mark.parametrize("words", ["ps", "status --json", "--help"])
def test_a_reader_that_has_gone_is_141_without_a_word(apf_into, no_reader, words):
    assert apf_into(no_reader, *words.split()) == (141, "")


@pytest.mark.usefixtures("there")
def test_a_reader_that_has_gone_before_an_error_is_141(apf_into, no_reader):
    assert apf_into(no_reader, "rm", "x", "--json") == (141, "apf: no such workload\n")


@pytest.mark.usefixtures("there")
def test_a_stdout_that_was_closed_before_the_start_is_nobody_to_write_to(apf_into):
    assert apf_into(None, "ps", preexec_fn=lambda: os.close(1)) == (0, "")


@pytest.mark.usefixtures("there")
def test_words_that_nobody_takes_change_no_exit_code(apf_into, full):
    assert apf_into(subprocess.DEVNULL, "rm", "x", stderr=full) == (3, "")
    closed = {"stderr": None, "preexec_fn": lambda: os.close(2)}
    assert apf_into(subprocess.DEVNULL, "rm", "x", **closed) == (3, "")
