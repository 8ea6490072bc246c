"""What a guest boots from: Debian's kernel, and a small initramfs that shows the host's files.

The initramfs holds busybox, the modules for a 9p root and an `init`: `/` of the host appears
read-only through 9p, below an overlay in the guest's memory, so that Python and this project are
simply there, and nothing that a guest writes is seen by the host or by another guest.
Ref: kernel, Documentation/driver-api/early-userspace/buffer-format.rst (cpio "newc");
Documentation/filesystems/{9p,overlayfs}.rst; modules.dep(5).
"""

import shlex
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT_TAG: Final = "root"  # mount tag of the 9p device
CHANNEL_PORT: Final = "apf.rig"  # virtio-serial port that a guest's program talks through
_MODULES: Final = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console")
_FOLDER, _PROGRAM, _FILE, _LINK, _CHARACTER = 0o40755, 0o100755, 0o100644, 0o120777, 0o20600

_INIT: Final = """#!/bin/sh
# Mounts the host's files read-only under an overlay in memory, and goes there.
b=/bin/busybox
fail() {{ echo "init: $*"; echo o >/proc/sysrq-trigger; $b sleep 60; }}
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs dev /dev
# memory is counted before and after a case: 2 MiB that the kernel puts together are no leak
echo never 2>/dev/null >/sys/kernel/mm/transparent_hugepage/enabled
for module in {modules}; do $b insmod /modules/$module || fail "insmod $module"; done
options=trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000
$b mount -t 9p -o $options {tag} /lower || fail "no 9p root"
$b mount -t tmpfs tmpfs /over && $b mkdir /over/up /over/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/over/up,workdir=/over/work overlay /root ||
    fail "no overlay"
for place in proc sys dev; do $b mount --move /$place /root/$place; done
$b mkdir -p /root/run /root/tmp /root/dev/shm /root/dev/pts
$b mkdir /project && $b mount -o bind /root{folder} /project || fail "no "{folder}
for place in run tmp dev/shm; do $b mount -t tmpfs tmpfs /root/$place; done
# the project may lie in one of those
[ -d /root{folder} ] || {{ $b mkdir -p /root{folder} && $b mount -o bind /project /root{folder}; }}
$b mount -t devpts devpts /root/dev/pts
$b mount -t cgroup2 cgroup2 /root/sys/fs/cgroup
$b ln -s /proc/self/fd /root/dev/fd
$b ip link set lo up
$b hostname {hostname}
exec $b switch_root /root /bin/sh -c {command}
"""
# PID 1 stays, so that the end of the program turns the machine off instead of panicking it
_COMMAND: Final = "cd {folder} && {environment} {program}; echo o >/proc/sysrq-trigger; sleep 60"


class GuestMissing(Exception):
    """Something that a guest is made from is not on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel and the modules made with it."""

    version: str
    image: Path
    modules: Path


def find_kernel() -> Kernel:
    """The newest one of Debian's for amd64 that is installed. Raises GuestMissing."""
    found = []
    for image in Path("/boot").glob("vmlinuz-*-amd64"):
        version = image.name.removeprefix("vmlinuz-")
        modules = Path("/lib/modules") / version
        if (modules / "modules.dep").exists():
            found.append(Kernel(version=version, image=image, modules=modules))
    if not found:
        raise GuestMissing("no kernel for guests in /boot: install linux-image-amd64")
    return max(found, key=lambda kernel: kernel.image.stat().st_mtime_ns)


def module_order(modules_dep: str, wanted: Iterable[str]) -> list[str]:
    """Files of these modules, each after those that it needs. Names that are not listed are built
    into the kernel, as far as modules.dep can tell."""
    needs: dict[str, list[str]] = {}
    for line in modules_dep.splitlines():
        name, _, deps = line.partition(":")
        needs[name] = deps.split()
    by_name = {Path(name).name.split(".")[0].replace("-", "_"): name for name in needs}
    order: list[str] = []
    for module in wanted:
        if file := by_name.get(module.replace("-", "_")):  # modules.dep lists the direct ones first
            order += [each for each in [*reversed(needs[file]), file] if each not in order]
    return order


def build_initramfs(
    kernel: Kernel, *, program: Sequence[str], folder: Path, hostname: str = "guest"
) -> bytes:
    """An initramfs that runs `program` (as the host's files name it) in `folder`, and then turns
    the machine off. Raises GuestMissing without a static busybox; OSError."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise GuestMissing("no busybox for the guests' init: install busybox-static")
    files = module_order((kernel.modules / "modules.dep").read_text(), _MODULES)
    command = _COMMAND.format(
        folder=shlex.quote(str(folder)),
        environment="HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        program=shlex.join(program),
    )
    init = _INIT.format(
        modules=" ".join(Path(name).name for name in files),
        tag=ROOT_TAG,
        hostname=shlex.quote(hostname),
        folder=shlex.quote(str(folder)),
        command=shlex.quote(command),
    )
    archive = _Archive()
    for name in ("bin", "proc", "sys", "dev", "lower", "over", "root", "modules"):
        archive.add(name, _FOLDER)
    archive.add("dev/console", _CHARACTER, device=(5, 1))
    archive.add("bin/busybox", _PROGRAM, Path(busybox).read_bytes())
    archive.add("bin/sh", _LINK, b"busybox")
    for name in files:
        archive.add(f"modules/{Path(name).name}", _FILE, (kernel.modules / name).read_bytes())
    archive.add("init", _PROGRAM, init.encode())
    return archive.end()


class _Archive:
    """A cpio archive in the format "newc"."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._count = 0

    def add(
        self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
    ) -> None:
        self._count += 1
        path = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device 0:0, the node's device, name size, sum
        fields = (self._count, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
        self._bytes += b"070701" + b"".join(b"%08x" % value for value in fields) + path
        self._pad()
        self._bytes += data
        self._pad()

    def end(self) -> bytes:
        self.add("TRAILER!!!", 0)
        return bytes(self._bytes)

    def _pad(self) -> None:
        self._bytes += bytes(-len(self._bytes) % 4)
