"""Virtual machines for tests: what they boot from, QEMU's protocol, and how a run is judged."""

import json
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from tests.hil.case import Case, Context, Evidence, case, rig_case
from tests.hil.health import kernel_complaints
from tests.hil.report import Row, as_json, as_table, summary
from tests.hil.rig import Rig
from tests.hil.runner import Run, _by_machine, all_cases
from tools.rig.qemu import Machine
from tools.rig.qemu_guest import Kernel, build_initramfs, module_order
from tools.rig.qemu_qmp import Lines, MachineGone, MachineSilent, Qmp, QmpError

MODULES_DEP = """\
kernel/fs/9p/9p.ko: kernel/fs/netfs/netfs.ko kernel/net/9p/9pnet.ko
kernel/fs/netfs/netfs.ko:
kernel/net/9p/9pnet.ko:
kernel/net/9p/9pnet_virtio.ko: kernel/net/9p/9pnet.ko kernel/drivers/virtio/virtio_ring.ko
kernel/drivers/virtio/virtio_ring.ko:
kernel/drivers/char/virtio-rng.ko: kernel/drivers/virtio/virtio_ring.ko
"""


def test_a_module_is_loaded_after_those_that_it_needs_and_once() -> None:
    order = module_order(MODULES_DEP, ["9pnet_virtio", "9p", "virtio_rng", "built_in"])
    assert sorted(order) == sorted(set(order))
    for line in MODULES_DEP.splitlines():
        name, _, needs = line.partition(":")
        assert all(order.index(need) < order.index(name) for need in needs.split())


