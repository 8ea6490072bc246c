"""One table from errno to the port's errors, so that every backend says the same thing."""

import errno
from typing import Final

from hal.errors import HalError, Refused, StoreFailed, StoreFull, Unavailable

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_FAILED: Final = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG})
_WRONG: Final = frozenset({errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EXDEV})


def hal_error(exc: OSError, what: str) -> HalError:
    """The HalError for `exc`; `what` says which operation on which object failed."""
    text = f"{what}: {exc.strerror or exc}"
    if exc.errno in _FULL:
        return StoreFull(text)
    if exc.errno in _FAILED:
        return StoreFailed(text)
    if exc.errno in _WRONG:
        return Refused(text)
    return Unavailable(text)
