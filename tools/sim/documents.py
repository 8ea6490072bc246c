"""Workloads and images for simulated cards."""

import hashlib
import io
import tarfile
from typing import Any


def component(name: str = "web", **changes: Any) -> dict[str, Any]:
    """One service that runs for ever on a module's own root file system."""
    return {
        "name": name,
        "image": "host",
        "argv": [name],
        "resources": {"cpu_milli": 500, "memory_bytes": 64 << 20},
        "restart": {"policy": "always"},
        "stop_grace_ms": 1000,
        **changes,
    }


def workload(name: str = "shop", *components: dict[str, Any]) -> dict[str, Any]:
    """The normal form; one `component()` when none is given."""
    return {
        "schema": "apf-workload/1",
        "name": name,
        "components": list(components) or [component()],
    }


def volume(name: str = "data", target: str = "/data") -> dict[str, Any]:
    return {"name": name, "target": target, "read_only": False}


def layer(files: dict[str, bytes]) -> bytes:
    """An image layer: a tar of these files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def image(ref: str, *layers: bytes, cmd: tuple[str, ...] = ("app",)) -> dict[str, Any]:
    """A manifest for these layers."""
    return {
        "schema": "apf-image/1",
        "ref": ref,
        "arch": "arm64",
        "config": {"cmd": list(cmd)},
        "layers": [
            {"digest": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)} for data in layers
        ],
    }