@pytest.mark.skipif(shutil.which("busybox") is None, reason="no busybox to read the archive")
def test_another_program_reads_the_initramfs_that_we_write(tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "modules.dep").write_text("")
    kernel = Kernel(version="1", image=tmp_path / "vmlinuz", modules=modules)
    archive = build_initramfs(kernel, program=["prog", "two words"], folder=Path("/a place"))
    out = tmp_path / "out"
    out.mkdir()
    done = subprocess.run(
        ["busybox", "cpio", "-idm"], input=archive, cwd=out, capture_output=True, check=False
    )
    busybox = Path(shutil.which("busybox") or "")
    assert (out / "bin/busybox").read_bytes() == busybox.read_bytes(), done.stderr
    assert (out / "bin/sh").readlink() == Path("busybox")
    checked = subprocess.run(["sh", "-n", str(out / "init")], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "two words" in (out / "init").read_text()


class _Server:
    """Says what it was given, each after one message that came."""

    def __init__(self, *answers: list[object]) -> None:
        ours, theirs = socket.socketpair()
        self.lines, self.got = Lines(ours, "test"), []
        self._thread = threading.Thread(target=self._serve, args=(theirs, answers))
        self._thread.start()

    def _serve(self, link: socket.socket, answers: tuple[list[object], ...]) -> None:
        with link, link.makefile("rb") as file:
            link.sendall(b'{"QMP": {}}\n')
            for answer in answers:
                self.got.append(json.loads(file.readline()))
                link.sendall(b"".join(json.dumps(each).encode() + b"\n" for each in answer))

    def end(self) -> None:
        self._thread.join(10)
        self.lines.close()


def test_events_between_a_command_and_its_answer_are_kept_for_who_waits_for_them() -> None:
    added = {"event": "DEVICE_DELETED", "data": {"device": "x"}}
    other = {"event": "DEVICE_DELETED", "data": {"device": "y"}}
    server = _Server([{"return": {}}], [other, added, {"return": 7}])
    qmp = Qmp(server.lines)
    assert qmp.command("device_del", {"id": "x"}) == 7
    assert server.got[1] == {"execute": "device_del", "arguments": {"id": "x"}}
    assert qmp.wait_event("DEVICE_DELETED", 1, device="x") == {"device": "x"}
    with pytest.raises((MachineGone, MachineSilent)):
        qmp.wait_event("DEVICE_DELETED", 0.2, device="x")  # it was taken
    assert qmp.wait_event("DEVICE_DELETED", 1, device="y") == {"device": "y"}
    server.end()


def test_a_command_that_is_refused_says_why() -> None:
    refusal = {"error": {"class": "GenericError", "desc": "Bus 'port9' not found"}}
    server = _Server([{"return": {}}], [refusal])
    with pytest.raises(QmpError, match="device_add: Bus 'port9' not found"):
        Qmp(server.lines).command("device_add", {"bus": "port9"})
    server.end()


def test_a_machine_that_ends_and_one_that_says_nothing_are_told_apart() -> None:
    ours, theirs = socket.socketpair()
    lines = Lines(ours, "card/qmp")
    with pytest.raises(MachineSilent, match="card/qmp"):
        lines.receive(0.05)
    theirs.close()
    with pytest.raises(MachineGone, match="card/qmp"):
        lines.receive(0.05)
    lines.close()


def _row(status: str, *, required: bool = True) -> Row:
    return Row(name="a_case", machine="card", required=required, status=status, time_ms=1)


@pytest.mark.parametrize(
    ("row", "ok"),
    [
        (_row("passed"), True),
        (_row("failed"), False),
        (_row("failed", required=False), False),
        (_row("skipped"), False),
        (_row("skipped", required=False), True),
    ],
)
def test_a_run_is_good_when_all_that_is_required_has_passed(row: Row, ok: bool) -> None:
    assert as_json([_row("passed"), row], [], 1)["ok"] is ok


def test_what_is_skipped_is_counted_and_says_why() -> None:
    row = Row(
        name="slow_link", machine="own", required=False, status="skipped", time_ms=5, text="no 32G"
    )
    assert summary([_row("passed"), row]) == "1 passed, 0 failed, 1 skipped (0 of them required)"
    assert "slow_link skipped:\n  no 32G" in as_table([row])


@pytest.mark.parametrize(
    "line",
    [
        "BUG: kernel NULL pointer dereference, address: 0000000000000010",
        "WARNING: CPU: 0 PID: 1 at drivers/vfio/vfio_main.c:1 vfio_x+0x1/0x2",
        "pcieport 0000:00:1c.0: AER: Corrected error received: 0000:01:00.0",
        "DMAR: [DMA Read NO_PASID] Request device [01:00.0] fault addr 0x1000 [fault reason 0x06]",
    ],
)
def test_what_the_kernel_complains_about_fails_a_case_unless_it_was_meant_to_come(
    line: str,
) -> None:
    usual = "pci 0000:02:00.0: BAR 0: assigned [mem 0xfe000000-0xfe0fffff]"
    assert kernel_complaints([usual, line], []) == [f"kernel: {line}"]
    assert kernel_complaints([usual, line], ["NULL|vfio_main|AER|DMAR"]) == []


def _case(name: str, machine: Machine | None, *, smoke: bool = False) -> Case:
    def run(_ctx: Context) -> Evidence:
        return Evidence(driver="", device="")

    run.__name__ = name
    made = case(on=machine or Machine(name="x"), smoke=smoke)(run)
    return made if machine else Case(**{**_fields(made), "on": None})


def _fields(made: Case) -> dict[str, object]:
    return {name: getattr(made, name) for name in made.__slots__}


def test_each_machine_boots_once_its_smoke_cases_first_and_the_hosts_own_come_last() -> None:
    left, right = Machine(name="left"), Machine(name="right")
    cases = [
        _case("own", None),
        _case("a", left),
        _case("b", right),
        _case("c", left, smoke=True),
    ]
    groups = [[each.name for each in group] for _, group in _by_machine(cases)]
    assert groups == [["c", "a"], ["b"], ["own"]]


@pytest.mark.parametrize(
    "error", [KeyError("x"), MachineGone("card/qmp: gone"), AssertionError("no")]
)
def test_a_case_on_the_host_may_fail_in_any_way_and_the_next_one_runs(error: Exception) -> None:
    def fails(_rig: Rig) -> Evidence:
        raise error

    def passes(_rig: Rig) -> Evidence:
        return Evidence(driver="d", device="0000:00:03.0", numbers={"n": 1})

    run = Run([rig_case()(fails), rig_case()(passes)], lambda _text: None)
    run.run()
    assert [(row.name, row.status) for row in run.rows] == [
        ("fails", "failed"),
        ("passes", "passed"),
    ]
    assert str(error) in run.rows[0].text
    assert run.rows[1].device == "0000:00:03.0"


def test_a_case_on_the_host_that_takes_too_long_is_ended() -> None:
    def hangs(_rig: Rig) -> Evidence:
        threading.Event().wait(60)
        raise AssertionError

    run = Run([rig_case(deadline_s=0.1)(hangs)], lambda _text: None)
    run.run()
    assert "TimeoutError: not done within 0.1 s" in run.rows[0].text


def test_all_smoke_cases_share_one_machine() -> None:
    cases = all_cases()
    assert {each.machine for each in cases if each.smoke} == {"card"}
    assert all(each.required for each in cases if each.smoke)
