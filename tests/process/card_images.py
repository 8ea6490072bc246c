"""Images made by hand from the OCI image-spec (v1.1: image-layout.md, layer.md), for real cards."""

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OCI = "application/vnd.oci.image"
GOARCH = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def tar_of(files: Mapping[str, bytes | str], *, mode: int = 0o755) -> bytes:
    """A tar with these files; a str is a symbolic link's target, a name with / at its end a
    directory."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name.rstrip("/"))
            member.mode = mode
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
                tar.addfile(member)
            elif isinstance(content, str):
                member.type, member.linkname = tarfile.SYMTYPE, content
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def tree_files(root: Path) -> dict[str, bytes | str]:
    """A directory for `tar_of`; further hard links of a file become symbolic ones beside it."""
    found: dict[str, bytes | str] = {}
    first: dict[int, Path] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_dir():
            found[name + "/"] = b""
        elif first.setdefault(path.stat().st_ino, path) is path:
            found[name] = path.read_bytes()
        else:
            found[name] = first[path.stat().st_ino].name
    return found


def make_layout(root: Path, layers: Sequence[bytes], config: Mapping[str, Any]) -> list[Path]:
    """An OCI image layout; the files of its layers."""
    blobs = root / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    (root / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def put(data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    document = {
        "architecture": GOARCH,
        "os": "linux",
        "config": dict(config),
        "rootfs": {
            "type": "layers",
            "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest() for layer in layers],
        },
    }
    descriptors = [put(layer, f"{OCI}.layer.v1.tar") for layer in layers]
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": put(json.dumps(document).encode(), f"{OCI}.config.v1+json"),
        "layers": descriptors,
    }
    entry = put(json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json")
    index = {"schemaVersion": 2, "manifests": [entry]}
    (root / "index.json").write_text(json.dumps(index))
    return [blobs / item["digest"].removeprefix("sha256:") for item in descriptors]
