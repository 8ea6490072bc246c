"""SHA-256 of what lies on disk, computed here and nowhere else."""

import hashlib
from pathlib import Path


def sha256_file(path: Path) -> str:
    """Hex digits. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def blob_path(state: Path, digest: str) -> Path:
    """Where a blob store below a state directory keeps an object."""
    return state / "blobs" / "sha256" / digest[:2] / digest


def partial_path(state: Path, digest: str) -> Path:
    """Where the object lies while it comes."""
    return state / "blobs" / "partial" / digest
