"""What a CNM's init is told at power-on: who it is, what it is made of, and its timing.

The card's side writes it (`CnmConfig.to_json`), the keeper passes it on unread, and init reads it
strictly (`from_json`): a wrong description is refused whole with the place of the fault.

`mc` and `agent` are the spec strings of the two control links as the CNM reaches them (DESIGN D7);
`cgroup` is the module's own v2 cgroup, relative to the mount, "" where it has none. `window` is the
spec string of the window as the CNM reaches it, "" where its keeper hands it over.
"""

import json
import re
from dataclasses import dataclass
from typing import Final

from firmware.board_types import BoardAccelerator, Module
from firmware.fields import FieldError, Fields
from firmware.link_dialect import ADAPTS, dialect_of
from protocol.apf import ACCELERATORS_MAX, LABELS_MAX, RUNTIMES_MAX

SCHEMA: Final = "apf-cnm/1"
CONFIG_LIMIT_BYTES: Final = 64 * 1024
_ID: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,40}")
_ANY_KEY: Final = re.compile(r".{1,64}", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class CnmTiming:
    """P, S and their company (DESIGN section 4)."""

    heartbeat_ms: int = 100
    telemetry_ms: int = 1000
    stop_ms: int = 500  # S: from the lease's end until the last instance is dead
    clock_rate_ppm: int = 1000
    shutdown_ms: int = 5000  # at most, for instances when the CNM is told to go down


@dataclass(frozen=True, slots=True, kw_only=True)
class CnmConfig:
    id: str
    slot: int
    vendor_id: int
    state_dir: str  # absolute: blobs, images, volumes, instances, logs
    run_dir: str  # absolute: bundles, the runtime's root
    cgroup: str
    mc: str
    agent: str
    module: Module
    timing: CnmTiming = CnmTiming()
    window: str = ""

    @classmethod
    def from_json(cls, data: bytes) -> "CnmConfig":
        """Raises FieldError."""
        if len(data) > CONFIG_LIMIT_BYTES:
            raise FieldError((), f"at most {CONFIG_LIMIT_BYTES} bytes", f"{len(data)}")
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise FieldError((), "JSON", f"{exc}") from exc
        fields = Fields(raw)
        fields.choice("schema", (SCHEMA,))
        config = cls(
            id=fields.text("id", pattern=_ID, want="an id like cnm0"),
            slot=fields.integer("slot", high=65535),
            vendor_id=fields.integer("vendor_id", low=1, high=0xFFFF),
            state_dir=_directory(fields, "state_dir"),
            run_dir=_directory(fields, "run_dir"),
            cgroup=fields.text("cgroup", ""),
            mc=fields.text("mc", max_bytes=512),
            agent=fields.text("agent", max_bytes=512),
            module=fields.object("module", _module),
            timing=fields.object("timing", _timing),
            window=fields.text("window", "", max_bytes=512),
        )
        fields.done()
        return config

    def to_json(self) -> bytes:
        """What `from_json` reads back."""
        module = self.module
        return json.dumps(
            {
                "schema": SCHEMA,
                "id": self.id,
                "slot": self.slot,
                "vendor_id": self.vendor_id,
                "state_dir": self.state_dir,
                "run_dir": self.run_dir,
                "cgroup": self.cgroup,
                "mc": self.mc,
                "agent": self.agent,
                "window": self.window,
                "module": {
                    "arch": module.arch,
                    "cores_milli": module.cores_milli,
                    "memory_bytes": module.memory_bytes,
                    "nvme_bytes": module.nvme_bytes,
                    "link_mbit": module.link_mbit,
                    "runtimes": list(module.runtimes),
                    "labels": dict(module.labels),
                    "accelerators": [
                        {"kind": a.kind, "model": a.model, "count": a.count, "scope": a.scope}
                        for a in module.accelerators
                    ],
                    "dialect": module.dialect.value if module.dialect else ADAPTS,
                },
                "timing": {
                    name: getattr(self.timing, name) for name in CnmTiming.__dataclass_fields__
                },
            },
            sort_keys=True,
        ).encode()


def _directory(fields: Fields, key: str) -> str:
    text = fields.text(key)
    path = text.rstrip("/")
    if not path.startswith("/") or "/../" in f"{path}/":
        raise fields.fail(key, "an absolute path below /, without ..", repr(text))
    return path


def _module(fields: Fields) -> Module:
    return Module(
        arch=fields.text("arch", max_bytes=32),
        cores_milli=fields.integer("cores_milli", high=0xFFFF_FFFF),
        memory_bytes=fields.integer("memory_bytes", high=(1 << 64) - 1),
        nvme_bytes=fields.integer("nvme_bytes", high=(1 << 64) - 1),
        link_mbit=fields.integer("link_mbit", high=0xFFFF_FFFF),
        runtimes=fields.texts("runtimes", max_items=RUNTIMES_MAX, max_bytes=32),
        labels=fields.mapping(
            "labels",
            max_items=LABELS_MAX,
            key_pattern=_ANY_KEY,
            key_want="a key of at most 64 characters",
            max_bytes=64,
        ),
        accelerators=fields.objects("accelerators", _accelerator, max_items=ACCELERATORS_MAX),
        dialect=dialect_of(fields),
    )


def _accelerator(fields: Fields) -> BoardAccelerator:
    return BoardAccelerator(
        kind=fields.text("kind", max_bytes=32),
        model=fields.text("model", max_bytes=64),
        count=fields.integer("count", high=0xFFFF),
        scope=fields.choice("scope", ("local", "fabric")),
    )


def _timing(fields: Fields) -> CnmTiming:
    usual = CnmTiming()
    return CnmTiming(
        heartbeat_ms=fields.integer("heartbeat_ms", usual.heartbeat_ms, low=10, high=10_000),
        telemetry_ms=fields.integer("telemetry_ms", usual.telemetry_ms, low=50, high=60_000),
        stop_ms=fields.integer("stop_ms", usual.stop_ms, low=10, high=60_000),
        clock_rate_ppm=fields.integer("clock_rate_ppm", usual.clock_rate_ppm, high=100_000),
        shutdown_ms=fields.integer("shutdown_ms", usual.shutdown_ms, high=60_000),
    )
