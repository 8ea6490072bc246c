"""Random bytes of the kernel's generator (random(7))."""

import os
from typing import Final

from hal.errors import Refused

REQUEST_LIMIT_BYTES: Final = 1 << 20


class LinuxEntropy:
    """`hal.ports.Entropy` from getrandom(2)."""

    def random_bytes(self, length: int) -> bytes:
        """Raises Refused for a negative length or one above 1 MiB."""
        if not 0 <= length <= REQUEST_LIMIT_BYTES:
            raise Refused(f"random_bytes: length {length} is outside 0..{REQUEST_LIMIT_BYTES}")
        return os.urandom(length)
