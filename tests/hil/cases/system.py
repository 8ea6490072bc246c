"""The whole system on real drivers: the card's daemon in one machine, a CNM's init in each of two
others. They reach each other by ttys (pci-serial) and PCI functions (ivshmem) only: no network, and
no file system that any of them may write and another one see.

Power comes from nowhere: a machine that is killed is a module that died, and only the end of its
lease is a fence (DESIGN section 4, rule 9c).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from hal.linux.clock import LinuxClock
from tests.hil import whole
from tests.hil.case import Evidence, rig_case
from tests.hil.machines import NATIVE_HOTPLUG, device, memory
from tests.hil.rig import GuestFailed, Rig
from tools.polls import polls
from tools.rig.qemu import Machine

_WINDOW: Final = "16M"
_WORKER: Final = "shop/worker/0"
_PORTS: Final = "8250.nr_uarts=8"  # ttyS4 is the first of a PCI function
_COMPOSE: Final = """\
name: shop
x-part: &part
  image: {image}
  cpus: 0.1
  mem_limit: 32m
  restart: always
services:
  db:
    <<: *part
    command: ["/bin/sh", "-c", "trap 'exit 0' TERM; echo db ready; while :; do sleep 1; done"]
    healthcheck:
      test: ["CMD", "test", "-x", "/bin/sh"]
      interval: 2s
      timeout: 20s
      retries: 10
  web:
    <<: *part
    command:
      - /bin/sh
      - -c
      - "trap 'exit 0' TERM; n=0; while :; do n=$$((n + 1)); echo page $$n; sleep 1; done"
    depends_on: [db]
    deploy:
      replicas: 2
      placement:
        preferences: [{{spread: node.id}}]
  worker:
    <<: *part
    command:
      - /bin/sh
      - -c
      - "trap 'exit 0' TERM; seq 1 20000 | sha256sum; while :; do sleep 1; done"
"""
# of `seq 1 20000`, by coreutils 9.1
_WORK_SHA256: Final = "f6351f5ead9a700e34275480b3856ea738122a7c57bdeb744a631251c069587a"


def card_machine(folder: Path) -> Machine:
    """The far end of board qemu_q35: two slots, and four serial ports."""
    slots = [
        words
        for n in range(2)
        for words in (
            *device(f"pcie-root-port,id=slot{n},addr=0x{16 + n:x},chassis={16 + n},slot={16 + n}"),
            *memory(f"win{n}", _WINDOW, str(folder)),
            *device(f"ivshmem-plain,id=window{n},bus=slot{n},memdev=win{n}"),
        )
    ]
    links = [f"{what}{n}" for n in range(2) for what in ("mc", "agent")]
    sockets = [
        words
        for name in links
        for words in (
            "-chardev",
            f"socket,id={name},path={folder}/{name},server=on,wait=off",
        )
    ]
    ends = ",".join(f"chardev{i + 1}={name}" for i, name in enumerate(links))
    return Machine(
        name="whole-card",
        memory_mib=1024,
        options=(*NATIVE_HOTPLUG, *slots, *sockets, *device(f"pci-serial-4x,{ends}")),
        kernel_args=_PORTS,
    )


def module_machine(folder: Path, n: int) -> Machine:
    """A module in slot `n`, as board qemu_cnm has it."""
    return Machine(
        name=f"whole-cnm{n}",
        memory_mib=896,
        processors=1,
        options=(
            *NATIVE_HOTPLUG,
            *device("pcie-root-port,id=card,addr=0x10,chassis=16,slot=16"),
            *memory(f"win{n}", _WINDOW, str(folder)),
            *device(f"ivshmem-plain,bus=card,memdev=win{n}"),
            *("-chardev", f"socket,id=mc,path={folder}/mc{n},reconnect=1"),
            *("-chardev", f"socket,id=agent,path={folder}/agent{n},reconnect=1"),
            *device("pci-serial-2x,chardev1=mc,chardev2=agent"),
        ),
        kernel_args=_PORTS,
    )


class _Whole:
    """The card, its modules, and what is asked of them."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.clock = LinuxClock()
        self.card, *modules = rig.boot(
            card_machine(rig.folder), *(module_machine(rig.folder, n) for n in range(2))
        )
        self.modules = modules
        self.times: dict[str, int] = {}

    def same_memory(self, name: str) -> dict[str, Any]:
        """The file of slot 0's window, for `object-add`."""
        return {
            "qom-type": "memory-backend-file",
            "id": name,
            "size": 16 << 20,
            "mem-path": str(self._rig.folder / "win0"),
            "share": True,
        }

    def replace(self, n: int) -> None:
        """A fresh machine in slot `n`."""
        self.modules[n] = self._rig.boot(module_machine(self._rig.folder, n))[0]

    def close(self) -> None:
        self.clock.close()

    def step(self, name: str, do: Callable[[], Any]) -> Any:
        """Each with its time, seen by who watches."""
        start_ns = self.clock.now_ns()
        found = do()
        self.times[name] = (self.clock.now_ns() - start_ns) // 1_000_000
        self._rig.tell(f"    {name}: {self.times[name] / 1000:.1f} s")
        return found

    def wait(self, what: str, hold: Callable[[], Any], timeout_s: int) -> Any:
        """Ask until it is true. AssertionError with what the daemons said last."""
        for _ in polls(timeout_s * 1000, step_ms=3_000):
            if found := hold():
                return found
        raise AssertionError(f"{what}: not within {timeout_s} s\n{self.why()}")

    def why(self) -> str:
        """Where everybody is."""
        logs = [f"card: {self.card.call(whole.card_log)}"]
        logs += [
            f"{guest.machine.name}: {guest.call(whole.module_log)}"
            for guest in self.modules
            if guest.vm.running
        ]
        rows = [*self.card.call(whole.modules), *self.card.call(whole.instances)]
        return "\n".join([*(str(row) for row in rows), *logs])

    def leased(self, *ids: str) -> bool:
        states = {row["id"]: row["state"] for row in self.card.call(whole.modules)}
        return all(states[name] == "LEASED" for name in ids)

    def placed(self) -> dict[str, dict[str, Any]]:
        return {row["instance"]: row for row in self.card.call(whole.instances)}

    def all_on(self, *cnms: str) -> dict[str, dict[str, Any]] | None:
        rows = self.placed()
        good = all(row["phase"] == "RUNNING" and row["cnm"] in cnms for row in rows.values())
        return rows if good and len(rows) == 4 else None


