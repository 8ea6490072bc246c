"""A directory that is made to look like a disk after a power cut."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tools.sim.crash.disk import Image

MEMORY: Final = Path("/dev/shm")  # noqa: S108 - tens of thousands of images, none worth a disk


@contextmanager
def scratch_dir() -> Iterator[str]:
    """In memory where the system has such a place, else where temporary files go; gone after."""
    place = MEMORY if os.access(MEMORY, os.W_OK) else None
    name = tempfile.mkdtemp(prefix="apf-crash-", dir=place)
    try:
        yield os.path.realpath(name)
    finally:
        shutil.rmtree(name)


def lay_out(root: str, image: Image) -> None:
    """Make `root` hold exactly the image."""
    for folder, folders, files in os.walk(root, topdown=False):
        for name in files:
            path = f"{folder}/{name}"
            if image.get(path[len(root) + 1 :]) is None:
                os.unlink(path)
        for name in folders:
            path = f"{folder}/{name}"
            if path[len(root) + 1 :] not in image:
                os.rmdir(path)
    for name, content in image.items():  # a directory comes before what is in it
        path = f"{root}/{name}"
        if content is None:
            if not os.path.isdir(path):
                os.mkdir(path, 0o700)
            continue
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, content, 0)
            os.ftruncate(fd, len(content))
        finally:
            os.close(fd)
