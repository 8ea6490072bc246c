"""Power off with containers, running and frozen, in the CNM: all dead, nothing left anywhere."""

import os
import shutil
import signal

import pytest

from hal.local.cgroups import find_trees
from tests.process.hal.keepers import gone, python_init, slot, until

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(os.geteuid() != 0, reason="namespaces and runc need root"),
    pytest.mark.skipif(shutil.which("runc") is None, reason="no runc"),
    pytest.mark.skipif(shutil.which("busybox") is None, reason="no busybox"),
]

# Starts a container as cnm-init's agent would, in a cgroup of its own below the CNM's, with a
# runc root of the CNM, and freezes it as it is told.
CONTAINER_INIT = """
import json, os, pathlib, shutil, subprocess, sys, time
freeze = {freeze!r}
run = pathlib.Path(os.environ["APF_RUN"]) / "cnm" / os.environ["APF_CNM_ID"]
group = os.environ["APF_CGROUP"] + "/i-web"
bundle = run / "bundle"
root = bundle / "rootfs"
(root / "bin").mkdir(parents=True)
shutil.copy(shutil.which("busybox"), root / "bin/busybox")
subprocess.run(["runc", "spec", "--bundle", str(bundle)], check=True)
config = json.loads((bundle / "config.json").read_text())
config["process"]["terminal"] = False
script = "busybox setsid busybox sleep 1000 & busybox sleep 1000 & wait"
config["process"]["args"] = ["/bin/busybox", "sh", "-c", script]
config["linux"]["cgroupsPath"] = group
(bundle / "config.json").write_text(json.dumps(config))
runc = ["runc", "--root", str(run / "runc")]
detached = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
subprocess.run([*runc, "run", "--detach", "--bundle", str(bundle), "web"], check=True, **detached)
os.mkdir(run / "scratch")
subprocess.run(["mount", "-t", "tmpfs", "none", str(run / "scratch")], check=True)
time.sleep(0.05)  # its shell has started the two others
if freeze == "v1":
    pathlib.Path({freezer!r} + group + "/freezer.state").write_text("FROZEN")
elif freeze == "v2":
    pathlib.Path({unified!r} + group + "/cgroup.freeze").write_text("1")
print("container is up", flush=True)
time.sleep(1000)
"""


@pytest.fixture(params=["runs", "v1", "v2"])
def keeper_with_container(request: pytest.FixtureRequest, start_keeper):
    """A CNM with a container of three processes; frozen by the v1 or v2 freezer, or not."""
    trees = find_trees()
    if request.param == "v1" and not trees.freezer:
        pytest.skip("no v1 freezer on this host")
    if not trees.unified:
        pytest.skip("no v2 tree on this host")
    program = CONTAINER_INIT.format(
        freeze=request.param, freezer=trees.freezer, unified=trees.unified
    )
    keeper = start_keeper(slot(argv=python_init(program)))
    keeper.power(0, "on")
    log = keeper.run_dir / "cnm" / "cnm0" / "init.log"
    until(lambda: log.exists() and "container is up" in log.read_text())
    return keeper


def left_in_cgroups(keeper) -> list[str]:
    return [path for path in keeper.cgroups() if os.path.isdir(f"{path}/cnm0")]


def test_off_kills_the_container_frozen_or_not_and_removes_its_state(keeper_with_container) -> None:
    keeper = keeper_with_container
    processes = keeper.pids(0)
    inside = [row for row in processes if row["cgroup"].endswith("/i-web")]
    assert len(inside) >= 3
    assert len({row["nspid"] for row in processes}) == len(
        processes
    )  # the CNM's pids, not the container's
    off = keeper.power(0, "off")
    assert not off["power_good"]
    assert all(gone(row["pid"], row["start_ticks"]) for row in processes)
    assert left_in_cgroups(keeper) == []
    assert os.listdir(keeper.run_dir / "cnm" / "cnm0") == ["init.log"]


def test_an_init_killed_beside_a_frozen_container_is_noticed_and_fenced(
    keeper_with_container,
) -> None:
    keeper = keeper_with_container
    processes = keeper.pids(0)
    os.kill(keeper.power(0, "read")["init_pid"], signal.SIGKILL)
    assert keeper.control.wait_event()["slot"]["failing"]
    event = keeper.control.wait_event()
    assert not event["slot"]["power_good"]
    assert all(gone(row["pid"], row["start_ticks"]) for row in processes)
    assert left_in_cgroups(keeper) == []


def test_a_keeper_that_starts_after_a_killed_one_fences_what_it_left_frozen(
    keeper_with_container,
) -> None:
    keeper = keeper_with_container
    processes = keeper.pids(0)
    keeper.kill()
    keeper.start()
    assert all(gone(row["pid"], row["start_ticks"]) for row in processes)
    assert left_in_cgroups(keeper) == []
    assert os.listdir(keeper.run_dir / "cnm" / "cnm0") == ["init.log"]
