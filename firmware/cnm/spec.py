"""The two documents that the card stages beside the image: apf-spec/1 and apf-volume/1.

Both come from the card as blobs, checked by digest; they are read strictly all the same, because
what they say ends up in mounts and command lines. Raises `FieldError` with the JSON path.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from firmware.cnm.health_spec import Healthcheck
from firmware.fields import FieldError, Fields
from hal.ports import TREE_TOP, FileInfo, InstanceLimits
from protocol.apf import VOLUME_MAX_BYTES

SPEC_SCHEMA: Final = "apf-spec/1"
VOLUME_SCHEMA: Final = "apf-volume/1"
SPEC_LIMIT_BYTES: Final = 512 * 1024
MANIFEST_LIMIT_BYTES: Final = 16 << 20
ENTRIES_LIMIT: Final = 65_536
LAYERS_LIMIT: Final = 128  # image engines stop at 127
VOLUMES_LIMIT: Final = 32
U64_MAX: Final = (1 << 64) - 1
ID_MAX: Final = 0xFFFF_FFFE  # of a user or group: the next one is chown(2)'s "leave it"
TIME_MAX_MS: Final = 86_400_000
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_DIGEST_WANT: Final = "a SHA-256 digest of 64 lower-case hex digits"
_VOLUME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_ENV_KEY: Final = re.compile(r"[^=\0]{1,256}")
_USER: Final = re.compile(r"([A-Za-z0-9_.-]{1,64}(:[A-Za-z0-9_.-]{1,64})?)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeMount:
    name: str
    target: str
    read_only: bool
    manifest: bytes | None  # None: keep what the hot tier has, or begin empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    workload: str
    component: str
    instance: str
    runtime: str
    layers: tuple[bytes, ...]
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    user: str
    hostname: str
    limits: InstanceLimits
    read_only: bool
    volumes: tuple[VolumeMount, ...]
    tmpfs: tuple[str, ...]
    healthcheck: Healthcheck | None
    stop_signal: int
    stop_grace_ms: int

    @property
    def blobs(self) -> tuple[bytes, ...]:
        """What must be here before it can be staged, each once; the files of volumes not yet."""
        manifests = [volume.manifest for volume in self.volumes if volume.manifest]
        return tuple(dict.fromkeys((*self.layers, *manifests)))


def read_spec(data: bytes) -> Spec:
    """Raises FieldError."""
    fields = Fields(_document(data, SPEC_LIMIT_BYTES))
    fields.choice("schema", (SPEC_SCHEMA,))
    spec = Spec(
        workload=fields.text("workload", max_bytes=128),
        component=fields.text("component", max_bytes=128),
        instance=fields.text("instance", max_bytes=128),
        runtime=fields.text("runtime", max_bytes=32),
        layers=tuple(
            bytes.fromhex(digest)
            for digest in fields.texts(
                "layers", max_items=LAYERS_LIMIT, pattern=_DIGEST, want=_DIGEST_WANT
            )
        ),
        argv=fields.texts("argv", max_items=1024, max_bytes=32768),
        env=fields.mapping(
            "env",
            max_items=1024,
            key_pattern=_ENV_KEY,
            key_want="a variable's name without =",
            max_bytes=32768,
        ),
        cwd=_absolute(fields, "cwd", "/"),
        user=fields.text(
            "user", "", pattern=_USER, want="a user, or user:group, by name or number"
        ),
        hostname=fields.text("hostname", "", max_bytes=64),
        limits=fields.object("limits", _limits),
        read_only=fields.boolean("read_only", default=False),
        volumes=fields.objects("volumes", _volume, max_items=VOLUMES_LIMIT),
        tmpfs=fields.texts("tmpfs", max_items=32),
        healthcheck=fields.object_or_none("healthcheck", _healthcheck),
        stop_signal=fields.integer("stop_signal", 15, low=1, high=64),
        stop_grace_ms=fields.integer("stop_grace_ms", 10_000, high=TIME_MAX_MS),
    )
    fields.done()
    if not spec.argv:
        raise fields.fail("argv", "at least the program", "nothing")
    for index, target in enumerate(spec.tmpfs):
        if not _is_absolute(target):
            raise FieldError(("tmpfs", index), "an absolute path without ..", repr(target))
    return spec


def read_manifest(data: bytes) -> Iterator[tuple[FileInfo, bytes]]:
    """The entries of a volume, read one by one: a big manifest is taken in slices over many
    turns. Raises FieldError, the first time at once when the document itself is wrong.

    One written before owners were kept has no "." and no ids: the directory is then root's, 0755,
    and so are all entries."""
    fields = Fields(_document(data, MANIFEST_LIMIT_BYTES))
    fields.choice("schema", (VOLUME_SCHEMA,))
    entries = fields.items("entries", max_items=ENTRIES_LIMIT)
    fields.done()
    return (_checked_entry(raw, index) for index, raw in enumerate(entries))


def write_manifest(entries: Sequence[tuple[FileInfo, bytes]]) -> bytes:
    """Canonical: the same tree gives the same bytes, so the same digest."""
    rows = [
        {
            "path": info.path,
            "kind": info.kind,
            "mode": info.mode,
            "size_bytes": info.size_bytes,
            "digest": digest.hex(),
            "target": info.target,
            "uid": info.uid,
            "gid": info.gid,
        }
        for info, digest in sorted(entries, key=lambda entry: entry[0].path)
    ]
    document = {"schema": VOLUME_SCHEMA, "entries": rows}
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _document(data: bytes, limit: int) -> object:
    if len(data) > limit:
        raise FieldError((), f"at most {limit} bytes", f"{len(data)}")
    try:
        document: object = json.loads(data)
    except (ValueError, RecursionError) as exc:
        raise FieldError((), "JSON", str(exc)) from exc
    return document


def _is_absolute(path: str) -> bool:
    return path.startswith("/") and ".." not in path.split("/")


def _absolute(fields: Fields, key: str, default: str | None = None) -> str:
    path = fields.text(key) if default is None else fields.text(key, default)
    if not _is_absolute(path):
        raise fields.fail(key, "an absolute path without ..", repr(path))
    return path


def _limits(fields: Fields) -> InstanceLimits:
    return InstanceLimits(
        cpu_milli=fields.integer("cpu_milli", 0, high=0xFFFF_FFFF),
        memory_bytes=fields.integer("memory_bytes", 0, high=U64_MAX),
        pids=fields.integer("pids", 0, high=1 << 22),
    )


def _volume(fields: Fields) -> VolumeMount:
    manifest = fields.text_or_none("manifest", pattern=_DIGEST, want=_DIGEST_WANT)
    return VolumeMount(
        name=fields.text(
            "name", pattern=_VOLUME, want="a volume's name", max_bytes=VOLUME_MAX_BYTES
        ),
        target=_absolute(fields, "target"),
        read_only=fields.boolean("read_only", default=False),
        manifest=None if manifest is None else bytes.fromhex(manifest),
    )


def _healthcheck(fields: Fields) -> Healthcheck | None:
    """`test` in the words of Compose: CMD, CMD-SHELL, NONE, or a plain argv."""
    test = fields.texts("test", max_items=1024, max_bytes=32768)
    check = Healthcheck(
        argv=_check_argv(fields, test),
        interval_ms=fields.integer("interval_ms", 30_000, low=1, high=TIME_MAX_MS),
        timeout_ms=fields.integer("timeout_ms", 30_000, low=1, high=TIME_MAX_MS),
        retries=fields.integer("retries", 3, low=1, high=1000),
        start_period_ms=fields.integer("start_period_ms", 0, high=TIME_MAX_MS),
    )
    return check if check.argv else None


def _check_argv(fields: Fields, test: tuple[str, ...]) -> tuple[str, ...]:
    if test[:1] == ("NONE",):
        return ()
    if test[:1] == ("CMD-SHELL",) and len(test) == 2:
        return ("/bin/sh", "-c", test[1])
    argv = test[1:] if test[:1] == ("CMD",) else test
    if not argv or argv[0] == "CMD-SHELL":
        raise fields.fail("test", "CMD and a program, CMD-SHELL and one line, or NONE", repr(test))
    return argv


def _checked_entry(raw: object, index: int) -> tuple[FileInfo, bytes]:
    fields = Fields(raw, ("entries", index))
    entry = _entry(fields)
    fields.done()
    return entry


def _entry(fields: Fields) -> tuple[FileInfo, bytes]:
    kind = fields.choice("kind", ("file", "dir", "symlink"))
    path = fields.text("path")
    if path == TREE_TOP and kind != "dir":
        raise fields.fail("kind", "dir, for the volume itself", kind)
    if path != TREE_TOP and {"", ".", ".."} & set(path.split("/")):
        raise fields.fail("path", "a relative path without . and .., or . itself", repr(path))
    info = FileInfo(
        path=path,
        kind=kind,
        mode=fields.integer("mode", high=0o7777),
        size_bytes=fields.integer("size_bytes", 0, high=U64_MAX),
        target=fields.text("target", ""),
        uid=fields.integer("uid", 0, high=ID_MAX),
        gid=fields.integer("gid", 0, high=ID_MAX),
    )
    digest = fields.text("digest", "")
    if kind == "file" and _DIGEST.fullmatch(digest) is None:
        raise fields.fail("digest", _DIGEST_WANT, repr(digest))
    return info, bytes.fromhex(digest) if kind == "file" else b""
