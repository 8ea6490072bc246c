"""Control groups, v1, v2 and both at once. Ref: cgroups(7); kernel Documentation/admin-guide/
cgroup-v2.rst and cgroup-v1/{memory,freezer-subsystem,pids}.rst.

A cgroup here is one path, the same in every hierarchy. On a hybrid host the v2 tree has no
controller, but its cgroup.kill, cgroup.freeze and cgroup.events work, so it is always used where
it is mounted; limits go to whichever hierarchy has the controller. A task frozen by the *v1*
freezer does not die of SIGKILL until it is thawed (tried), so `kill` thaws first.

Where permission or a controller is missing the rest is done, and `notes` says what was not.
"""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from hal.errors import Refused, Unavailable
from hal.linux import cgroup_stats
from hal.linux.beneath import split_path
from hal.ports import InstanceLimits, Usage

# One period as in every container engine; the quota is a share of it.
CPU_PERIOD_US: Final = 100_000
CPU_QUOTA_LEAST_US: Final = 1_000  # the kernel refuses less
DIRECTORIES_LIMIT: Final = 4096  # below one cgroup; a tree with more raises, nothing is skipped
_V1_USED: Final = ("cpu", "cpuacct", "memory", "pids", "freezer", "blkio")
_V2_USED: Final = ("cpu", "memory", "pids", "io")


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupTree:
    """Where the hierarchies are mounted. "" and {} where there is none."""

    v2: str = ""
    v1: dict[str, str] = field(default_factory=dict)  # controller (or "name=...") -> mount point

    @classmethod
    def detect(cls, mountinfo: str | None = None) -> "CgroupTree":
        """From /proc/self/mountinfo (proc(5)), or the text given. Never raises for a host
        without cgroups: `mode` is "none" then."""
        if mountinfo is None:
            with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
                mountinfo = file.read()
        v2, v1 = "", dict[str, str]()
        for line in mountinfo.splitlines():
            before, _, after = line.partition(" - ")
            kind = after.split(" ", 1)[0]
            if kind not in ("cgroup", "cgroup2"):
                continue
            point = before.split()[4].replace("\\040", " ")
            if kind == "cgroup2":
                v2 = v2 or point
                continue
            for option in after.split()[-1].split(","):
                if option not in ("rw", "ro") and option.split("=")[0] != "release_agent":
                    v1.setdefault(option, point)
        return cls(v2=v2, v1=v1)

    @property
    def mode(self) -> str:
        """ "v2", "v1", "hybrid" or "none"."""
        if self.v2:
            return "hybrid" if self.v1 else "v2"
        return "v1" if self.v1 else "none"

    @property
    def mounts(self) -> Sequence[str]:
        """Every hierarchy once, the v2 one first."""
        return list(dict.fromkeys([*([self.v2] if self.v2 else []), *self.v1.values()]))

    def limits_swap(self, path: str) -> bool:
        """Can a cgroup below `path` (which must exist) be kept from swapping?"""
        if "memory" in self.v1:
            return os.path.exists(f"{self.v1['memory']}/memory.memsw.limit_in_bytes")
        return os.path.exists(f"{self.at(path).v2_dir}/memory.swap.max")

    def at(self, path: str) -> "Cgroup":
        """The cgroup at `path` (relative to the mounts; a leading "/" is taken off), there or
        not. Raises Refused for the root itself and for what is no plain path."""
        parts = split_path(path.strip("/"))
        if not parts:
            raise Refused("the root cgroup is not ours to manage")
        return Cgroup(self, "/" + "/".join(parts))

    def create(self, path: str, limits: InstanceLimits | None = None) -> "Cgroup":
        """Make it with its parents wherever we may, and set the limits.

        Raises Unavailable when it could be made nowhere at all."""
        group = self.at(path)
        group.make()
        if limits is not None:
            group.limit(limits)
        return group


