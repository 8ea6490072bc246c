"""overlayfs mounts. Ref: Linux Documentation/filesystems/overlayfs.rst, mount(2), umount2(2).

Needs CAP_SYS_ADMIN and an upper directory on a file system that overlayfs takes (not another
overlay). Whoever uses it must have a mount namespace that ends with it, or unmount by itself.
"""

import ctypes
import errno
import os
from typing import Final

from hal.errors import Refused
from hal.linux.oserror import hal_error

_MS_NOSUID: Final = 0x2  # <linux/mount.h>
_MS_NODEV: Final = 0x4
_MNT_DETACH: Final = 2  # <sys/mount.h>
_OPTIONS_LIMIT: Final = 4095  # mount(2): the options fit a page
_libc: Final = ctypes.CDLL(None, use_errno=True)


class LinuxOverlay:
    """One writable layer over one read-only tree. Holds nothing."""

    def mount(self, lower: str, upper: str, work: str, target: str) -> None:
        """Make `upper`, `work` and `target` and mount. Raises Unavailable where the kernel does not
        let us, Refused for paths that can't stand in its options."""
        for path in (lower, upper, work):
            if any(char in path for char in ",:\\"):
                raise Refused(f"overlay on {target}: {path!r} holds a comma, colon or backslash")
        options = f"lowerdir={lower},upperdir={upper},workdir={work}"
        if len(options) > _OPTIONS_LIMIT:
            raise Refused(f"overlay on {target}: options of {len(options)} B")
        what = f"overlay on {target}"
        try:
            for path in (upper, work, target):
                os.makedirs(path, 0o755, exist_ok=True)
        except OSError as exc:
            raise hal_error(exc, what) from exc
        result = _libc.mount(
            b"apf-overlay",
            os.fsencode(target),
            b"overlay",
            ctypes.c_ulong(_MS_NODEV | _MS_NOSUID),
            os.fsencode(options),
        )
        if result:
            code = ctypes.get_errno()
            raise hal_error(OSError(code, os.strerror(code)), what)

    def unmount(self, target: str) -> None:
        """At once for new users; what has files open keeps them. Not mounted is a success."""
        if _libc.umount2(os.fsencode(target), _MNT_DETACH):
            code = ctypes.get_errno()
            if code not in (errno.EINVAL, errno.ENOENT):
                raise hal_error(OSError(code, os.strerror(code)), f"unmount of {target}")
