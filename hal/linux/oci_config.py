"""The config.json of one instance. Ref: OCI runtime-spec 1.0.2, config.md and config-linux.md.

The capabilities, masked and read-only paths are those of Docker (moby, oci/caps/defaults.go and
oci/defaults.go, 24.0), so that an image that runs there runs here.
"""

import resource
from collections.abc import Sequence
from typing import Any, Final

from hal.linux.cgroup import CPU_PERIOD_US, CPU_QUOTA_LEAST_US
from hal.linux.exec_stub import TMPFS
from hal.linux.users import User
from hal.ports import InstanceLimits, InstanceSpec, MountSpec

OCI_VERSION: Final = "1.0.2"
NOFILE_SOFT: Final = 1024  # select(2) breaks above it; who needs more raises it to the hard limit
NOFILE_HARD: Final = 524_288  # as systemd gives its services
SHM_SIZE: Final = "65536k"  # as Docker
CAPABILITIES: Final = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
NAMESPACES: Final = ("pid", "network", "ipc", "uts", "mount", "cgroup")
MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY: Final = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)


def nofile() -> tuple[int, int]:
    """(soft, hard) for an instance: never more than we may give."""
    _, ours = resource.getrlimit(resource.RLIMIT_NOFILE)
    hard = NOFILE_HARD if ours == resource.RLIM_INFINITY else min(ours, NOFILE_HARD)
    return min(NOFILE_SOFT, hard), hard


def oci_config(
    spec: InstanceSpec, user: User, *, cgroup: str, limit_swap: bool, oom_score_adj: int
) -> dict[str, Any]:
    """Ready for json.dump. The network namespace is new: loopback only."""
    soft, hard = nofile()
    capabilities = list(CAPABILITIES)
    # A user that is no root gets none of them unless a file or root gives it: like Docker.
    effective = capabilities if user.uid == 0 else []
    return {
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": False,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
            "args": list(spec.argv),
            "env": [f"{name}={value}" for name, value in spec.env.items()],
            "cwd": spec.cwd,
            "capabilities": {
                "bounding": capabilities,
                "effective": effective,
                "permitted": effective,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard}],
            "noNewPrivileges": True,
            "oomScoreAdj": oom_score_adj,
        },
        "root": {"path": spec.rootfs, "readonly": spec.read_only_rootfs},
        "hostname": spec.hostname or spec.key,
        "mounts": [*_default_mounts(), *(_mount(mount) for mount in _outer_first(spec.mounts))],
        "linux": {
            "namespaces": [{"type": kind} for kind in NAMESPACES],
            "cgroupsPath": cgroup,
            "resources": _resources(spec.limits, limit_swap=limit_swap),
            "maskedPaths": list(MASKED),
            "readonlyPaths": list(READ_ONLY),
        },
    }


def _resources(limits: InstanceLimits, *, limit_swap: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]}
    if limits.cpu_milli:
        quota_us = max(CPU_QUOTA_LEAST_US, limits.cpu_milli * CPU_PERIOD_US // 1000)
        found["cpu"] = {"quota": quota_us, "period": CPU_PERIOD_US}
    if limits.memory_bytes:
        found["memory"] = {"limit": limits.memory_bytes}
        if limit_swap:
            found["memory"]["swap"] = limits.memory_bytes  # memory and swap together
    if limits.pids:
        found["pids"] = {"limit": limits.pids}
    return found


def _default_mounts() -> list[dict[str, Any]]:
    quiet = ["nosuid", "noexec", "nodev"]
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": quiet},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {
            "destination": "/dev/shm",  # noqa: S108  the instance's own
            "type": "tmpfs",
            "source": "shm",
            "options": [*quiet, "mode=1777", f"size={SHM_SIZE}"],
        },
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": quiet},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": [*quiet, "ro"]},
    ]


def _outer_first(mounts: Sequence[MountSpec]) -> list[MountSpec]:
    return sorted(mounts, key=lambda mount: mount.target.split("/"))


def _mount(mount: MountSpec) -> dict[str, Any]:
    access = "ro" if mount.read_only else "rw"
    if mount.source == TMPFS:
        return {
            "destination": mount.target,
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "nodev", "mode=1777", access],
        }
    return {
        "destination": mount.target,
        "type": "bind",
        "source": mount.source,
        "options": ["rbind", "rprivate", "nosuid", "nodev", access],
    }
