"""What the card tells a module about one instance: the spec blob "apf-spec/1".

Canonical JSON (sorted keys, no spaces), so that the same instance has the same digest. All that
the image says unless the workload says otherwise is settled here; the module only carries it out.
"""

import json
from typing import Any, Final

from firmware.assignments import Assignment
from firmware.image_manifest import Image
from firmware.images import ImageStore
from firmware.storage import Volumes
from firmware.workload import HOST_IMAGE, Component, RuntimeChoice
from hal.errors import Refused, Unavailable

SPEC_SCHEMA: Final = "apf-spec/1"
SPEC_LIMIT_BYTES: Final = 512 << 10


def make_spec(
    assignment: Assignment, component: Component, images: ImageStore, volumes: Volumes
) -> bytes:
    """Raises HalError (no such image; too long) and VolumeError."""
    image = None
    if component.image != HOST_IMAGE:
        image = images.resolve(component.image)
        if image is None:
            raise Unavailable(f"image {component.image} is not on this card")
    mounts = [
        {
            "name": mount.name,
            "target": mount.target,
            "read_only": mount.read_only,
            "manifest": volumes.manifest(mount.name).hex(),
        }
        for mount in component.volumes
    ]
    limits = component.resources
    health = component.healthcheck
    spec: dict[str, Any] = {
        "schema": SPEC_SCHEMA,
        "workload": assignment.workload,
        "component": assignment.component,
        "instance": assignment.instance,
        "runtime": runtime_of(component),
        "layers": [layer.digest.hex() for layer in image.layers] if image else [],
        "argv": argv_of(component, image),
        "env": env_of(assignment, component, image),
        "cwd": component.cwd or (image.config.cwd if image else "") or "/",
        "user": component.user or (image.config.user if image else ""),
        "hostname": component.hostname or "",
        "limits": {
            "cpu_milli": limits.cpu_limit_milli,
            "memory_bytes": limits.memory_limit_bytes,
            "pids": limits.pids,
        },
        "read_only": component.read_only,
        "volumes": mounts,
        "tmpfs": list(component.tmpfs),
        "healthcheck": None
        if health is None
        else {
            "test": list(health.test),
            "interval_ms": health.interval_ms,
            "timeout_ms": health.timeout_ms,
            "retries": health.retries,
            "start_period_ms": health.start_period_ms,
        },
        "stop_signal": component.stop_signal,
        "stop_grace_ms": component.stop_grace_ms,
    }
    data = json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()
    if len(data) > SPEC_LIMIT_BYTES:
        raise Refused(f"its spec has {len(data)} B, at most {SPEC_LIMIT_BYTES} are taken")
    return data


def runtime_of(component: Component) -> str:
    """The runtime's name on the CNM."""
    if component.runtime is RuntimeChoice.AUTO:
        return "process" if component.image == HOST_IMAGE else "oci"
    return component.runtime.value


def argv_of(component: Component, image: Image | None) -> list[str]:
    """Entrypoint and arguments; an entrypoint of one's own drops the image's arguments
    (image-spec config, as every engine reads it)."""
    entrypoint = list(component.entrypoint or ())
    if component.entrypoint is None and image is not None:
        entrypoint = list(image.config.entrypoint)
    if component.argv is not None:
        return entrypoint + list(component.argv)
    if component.entrypoint is None and image is not None:
        return entrypoint + list(image.config.cmd)
    return entrypoint


def env_of(assignment: Assignment, component: Component, image: Image | None) -> dict[str, str]:
    """The image's variables, the component's over them, and who the instance is."""
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    if image is not None:
        env.update(image.config.env)
    env.update(component.env)
    env["APF_WORKLOAD"] = assignment.workload
    env["APF_COMPONENT"] = assignment.component
    env["APF_INSTANCE"] = assignment.instance
    return env
