"""Cgroups of one slot in every hierarchy of the host: v2, v1, or both at once (hybrid).

Tried on Debian 12: on a hybrid host runc puts a container into the v1 trees *and* the v2 tree at
the same path, so cgroup.kill and cgroup.events work there although v2 has no controller. A task
frozen by the v1 freezer does not die of SIGKILL until it is thawed, and holds up the end of its
pid namespace.  Ref: cgroups(7), kernel Documentation/admin-guide/cgroup-v2.rst.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_DIRECTORIES_LIMIT: Final = 4096  # of one walk; a CNM with more is refused its proof, never passed
CONTROLLERS: Final = ("cpu", "memory", "pids", "io", "cpuset")


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupTrees:
    """Mount points, "" where there is none."""

    unified: str = ""
    v1: tuple[str, ...] = ()
    freezer: str = ""

    @property
    def all(self) -> tuple[str, ...]:
        return (self.unified, *self.v1) if self.unified else self.v1


def find_trees(mountinfo: str | None = None) -> CgroupTrees:
    """The hierarchies of this host, from /proc/self/mountinfo (proc(5))."""
    if mountinfo is None:
        mountinfo = Path("/proc/self/mountinfo").read_text()
    unified, freezer = "", ""
    v1: list[str] = []
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.partition(" ")
        if kind not in ("cgroup", "cgroup2"):
            continue
        point = before.split()[4].encode().decode("unicode_escape")  # \040 is a space
        if kind == "cgroup2":
            unified = unified or point
            continue
        v1.append(point)
        if "freezer" in options.split()[-1].split(","):
            freezer = point
    return CgroupTrees(unified=unified, v1=tuple(v1), freezer=freezer)


class SlotCgroup:
    """One path in every hierarchy, and all that lies below it."""

    def __init__(self, trees: CgroupTrees, path: str) -> None:
        self.path = path
        self._trees = trees

    @property
    def unified(self) -> Path | None:
        """Its directory in the v2 tree."""
        return Path(self._trees.unified + self.path) if self._trees.unified else None

    def make_leaf(self, name: str) -> Path | None:
        """Make the leaf `name` in the v2 tree, controllers passed down as far as the host lets
        us; None without a v2 tree that we may write. The slot's own cgroup holds no process, or
        its controllers could not be passed on (rule of no internal processes)."""
        root = self.unified
        if root is None:
            return None
        leaf = root / name
        try:
            leaf.mkdir(parents=True, exist_ok=True)
        except OSError:
            return None
        mount = Path(self._trees.unified)
        below = [mount, *(mount / part for part in _prefixes(self.path))]
        for directory in below:
            _pass_controllers(directory)
        return leaf

    def thaw(self) -> None:
        """Thaw every v1 freezer below; v2-frozen tasks die without that."""
        if self._trees.freezer:
            for directory in _walk(self._trees.freezer + self.path):
                _write(f"{directory}/freezer.state", "THAWED")

    def kill(self) -> None:
        """SIGKILL everything in it."""
        root = self.unified
        if root is None or not _write(f"{root}/cgroup.kill", "1"):
            # a kernel before 5.14, or v1 alone: one by one; the caller comes back until it is empty
            for pid, _ in self.processes():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)

    def populated(self) -> bool:
        """Does any process live in it? From cgroup.events in the v2 tree, else by walking."""
        root = self.unified
        if root is not None:
            try:
                return "populated 1" in (root / "cgroup.events").read_text()
            except OSError:
                if root.exists():
                    raise
        return any(True for _ in self.processes())

    def processes(self) -> Iterator[tuple[int, str]]:
        """(host pid, cgroup path relative to the mount); each pid once."""
        seen: set[int] = set()
        for mount in self._trees.all:
            for directory in _walk(mount + self.path):
                for pid in _pids(f"{directory}/cgroup.procs"):
                    if pid not in seen:
                        seen.add(pid)
                        yield pid, directory[len(mount) :]

    def remove(self) -> list[str]:
        """Remove the directories leaf-first; those that stayed are returned."""
        left: list[str] = []
        for mount in self._trees.all:
            for directory in reversed(_walk(mount + self.path)):
                try:
                    os.rmdir(directory)
                except FileNotFoundError:
                    continue
                except OSError:  # EBUSY: somebody is in it, or died in it an instant ago
                    left.append(directory)
        return left

    def remove_parents(self) -> None:
        """Remove the directories above that are empty now; other boards may share them."""
        for mount in self._trees.all:
            for prefix in reversed(_prefixes(self.path)[:-1]):
                with contextlib.suppress(OSError):
                    os.rmdir(f"{mount}/{prefix}")


def _prefixes(path: str) -> list[str]:
    parts = path.strip("/").split("/")
    return ["/".join(parts[: n + 1]) for n in range(len(parts))]


def _walk(top: str) -> list[str]:
    """`top` and every directory below, parents first; empty when it is not there."""
    if not os.path.isdir(top):
        return []
    found = [top]
    for directory in found:  # grows while it is read
        if len(found) > _DIRECTORIES_LIMIT:
            break
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            found.extend(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    return found


def _pass_controllers(directory: Path) -> None:
    try:
        have = (directory / "cgroup.controllers").read_text().split()
    except OSError:
        return
    for controller in CONTROLLERS:
        if controller in have:
            _write(str(directory / "cgroup.subtree_control"), f"+{controller}")


def _write(path: str, text: str) -> bool:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        os.write(fd, text.encode())
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _pids(path: str) -> list[int]:
    try:
        return [int(line) for line in Path(path).read_text().split()]
    except OSError:
        return []
