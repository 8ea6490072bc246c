"""How a command ends when it does not end well (INTERFACES.md, exit codes).

    ToolError            code, text, data; its exit code
    +- CheckFailed       1: the thing checked is not so
    +- BadUsage          2: the command line or its input file is wrong
    +- DaemonRefused     3: the daemon said no, with its own code
    +- DaemonUnreachable 4: nobody answers on the socket
    +- DeadlinePassed    124: it took too long
    +- Interrupted       130: by Ctrl-C, and something stays that has to be said

`code` is stable snake_case for scripts; `text` is for people and says what to do.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar


class ToolError(Exception):
    """Base of all ends of a command that are not good."""

    exit_code: ClassVar[int] = 1

    def __init__(self, code: str, text: str, data: Mapping[str, object] | None = None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.data: dict[str, object] = dict(data or {})
        self.input_warnings: Sequence[Mapping[str, object]] = ()  # of the input that came this far


class CheckFailed(ToolError):
    """The thing checked is not so."""


class BadUsage(ToolError):
    """The command line, or a file that it names, is wrong."""

    exit_code = 2


class DaemonRefused(ToolError):
    """The daemon said no; `code` is the daemon's."""

    exit_code = 3


class DaemonUnreachable(ToolError):
    """Nobody answers on the socket."""

    exit_code = 4


class DeadlinePassed(ToolError):
    """It took longer than allowed."""

    exit_code = 124


class Interrupted(ToolError):
    """Ctrl-C came when something had been begun."""

    exit_code = 130  # 128 + SIGINT, as shells count
