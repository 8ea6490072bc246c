"""overlayfs: one unpacked image under many instances' root file systems.

Ref: mount(2), umount2(2); kernel Documentation/filesystems/overlayfs.rst.
"""

import ctypes
import errno
import os
from typing import Final

from hal.errors import Refused
from hal.linux.oserror import hal_error

_MNT_DETACH: Final = 2  # <sys/mount.h>
_UMOUNT_NOFOLLOW: Final = 8
_SPECIAL: Final = frozenset(",:\\\0")  # would end an option, or a layer, of overlayfs
_libc: Final = ctypes.CDLL(None, use_errno=True)


class LinuxOverlay:
    """Mounts are made in this process's mount namespace and vanish with it. Needs root."""

    def mount(self, lower: str, upper: str, work: str, target: str) -> None:
        """`upper` and `work` must lie on one file system; they and `target` are made.

        Raises Refused for a path that overlayfs can't take, Unavailable where it is not there or
        not allowed."""
        for path in (lower, upper, work, target):
            if not path.startswith("/") or _SPECIAL & set(path):
                raise Refused(f"overlay: path {path[:200]!r} is not absolute, or holds , : or \\")
        what = f"overlay of {lower} at {target}"
        try:
            for path in (upper, work, target):
                os.makedirs(path, 0o755, exist_ok=True)
        except OSError as exc:
            raise hal_error(exc, what) from exc
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        code = _libc.mount(b"overlay", os.fsencode(target), b"overlay", 0, os.fsencode(options))
        if code:
            number = ctypes.get_errno()
            raise hal_error(OSError(number, os.strerror(number)), what)

    def unmount(self, target: str) -> None:
        """Also one that is in use: it goes when its last user does. Not mounted is a success."""
        if _libc.umount2(os.fsencode(target), _MNT_DETACH | _UMOUNT_NOFOLLOW):
            number = ctypes.get_errno()
            # EINVAL: no mount point. EPERM: without root nothing was ever mounted here.
            if number not in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR, errno.EPERM):
                raise hal_error(OSError(number, os.strerror(number)), f"unmount of {target}")
