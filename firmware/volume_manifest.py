"""A volume's state, as its manifest says it: entries by path, file contents by digest.

Schema "apf-volume/1": a blob that the card and the modules write and both read.
"""

import json
from typing import Final

from hal.ports import BlobStore

SCHEMA: Final = "apf-volume/1"
ENTRIES_LIMIT: Final = 65_536
MANIFEST_LIMIT_BYTES: Final = 16 << 20
ID_MAX: Final = 0xFFFF_FFFE  # of a file's owner; the next one is none to chown(2)
READ_STEP: Final = 1 << 20


class VolumeError(Exception):
    """A volume's state can't be used; says which and why."""


def empty_manifest() -> bytes:
    """The manifest of a volume that holds nothing."""
    return json.dumps(
        {"schema": SCHEMA, "entries": []}, sort_keys=True, separators=(",", ":")
    ).encode()


def manifest_digests(data: bytes, name: str) -> list[bytes]:
    """The file digests that a manifest names. Raises VolumeError; peers write manifests too, and
    one with owners that no CNM would read must not become the one that counts."""
    try:
        document = json.loads(data)
        entries = document["entries"]
        if document["schema"] != SCHEMA or not isinstance(entries, list):
            raise VolumeError(f"volume {name}: not a manifest of schema {SCHEMA}")
        if len(entries) > ENTRIES_LIMIT:
            raise VolumeError(f"volume {name}: {len(entries)} entries, at most {ENTRIES_LIMIT}")
        digests = [bytes.fromhex(entry["digest"]) for entry in entries if entry["digest"]]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise VolumeError(f"volume {name}: its manifest can't be read: {exc}") from exc
    if any(len(digest) != 32 for digest in digests):
        raise VolumeError(f"volume {name}: its manifest names a digest that is not 32 bytes")
    for index, entry in enumerate(entries):
        for key in ("uid", "gid"):  # absent in manifests from before owners were kept
            number = entry.get(key, 0)
            if type(number) is not int or not 0 <= number <= ID_MAX:
                raise VolumeError(
                    f"volume {name}: entries[{index}].{key} of its manifest: wanted an integer "
                    f"0..{ID_MAX}, found {repr(number)[:60]}"
                )
    return digests


def read_manifest(blobs: BlobStore, digest: bytes, name: str) -> bytes:
    """The manifest blob of volume `name`. Raises VolumeError or HalError."""
    size = blobs.has(digest)
    if size is None:
        raise VolumeError(f"volume {name}: manifest {digest.hex()} is not in the store")
    if size > MANIFEST_LIMIT_BYTES:
        raise VolumeError(f"volume {name}: manifest of {size} B")
    return b"".join(blobs.read(digest, at, READ_STEP) for at in range(0, size, READ_STEP))
