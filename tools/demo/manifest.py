"""A volume on the card, read from the blob store's files and checked by hashing them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tools.demo.errors import hold
from tools.demo.hashing import blob_path, sha256_file

SCHEMA: Final = "apf-volume/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class CardVolume:
    """`files`: path -> SHA-256; `links`: path -> target."""

    files: Mapping[str, str]
    links: Mapping[str, str]
    paths: Mapping[str, Path]  # where on the card each file's content lies


def read_volume(state: Path, manifest: str) -> CardVolume:
    """Raises StepFailed when an object is not there or is not what its name says."""
    document: Any = json.loads(_checked(state, manifest, "the manifest").read_text())
    hold(document["schema"] == SCHEMA, f"manifest schema {document['schema']}, wanted {SCHEMA}")
    files, links, paths = {}, {}, {}
    for entry in document["entries"]:
        path = str(entry["path"])
        if entry["kind"] == "file":
            paths[path] = _checked(state, str(entry["digest"]), path)
            files[path] = str(entry["digest"])
        elif entry["kind"] == "symlink":
            links[path] = str(entry["target"])
    return CardVolume(files=files, links=links, paths=paths)


def _checked(state: Path, digest: str, what: str) -> Path:
    path = blob_path(state, digest)
    hold(path.exists(), f"{what}: {digest[:12]} is not in the card's blob store ({path})")
    found = sha256_file(path)
    hold(found == digest, f"{what}: {path} has SHA-256 {found[:12]}, its name says {digest[:12]}")
    return path


def read_directory(top: Path) -> tuple[dict[str, str], dict[str, str]]:
    """(files, links) of a CNM's hot directory, hashed here."""
    files, links = {}, {}
    for path in sorted(top.rglob("*")):
        name = str(path.relative_to(top))
        if path.is_symlink():
            links[name] = str(path.readlink())
        elif path.is_file():
            files[name] = sha256_file(path)
    return files, links