class Cgroup:
    """One path in all hierarchies. Holds no descriptor; may be made anew at any time."""

    def __init__(self, tree: CgroupTree, path: str) -> None:
        self.path = path
        self.notes: list[str] = []  # what could not be done, and why
        self.unlimited: set[str] = set()  # of "cpu", "memory", "pids": asked for, but not set
        self._tree = tree

    @property
    def v2_dir(self) -> str:
        """Its directory in the v2 tree, "" without one."""
        return self._tree.v2 + self.path if self._tree.v2 else ""

    def v1_dir(self, controller: str) -> str:
        """Its directory in the hierarchy of a v1 controller, "" without one."""
        mount = self._tree.v1.get(controller, "")
        return mount + self.path if mount else ""

    def make(self) -> None:
        """Make the directories; v2 controllers are passed down from the root as far as we may."""
        made = False
        mounts = dict.fromkeys(self._tree.v1[c] for c in _V1_USED if c in self._tree.v1)
        for mount in [*([self._tree.v2] if self._tree.v2 else []), *mounts]:
            try:
                os.makedirs(mount + self.path, 0o755, exist_ok=True)
                made = True
            except OSError as exc:
                self.notes.append(f"cgroup {mount}{self.path}: {exc.strerror}")
        if not made:
            why = "; ".join(self.notes) or "no cgroup hierarchy is mounted"
            raise Unavailable(f"cgroup {self.path} can't be made: {why}")
        if self._tree.v2:
            self._pass_controllers()

    def limit(self, limits: InstanceLimits) -> None:
        """0 leaves a resource unlimited. What can't be limited is noted, not raised."""
        if limits.cpu_milli:
            quota_us = max(CPU_QUOTA_LEAST_US, limits.cpu_milli * CPU_PERIOD_US // 1000)
            if not self._set2("cpu.max", f"{quota_us} {CPU_PERIOD_US}"):
                self._set1("cpu", "cpu.cfs_period_us", str(CPU_PERIOD_US))
                self._need("cpu", self._set1("cpu", "cpu.cfs_quota_us", str(quota_us)))
        if limits.memory_bytes:
            amount = str(limits.memory_bytes)
            if self._set2("memory.max", amount):
                self._set2("memory.swap.max", "0")
            else:
                self._need("memory", self._set1("memory", "memory.limit_in_bytes", amount))
                # Absent without swap accounting; the limit above holds for what is in memory.
                self._set1("memory", "memory.memsw.limit_in_bytes", amount)
        if limits.pids:
            amount = str(limits.pids)
            self._need(
                "pids", self._set2("pids.max", amount) or self._set1("pids", "pids.max", amount)
            )

    def join_paths(self) -> list[str]:
        """The cgroup.procs files into which a process writes "0" to join."""
        return [f"{directory}/cgroup.procs" for directory in self._directories() if directory]

    def add(self, pid: int) -> None:
        """Move a process in. Raises Unavailable when it could be moved nowhere."""
        moved = False
        for path in self.join_paths():
            try:
                _write(path, str(pid))
                moved = True
            except OSError as exc:
                self.notes.append(f"process {pid} into {path}: {exc.strerror}")
        if not moved:
            raise Unavailable(f"process {pid} could not join {self.path}: {self.notes[-1:]}")

    def procs(self) -> list[int]:
        """Every process in it and below, in any hierarchy, as seen from our pid namespace (those
        outside of it read as 0 and are left out)."""
        found: set[int] = set()
        for mount in self._tree.mounts:
            for directory in _walk(mount + self.path):
                found.update(_pids(f"{directory}/cgroup.procs"))
        return sorted(found - {0})

    def populated(self) -> bool:
        """Does anything live in it or below? Absent is empty; what can't be looked at is not."""
        events = cgroup_stats.fields(f"{self.v2_dir}/cgroup.events") if self.v2_dir else {}
        if events.get("populated"):
            return True
        # Empty in v2 settles it; without v2 (or before somebody was moved there) look at each.
        if events:
            return False
        return bool(self.procs()) or os.path.isdir(self.v2_dir) or not _can_look()

    def freeze(self) -> None:
        """Stop everything in it; through v2 where there is one, for those die of SIGKILL.

        Raises Unavailable when no hierarchy can."""
        if not self._set2("cgroup.freeze", "1") and not self._set1(
            "freezer", "freezer.state", "FROZEN"
        ):
            raise Unavailable(f"cgroup {self.path}: no freezer that we may use")

    def thaw(self) -> None:
        """Whatever froze it, here or below; not frozen is a success."""
        for directory in _walk(self.v1_dir("freezer")):
            _try_write(f"{directory}/freezer.state", "THAWED")
        for directory in _walk(self.v2_dir):
            if _read(f"{directory}/cgroup.freeze").strip() == "1":
                _try_write(f"{directory}/cgroup.freeze", "0")

    def kill(self) -> None:
        """SIGKILL everything in it and below, frozen or not. Ask `populated` whether it is done:
        without cgroup.kill (v1, or Linux before 5.14) a fork may slip through; call it again."""
        self.thaw()
        self._set2("cgroup.kill", "1")
        for pid in self.procs():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def oom_kills(self) -> int | None:
        """Processes that the kernel killed for memory in it. Read it before `remove`."""
        return cgroup_stats.oom_kills(self.v2_dir, self.v1_dir("memory"))

    def usage(self) -> Usage:
        """None for what can't be read."""
        return cgroup_stats.usage(self.v2_dir, {name: self.v1_dir(name) for name in _V1_USED})

    def exists(self) -> bool:
        """In any hierarchy."""
        return any(os.path.isdir(mount + self.path) for mount in self._tree.mounts)

    def remove(self) -> Sequence[str]:
        """Remove it leaf-first in every hierarchy; what stayed (still populated) is returned."""
        left = []
        for mount in self._tree.mounts:
            for directory in reversed(list(_walk(mount + self.path))):
                try:
                    os.rmdir(directory)
                except FileNotFoundError:
                    continue
                except OSError:
                    left.append(directory)
        return left

    def _directories(self) -> list[str]:
        found = [self.v2_dir, *(self.v1_dir(name) for name in _V1_USED)]
        return [directory for directory in dict.fromkeys(found) if os.path.isdir(directory)]

    def _pass_controllers(self) -> None:
        directory = self._tree.v2
        for part in ["", *self.path.strip("/").split("/")[:-1]]:
            directory = f"{directory}/{part}" if part else directory
            offered = _read(f"{directory}/cgroup.controllers").split()
            passed = _read(f"{directory}/cgroup.subtree_control").split()
            for name in _V2_USED:
                if name in offered and name not in passed:
                    try:
                        _write(f"{directory}/cgroup.subtree_control", f"+{name}")
                    except OSError as exc:
                        self.notes.append(f"{directory} does not pass {name} on: {exc.strerror}")

    def _need(self, what: str, was_set: bool) -> None:
        if not was_set:
            self.unlimited.add(what)
            self.notes.append(f"cgroup {self.path}: no {what} limit (no controller we may use)")

    def _set2(self, name: str, value: str) -> bool:
        return bool(self.v2_dir) and _try_write(f"{self.v2_dir}/{name}", value)

    def _set1(self, controller: str, name: str, value: str) -> bool:
        directory = self.v1_dir(controller)
        return bool(directory) and _try_write(f"{directory}/{name}", value)


def _walk(top: str) -> Iterator[str]:
    """`top` and every directory below, parents first; nothing where there is none."""
    if not top or not os.path.isdir(top):
        return
    count = 0
    pending = [top]
    while pending:
        directory = pending.pop()
        count += 1
        if count > DIRECTORIES_LIMIT:
            raise Unavailable(f"more than {DIRECTORIES_LIMIT} cgroups below {top}")
        yield directory
        with contextlib.suppress(OSError), os.scandir(directory) as entries:  # gone meanwhile
            pending += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]


def _can_look() -> bool:
    """Is there a descriptor to read anything with?"""
    try:
        os.close(os.open("/", os.O_PATH | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def _pids(path: str) -> list[int]:
    return [int(word) for word in _read(path).split()]


def _read(path: str) -> str:
    """ "" when it can't be read."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # never O_CREAT: a v1 file may be absent
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _try_write(path: str, text: str) -> bool:
    try:
        _write(path, text)
    except OSError:
        return False
    return True
