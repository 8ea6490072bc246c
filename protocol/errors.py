"""The one error that bytes from a peer may cause.

Two kinds of fault are kept apart:

- *Wire bytes* that break a contract raise `ProtocolError`, and nothing else. Its `code` is a
  stable snake_case reason ("short", "bad_version", ...) for counters and for `apf decode`.
- *Building* a frame from values out of range is a slip of our own code, not of a peer: that is
  `ValueError` (of the standard library, with the limit in its text). A tool that builds frames
  from what a person typed checks first.
"""

from typing import Final

SHOWN_BYTES: Final = 16  # of the frame, in the text: a log line stays a line


class ProtocolError(Exception):
    """A frame broke the wire contract; `frame` is kept whole for the flight recorder.

    `offset` is the byte in `frame` where it broke, or None where no single byte did.
    """

    def __init__(self, detail: str, *, frame: bytes, code: str, offset: int | None = None) -> None:
        self.detail = " ".join(detail.split())  # construct's texts hold newlines
        self.frame = bytes(frame)
        self.code = code
        self.offset = offset
        shown = self.frame[:SHOWN_BYTES].hex(" ")
        super().__init__(f"{self.detail} [{len(self.frame)} B: {shown}]")
