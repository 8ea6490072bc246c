"""User and group names of an image, as its own files have them. Ref: passwd(5), group(5)."""

from typing import Final

from hal.errors import HalError
from hal.ports import Files

FILE_LIMIT_BYTES: Final = 256 * 1024


class UnknownUserError(Exception):
    """The image knows no such user or group."""


def resolve_user(files: Files, rootfs: str, user: str) -> str:
    """`user` as "uid:gid" ("uid" where a number has no entry). "" stays "": root of the image.

    `rootfs` is relative to `files`; "" is the CNM's own root, where only numbers can be used.
    Raises UnknownUserError.
    """
    name, _, group = user.partition(":")
    if not user or (name.isdigit() and (not group or group.isdigit())):
        return user
    if not rootfs:
        raise UnknownUserError(f"user {user!r}: without an image only numbers can be used")
    uid, gid = _passwd(files, rootfs, name)
    if group:
        gid = group if group.isdigit() else _group(files, rootfs, group)
    return f"{uid}:{gid}" if gid else uid


def _passwd(files: Files, rootfs: str, name: str) -> tuple[str, str]:
    for fields in _table(files, f"{rootfs}/etc/passwd", 4):
        if name in (fields[0], fields[2]) and fields[2].isdigit() and fields[3].isdigit():
            return fields[2], fields[3]
    if name.isdigit():
        return name, ""
    raise UnknownUserError(f"user {name!r} is not in the image's /etc/passwd")


def _group(files: Files, rootfs: str, name: str) -> str:
    for fields in _table(files, f"{rootfs}/etc/group", 3):
        if name == fields[0] and fields[2].isdigit():
            return fields[2]
    raise UnknownUserError(f"group {name!r} is not in the image's /etc/group")


def _table(files: Files, path: str, least: int) -> list[list[str]]:
    try:
        text = files.read(path, 0, FILE_LIMIT_BYTES).decode(errors="replace")
    except HalError:  # an image without the file, or with something else in its place
        return []
    rows = [line.split(":") for line in text.splitlines()]
    return [row for row in rows if len(row) >= least]
