"""The errors that a port may raise or complete with.

    HalError              something the hardware or the host refused or lost
    +- Unavailable        it is not there: no device, no permission, no kernel support
    |  +- Absent          the object that was named does not exist; all else is well
    +- LinkDown           a control link hung up; reopen it
    +- PeerGone           the far end of a window or doorbell is dead
    +- DeviceGone         a device answers with all ones, or was removed; close it, scan again
    +- InterruptStorm     a vector was masked because it came too often; unmask it when mended
    +- DeadlinePassed     a submitted request was not finished in time
    +- StoreFull          no space or quota left; nothing was written
    +- StoreFailed        an I/O error on storage; the store must not be used any further
    +- Refused            the request itself is wrong; nothing was changed

A message says what was wanted, what was found, where, and what to do (STYLE rule 9).
"""


class HalError(Exception):
    """Base of all port errors."""


class Unavailable(HalError):
    """The device or kernel feature is absent, or we may not use it."""


class Absent(Unavailable):
    """The object that was named does not exist, and that is all that is wrong."""


class LinkDown(HalError):
    """A control link hung up."""


class PeerGone(HalError):
    """The far end of a window or doorbell is dead."""


class DeviceGone(HalError):
    """A device was removed, or its link is down: it answers with all ones."""


class InterruptStorm(HalError):
    """Interrupts came faster than the limit; their vector is masked."""


class DeadlinePassed(HalError):
    """A submitted request was not finished before its deadline."""


class StoreFull(HalError):
    """No space left; nothing was written."""


class StoreFailed(HalError):
    """Storage failed; a failed sync is fatal and never retried (fault S7)."""


class Refused(HalError):
    """The request is wrong as it stands; nothing was changed."""
