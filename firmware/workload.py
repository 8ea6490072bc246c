"""The normal form of a workload, "apf-workload/1": what a user wants to run.

`tools/` makes it from a Compose file; the daemon reads it again with `Workload.from_json`, which
refuses it whole: unknown keys, wrong types, values out of range, names used twice, dependencies
on nothing or in a circle. Absent optional keys take the defaults below; `to_json` writes them all,
but for those of `LATER`: a version from before them reads what does not use them.

Where the numbers come from: the control protocol limits an instance's name to 128 bytes
(protocol/SPEC.md), so a name is at most 41 characters; the rest are bounds that no sane workload
meets (DESIGN section 5: every table has one).
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final, Self

from firmware.fields import FieldError, Fields

SCHEMA: Final = "apf-workload/1"
NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,40}")
NAME_WANT: Final = "a name like [a-z0-9][a-z0-9_.-]{0,40}"
MAX_COMPONENTS: Final = 256
MAX_REPLICAS: Final = 1024
MAX_INSTANCES: Final = 4096  # of one workload: the card's own aim (DESIGN section 6)
MAX_ENV: Final = 256
MAX_ARGS: Final = 1024
MAX_STRING_BYTES: Final = 32 * 1024
MAX_JSON_BYTES: Final = 1 << 20  # of one workload; the control socket refuses more
MAX_CPU_MILLI: Final = 1_024_000
MAX_BYTES: Final = 1 << 50
MAX_MBIT: Final = 10_000_000
MAX_WINDOW_SLOTS: Final = 4096
MAX_MS: Final = 86_400_000
PRIORITY_USUAL: Final = 50
PRIORITY_MOST: Final = 100
LATER: Final = {"priority": PRIORITY_USUAL, "tenant": ""}  # keys that are left out where usual
HOST_IMAGE: Final = "host"  # the CNM's own root filesystem, under the process runtime

_ENV_KEY: Final = re.compile(r"[^=\0]{1,256}")
LABEL_KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,62}")
_IMAGE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,254}")
_ABSOLUTE: Final = re.compile(r"/(?:[^/\0]+/?)*")
_USER: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,31})?")
_HOSTNAME: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62})")
_ARCHES: Final = {  # what uname, Debian and Compose say -> the OCI name (image-spec, GOARCH)
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armhf": "arm",
    "i386": "386",
    "i686": "386",
}


class WorkloadError(FieldError):
    """A workload is refused; nothing was changed."""


def canonical_arch(word: str) -> str:
    """The OCI name of a processor architecture: x86_64 is amd64. Unknown words stay."""
    return _ARCHES.get(word.lower(), word.lower())


class RuntimeChoice(StrEnum):
    AUTO = "auto"  # oci, or process for the image `host`
    OCI = "oci"
    PROCESS = "process"


class ProfileChoice(StrEnum):
    """What measured use may do to a reservation (`firmware.profile_needs`)."""

    AUTO = "auto"  # raise it
    ON = "on"  # raise it, and lower it below what is asked for
    OFF = "off"  # nothing, and none is measured


class Condition(StrEnum):
    """When a dependency counts as met."""

    STARTED = "started"
    HEALTHY = "healthy"
    COMPLETED = "completed"  # ended with status 0


class RestartPolicy(StrEnum):
    NO = "no"
    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    UNLESS_STOPPED = "unless-stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """`count` devices of a kind, or as many shares of `milli` thousandths of one."""

    kind: str
    model: str | None = None
    count: int = 1
    milli: int = 1000  # 1000 is a whole device


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one instance needs; limits of 0 are none."""

    cpu_milli: int = 0
    cpu_limit_milli: int = 0
    memory_bytes: int = 0
    memory_limit_bytes: int = 0
    nvme_bytes: int = 0
    nvme_mbit: int = 0  # of reads and writes together
    link_mbit: int = 0
    window_slots: int = 0  # chunks that its data may have under way at once
    pids: int = 0  # limit
    arch: str | None = None  # OCI name; None is any that the image has
    accelerators: tuple[Accelerator, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    labels: Mapping[str, str]  # a CNM must carry all of them
    spread: bool = False  # prefer CNMs that hold fewer instances of this component
    together: tuple[str, ...] = ()  # components to be put on the same CNM
    max_per_cnm: int = 0  # 0 is no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeMount:
    name: str
    target: str
    read_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependency:
    component: str
    condition: Condition = Condition.STARTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    policy: RestartPolicy = RestartPolicy.NO
    max_attempts: int = 0  # 0 is no limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthcheck:
    test: tuple[str, ...]  # a plain argv, run inside the instance; status 0 is healthy
    interval_ms: int = 30_000
    timeout_ms: int = 30_000
    retries: int = 3
    start_period_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """One service of a workload."""

    name: str
    image: str
    runtime: RuntimeChoice
    entrypoint: tuple[str, ...] | None  # None: the image's
    argv: tuple[str, ...] | None  # arguments after the entrypoint; None: the image's
    env: Mapping[str, str]
    cwd: str | None
    user: str | None
    hostname: str | None
    resources: Resources
    replicas: int
    placement: Placement
    volumes: tuple[VolumeMount, ...]
    tmpfs: tuple[str, ...]
    depends_on: tuple[Dependency, ...]
    restart: Restart
    healthcheck: Healthcheck | None
    stop_signal: int
    stop_grace_ms: int
    read_only: bool
    profile: ProfileChoice = ProfileChoice.AUTO
    priority: int = PRIORITY_USUAL  # 0..PRIORITY_MOST: more gets room first


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    name: str
    components: tuple[Component, ...]
    tenant: str = ""  # whose share of the card it counts for, where tenants share it

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read a parsed JSON document. Raises WorkloadError with the path of the wrong key."""
        fields = Fields(value, (), WorkloadError)
        fields.choice("schema", (SCHEMA,))
        name = fields.text("name", pattern=NAME, want=NAME_WANT)
        components = fields.objects("components", _component, max_items=MAX_COMPONENTS)
        tenant = _tenant(fields)
        fields.done()
        if not components:
            raise WorkloadError(("components",), "at least one component", "none")
        _check_names(components)
        _check_dependencies(components)
        found = cls(name=name, components=components, tenant=tenant)
        if found.instances > MAX_INSTANCES:
            want = f"at most {MAX_INSTANCES} instances"
            raise WorkloadError(("components",), want, f"{found.instances}")
        return found

    def to_json(self) -> dict[str, Any]:
        """The canonical document: every key but the usual ones of `LATER`, in a fixed order;
        `from_json` reads it back."""
        document: dict[str, Any] = json.loads(json.dumps({"schema": SCHEMA, **asdict(self)}))
        for table in (document, *document["components"]):  # lists and strings, no tuples and enums
            for key, usual in LATER.items():
                if table.get(key) == usual:
                    del table[key]
        return document

    def to_bytes(self) -> bytes:
        """Canonical bytes: sorted keys, no spaces. Equal workloads give equal bytes."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":")).encode()

    @property
    def instances(self) -> int:
        """Of all components together."""
        return sum(component.replicas for component in self.components)

    def component(self, name: str) -> Component | None:
        return next((item for item in self.components if item.name == name), None)


def instance_name(workload: str, component: str, index: int) -> str:
    """`shop/db/0`; at most 88 bytes."""
    return f"{workload}/{component}/{index}"


def _component(fields: Fields) -> Component:
    return Component(
        name=fields.text("name", pattern=NAME, want=NAME_WANT),
        image=fields.text("image", pattern=_IMAGE, want="an image reference"),
        runtime=RuntimeChoice(fields.choice("runtime", list(RuntimeChoice), "auto")),
        entrypoint=fields.texts_or_none(
            "entrypoint", max_items=MAX_ARGS, max_bytes=MAX_STRING_BYTES
        ),
        argv=fields.texts_or_none("argv", max_items=MAX_ARGS, max_bytes=MAX_STRING_BYTES),
        env=fields.mapping(
            "env",
            max_items=MAX_ENV,
            key_pattern=_ENV_KEY,
            key_want="a variable name of 1..256 characters without '='",
            max_bytes=MAX_STRING_BYTES,
        ),
        cwd=_absolute_or_none(fields, "cwd"),
        user=fields.text_or_none("user", pattern=_USER, want="a user, or user:group"),
        hostname=fields.text_or_none("hostname", pattern=_HOSTNAME, want="a host name"),
        resources=fields.object("resources", _resources),
        replicas=fields.integer("replicas", 1, high=MAX_REPLICAS),
        placement=fields.object("placement", _placement),
        volumes=fields.objects("volumes", _volume, max_items=64),
        tmpfs=fields.texts("tmpfs", max_items=64, pattern=_ABSOLUTE, want="an absolute path"),
        depends_on=fields.objects("depends_on", _dependency, max_items=MAX_COMPONENTS),
        restart=fields.object("restart", _restart),
        healthcheck=fields.object_or_none("healthcheck", _healthcheck),
        stop_signal=fields.integer("stop_signal", 15, low=1, high=64),
        stop_grace_ms=fields.integer("stop_grace_ms", 10_000, high=3_600_000),
        read_only=fields.boolean("read_only", False),
        profile=ProfileChoice(fields.choice("profile", list(ProfileChoice), "auto")),
        priority=fields.integer("priority", PRIORITY_USUAL, high=PRIORITY_MOST),
    )


def _tenant(fields: Fields) -> str:
    """ "" is the tenant without a name: whoever says none."""
    name = fields.text("tenant", "", max_bytes=64)
    if name and NAME.fullmatch(name) is None:
        raise fields.fail("tenant", NAME_WANT, repr(name[:60]))
    return name


def _absolute_or_none(fields: Fields, key: str) -> str | None:
    return fields.text_or_none(key, pattern=_ABSOLUTE, want="an absolute path")


def _resources(fields: Fields) -> Resources:
    arch = fields.text_or_none("arch", pattern=NAME, want="an architecture such as arm64")
    found = Resources(
        cpu_milli=fields.integer("cpu_milli", 0, high=MAX_CPU_MILLI),
        cpu_limit_milli=fields.integer("cpu_limit_milli", 0, high=MAX_CPU_MILLI),
        memory_bytes=fields.integer("memory_bytes", 0, high=MAX_BYTES),
        memory_limit_bytes=fields.integer("memory_limit_bytes", 0, high=MAX_BYTES),
        nvme_bytes=fields.integer("nvme_bytes", 0, high=MAX_BYTES),
        nvme_mbit=fields.integer("nvme_mbit", 0, high=MAX_MBIT),
        link_mbit=fields.integer("link_mbit", 0, high=MAX_MBIT),
        window_slots=fields.integer("window_slots", 0, high=MAX_WINDOW_SLOTS),
        pids=fields.integer("pids", 0, high=4_194_304),  # the kernel's PID_MAX_LIMIT
        arch=None if arch is None else canonical_arch(arch),
        accelerators=fields.objects("accelerators", _accelerator, max_items=16),
    )
    for need, limit in (("cpu_milli", "cpu_limit_milli"), ("memory_bytes", "memory_limit_bytes")):
        most = getattr(found, limit)
        if most and getattr(found, need) > most:
            got = f"{need} {getattr(found, need)} above {limit} {most}"
            raise fields.fail(need, "a reservation within its limit", got)
    return found


def _accelerator(fields: Fields) -> Accelerator:
    return Accelerator(
        kind=fields.text("kind", pattern=NAME, want=NAME_WANT),
        model=fields.text_or_none("model", pattern=NAME, want=NAME_WANT),
        count=fields.integer("count", 1, low=1, high=64),
        milli=fields.integer("milli", 1000, low=1, high=1000),
    )


def _placement(fields: Fields) -> Placement:
    return Placement(
        labels=fields.mapping(
            "labels",
            max_items=64,
            key_pattern=LABEL_KEY,
            key_want="a label key",
            max_bytes=128,
        ),
        spread=fields.boolean("spread", False),
        together=fields.texts("together", max_items=64, pattern=NAME, want=NAME_WANT),
        max_per_cnm=fields.integer("max_per_cnm", 0, high=MAX_REPLICAS),
    )


def _volume(fields: Fields) -> VolumeMount:
    return VolumeMount(
        name=fields.text("name", pattern=NAME, want=NAME_WANT),
        target=fields.text("target", pattern=_ABSOLUTE, want="an absolute path"),
        read_only=fields.boolean("read_only", False),
    )


def _dependency(fields: Fields) -> Dependency:
    return Dependency(
        component=fields.text("component", pattern=NAME, want=NAME_WANT),
        condition=Condition(fields.choice("condition", list(Condition), "started")),
    )


def _restart(fields: Fields) -> Restart:
    return Restart(
        policy=RestartPolicy(fields.choice("policy", list(RestartPolicy), "no")),
        max_attempts=fields.integer("max_attempts", 0, high=1_000_000),
    )


def _healthcheck(fields: Fields) -> Healthcheck:
    test = fields.texts("test", max_items=MAX_ARGS, max_bytes=MAX_STRING_BYTES)
    if not test:
        raise fields.fail("test", "a program and its arguments", "an empty list")
    return Healthcheck(
        test=test,
        interval_ms=fields.integer("interval_ms", 30_000, low=1, high=MAX_MS),
        timeout_ms=fields.integer("timeout_ms", 30_000, low=1, high=MAX_MS),
        retries=fields.integer("retries", 3, low=1, high=1000),
        start_period_ms=fields.integer("start_period_ms", 0, high=MAX_MS),
    )


def _check_names(components: Sequence[Component]) -> None:
    seen: set[str] = set()
    for index, component in enumerate(components):
        path = ("components", index)
        if component.name in seen:
            got = f"{component.name!r} a second time"
            raise WorkloadError((*path, "name"), "component names used once", got)
        seen.add(component.name)
        targets: set[str] = set()
        for target in [mount.target for mount in component.volumes] + list(component.tmpfs):
            if ".." in target.split("/") or target.strip("/") == "":
                raise WorkloadError((*path, "volumes"), "a path below / without '..'", repr(target))
            if target.rstrip("/") in targets:
                raise WorkloadError((*path, "volumes"), "one mount for each path", repr(target))
            targets.add(target.rstrip("/"))


def _check_dependencies(components: Sequence[Component]) -> None:
    by_name = {component.name: component for component in components}
    for index, component in enumerate(components):
        path = ("components", index, "depends_on")
        asked: set[str] = set()
        for place, dependency in enumerate(component.depends_on):
            other = by_name.get(dependency.component)
            where = (*path, place, "component")
            if other is None:
                raise WorkloadError(where, "a component of this workload", dependency.component)
            if dependency.component in asked:
                raise WorkloadError(where, "each dependency once", dependency.component)
            asked.add(dependency.component)
            if dependency.condition is Condition.HEALTHY and other.healthcheck is None:
                want = f"a healthcheck of {other.name!r}, or another condition"
                raise WorkloadError(
                    (*path, place, "condition"), want, "healthy, and no healthcheck"
                )
        for place, name in enumerate(component.placement.together):
            if name not in by_name or name == component.name:
                raise WorkloadError(
                    ("components", index, "placement", "together", place),
                    "another component of this workload",
                    repr(name),
                )
    cycle = _cycle({c.name: [d.component for d in c.depends_on] for c in components})
    if cycle:
        text = " -> ".join(cycle)
        raise WorkloadError(("components",), "dependencies without a circle", text)


def _cycle(edges: Mapping[str, Sequence[str]]) -> list[str]:
    """One circle as a list that begins and ends with the same name; empty when there is none."""
    finished: set[str] = set()
    for start in edges:
        trail: list[str] = []
        stack: list[tuple[str, int]] = [(start, 0)]
        while stack:
            name, position = stack.pop()
            if position == 0:
                if name in finished:
                    continue
                if name in trail:
                    return [*trail[trail.index(name) :], name]
                trail.append(name)
            if position < len(edges[name]):
                stack.append((name, position + 1))
                stack.append((edges[name][position], 0))
            else:
                finished.add(name)
                trail.pop()
    return []