@rig_case(deadline_s=900)
def a_card_and_its_modules_in_machines_of_their_own(rig: Rig) -> Evidence:
    it = _Whole(rig)
    try:
        status = it.step("card up", lambda: it.card.call(whole.start_card, deadline_s=200))
        ends = [guest.call(whole.start_module, slot=n) for n, guest in enumerate(it.modules)]
        it.step("found", lambda: it.wait("both LEASED", lambda: it.leased("cnm0", "cnm1"), 240))
        _deploy(it)
        _kill_one(it)
        _replace_it(it)
        _drain_the_other(it)
        assert it.card.call(whole.status)["daemon_pid"] == status["daemon_pid"], "it was restarted"
    except (GuestFailed, AssertionError) as exc:
        raise AssertionError(f"{exc}\nthe card's log: {it.card.call(whole.card_log)}") from exc
    finally:
        it.close()
    return Evidence(
        driver=f"serial ({ends[0]['tty_driver']}), {it.card.call(whole.port_driver)} (ivshmem BAR)",
        device=f"{ends[0]['tty']}, {ends[0]['window']}/bar2",
        numbers={f"{name}_ms": took for name, took in it.times.items()},
    )


def _deploy(it: _Whole) -> None:
    it.step("image", lambda: it.card.call(whole.import_image, deadline_s=150))
    it.step(
        "deployed",
        lambda: it.card.call(
            whole.submit,
            compose=_COMPOSE.format(image=whole.IMAGE),
            timeout_s=300,
            deadline_s=330,
        ),
    )
    rows = it.placed()
    web = {rows[f"shop/web/{n}"]["cnm"] for n in range(2)}
    assert web == {"cnm0", "cnm1"}, f"spread over modules: {rows}"
    for guest, cnm in zip(it.modules, ("cnm0", "cnm1"), strict=True):
        wanted = sum(row["cnm"] == cnm for row in rows.values())
        found = guest.call(whole.containers)
        assert len(found) == wanted, f"{cnm} has {wanted} instances, and in /proc: {found}"
    # computed in a module, read by its agent, carried through the BAR
    text = it.wait("the worker's log", lambda: it.card.call(whole.log_of, instance=_WORKER), 60)
    assert text.split()[0] == _WORK_SHA256, text


def _kill_one(it: _Whole) -> None:
    """The machine dies, and what it showed on the card's bus is gone with it."""
    before = it.placed()
    it.modules[0].kill()
    it.card.qmp("device_del", {"id": "window0"})
    rows = it.step("failover", lambda: it.wait("all on cnm1", lambda: it.all_on("cnm1"), 180))
    it.card.event("DEVICE_DELETED", timeout_s=60, device="window0")
    for name, row in before.items():
        grown = rows[name]["generation"] > row["generation"]  # each try takes a number
        assert grown == (row["cnm"] == "cnm0"), f"{name}: {row} became {rows[name]}"
    assert len(it.modules[1].call(whole.containers)) == len(rows)


def _replace_it(it: _Whole) -> None:
    """Another module is put into the slot: a function is plugged in, a machine boots."""
    # the same file as another object: one that a device has had once QEMU 7.2 takes no second time
    it.card.qmp("object-add", it.same_memory("again"))
    it.card.qmp(
        "device_add",
        {"driver": "ivshmem-plain", "id": "window2", "bus": "slot0", "memdev": "again"},
    )
    it.replace(0)
    it.modules[0].call(whole.start_module, slot=0)
    it.step("replaced", lambda: it.wait("cnm0 LEASED", lambda: it.leased("cnm0"), 240))


def _drain_the_other(it: _Whole) -> None:
    before = it.placed()
    it.card.call(whole.drain, cnm="cnm1")
    rows = it.step("drained", lambda: it.wait("all on cnm0", lambda: it.all_on("cnm0"), 240))
    assert all(rows[name]["generation"] > before[name]["generation"] for name in rows), rows
    it.wait("no container on cnm1", lambda: not it.modules[1].call(whole.containers), 60)
