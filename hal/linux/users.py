"""The user of an instance as numbers, by the image's own files. Ref: passwd(5), group(5)."""

import os
import stat
from dataclasses import dataclass
from typing import Final

from hal.errors import Refused
from hal.linux.beneath import DIR_FLAGS, resolve_dir

TABLE_LIMIT_BYTES: Final = 1 << 20
ID_LIMIT: Final = 0xFFFF_FFFE
ID_DIGITS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()  # supplementary
    home: str = "/"


def find_user(rootfs: str, text: str) -> User:
    """`text` is "", "user" or "user:group", each by number or by name; "" is root.

    A number needs no entry; with one, its group, groups and home are taken from it. Raises Refused
    for a name that the image does not know.
    """
    name, _, group = text.partition(":")
    users = [row for row in _table(rootfs, "passwd", 6) if _is_id(row[2]) and _is_id(row[3])]
    groups = [row for row in _table(rootfs, "group", 3) if _is_id(row[2])]
    found = next((row for row in users if (name or "0") in (row[0], row[2])), None)
    if found is not None:
        uid, gid, home, login = int(found[2]), int(found[3]), found[5] or "/", found[0]
    elif _is_id(name) or not name:
        uid, gid, home, login = int(name or 0), 0, "/", ""
    else:
        raise Refused(f"user {name!r} is not in {rootfs}/etc/passwd")
    if _is_id(group):
        gid = int(group)
    elif group:
        row = next((row for row in groups if row[0] == group), None)
        if row is None:
            raise Refused(f"group {group!r} is not in {rootfs}/etc/group")
        gid = int(row[2])
    extra: tuple[int, ...] = ()
    if login and not group:
        extra = tuple(int(row[2]) for row in groups if len(row) > 3 and login in row[3].split(","))
    if max(uid, gid, *extra) > ID_LIMIT:
        raise Refused(f"user {text!r}: ids go up to {ID_LIMIT}")
    return User(uid=uid, gid=gid, groups=extra, home=home)


def _is_id(text: str) -> bool:
    """Digits that int() takes: a tenant's file may hold superscripts, or thousands of them."""
    return text.isascii() and text.isdigit() and len(text) <= ID_DIGITS


def _table(rootfs: str, name: str, columns: int) -> list[list[str]]:
    """Rows of a table in the image's /etc; symlinks never lead out of it."""
    try:
        root = os.open(rootfs or "/", DIR_FLAGS)
        try:
            etc = resolve_dir(root, ["etc"])
        finally:
            os.close(root)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            fd = os.open(name, flags, dir_fd=etc)
        finally:
            os.close(etc)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return []
            text = os.read(fd, TABLE_LIMIT_BYTES).decode(errors="replace")
        finally:
            os.close(fd)
    except OSError:
        return []  # an image without the file: numbers still work
    rows = [line.split(":") for line in text.splitlines()]
    return [row for row in rows if len(row) >= columns]
