"""What a volume that was never flushed begins with. Ref: protocol/SPEC.md section 13.2.

As every container engine does it: what the image has at the mount's target, with owners and modes,
so that an image whose program is not root finds its directories as its maker left them. Where the
image has no such directory, an empty one that belongs to the user that the instance runs as. The
copy goes through the blob store, as any other content of a volume does.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from firmware.loop import MS
from hal.errors import Absent, HalError, Refused
from hal.ports import TREE_TOP, Done, FileInfo, Reactor, Trees

DEADLINE_MS: Final = 240_000
DIRECTORY_MODE: Final = 0o755

Entries: TypeAlias = Sequence[tuple[FileInfo, bytes]]
FindUser: TypeAlias = Callable[[str, str], tuple[int, int]]
"""(absolute root file system, "user" or "user:group") -> (uid, gid), as the runtime will find them.
Takes under 1 ms. Raises Refused for a name that is not known there."""


def user_by_number(_rootfs: str, text: str) -> tuple[int, int]:
    """A `FindUser` where no tables of users can be looked into. Raises Refused."""
    user, _, group = text.partition(":")
    if not user.isdecimal() or not (group or "0").isdecimal():
        raise Refused(f"user {text!r}: this CNM knows users by number only")
    return int(user), int(group or 0)


class FirstUse:
    """Loop thread only."""

    def __init__(self, reactor: Reactor, trees: Trees, find_user: FindUser) -> None:
        self._reactor = reactor
        self._trees = trees
        self._find_user = find_user

    def submit(self, rootfs: str, target: str, user: str, done: Done[Entries]) -> None:
        """`done` with at least the directory itself. `rootfs` is absolute; "" is the CNM's own,
        of which nothing is copied."""

        def scanned(result: Entries | HalError) -> None:
            if isinstance(result, Absent):
                self._empty(rootfs, user, done)
            else:
                done(result)

        below = "/".join(part for part in target.split("/") if part not in ("", "."))
        if not rootfs or not below:
            self._empty(rootfs, user, done)
            return
        deadline_ns = self._reactor.now_ns() + DEADLINE_MS * MS
        try:
            self._trees.submit_scan(f"{rootfs}/{below}", deadline_ns, scanned)
        except HalError as exc:
            done(exc)

    def _empty(self, rootfs: str, user: str, done: Done[Entries]) -> None:
        try:
            uid, gid = self._find_user(rootfs or "/", user) if user else (0, 0)
        except HalError as exc:
            done(exc)
            return
        top = FileInfo(
            path=TREE_TOP, kind="dir", mode=DIRECTORY_MODE, size_bytes=0, uid=uid, gid=gid
        )
        done([(top, b"")])
