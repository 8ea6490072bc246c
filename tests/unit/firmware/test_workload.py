"""The normal form: what is read back is what was written, what is wrong is refused by its path."""

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firmware.workload import (
    MAX_COMPONENTS,
    MAX_INSTANCES,
    SCHEMA,
    Condition,
    ProfileChoice,
    RestartPolicy,
    RuntimeChoice,
    Workload,
    WorkloadError,
    canonical_arch,
    instance_name,
)

SMALL = {"schema": SCHEMA, "name": "shop", "components": [{"name": "web", "image": "nginx:1"}]}
FULL_COMPONENT = {
    "name": "web",
    "image": "registry.local:5000/nginx@sha256:00",
    "runtime": "oci",
    "entrypoint": ["/bin/sh"],
    "argv": [],
    "env": {"A": "1", "EMPTY": ""},
    "cwd": "/srv",
    "user": "10:20",
    "hostname": "web",
    "resources": {
        "cpu_milli": 500,
        "cpu_limit_milli": 1000,
        "memory_bytes": 1,
        "memory_limit_bytes": 0,
        "nvme_bytes": 2,
        "nvme_mbit": 5,
        "link_mbit": 3,
        "window_slots": 6,
        "pids": 4,
        "arch": "arm64",
        "accelerators": [{"kind": "gpu", "model": "sim-t4", "count": 2, "milli": 500}],
    },
    "replicas": 3,
    "placement": {"labels": {"zone": "a"}, "spread": True, "together": ["db"], "max_per_cnm": 1},
    "volumes": [{"name": "data", "target": "/data", "read_only": True}],
    "tmpfs": ["/run"],
    "depends_on": [{"component": "db", "condition": "healthy"}],
    "restart": {"policy": "on-failure", "max_attempts": 3},
    "healthcheck": {
        "test": ["true"],
        "interval_ms": 1,
        "timeout_ms": 2,
        "retries": 3,
        "start_period_ms": 4,
    },
    "stop_signal": 2,
    "stop_grace_ms": 0,
    "read_only": True,
    "profile": "on",
}
FULL = {
    "schema": SCHEMA,
    "name": "shop",
    "components": [
        FULL_COMPONENT,
        {**copy.deepcopy(FULL_COMPONENT), "name": "db", "depends_on": [], "placement": {}},
    ],
}


def changed(path, value, document=FULL):
    document = copy.deepcopy(document)
    target = document
    for part in path[:-1]:
        target = target[part]
    target[path[-1]] = value
    return document


def test_absent_keys_take_their_defaults():
    component = Workload.from_json(SMALL).components[0]
    assert component.runtime is RuntimeChoice.AUTO
    assert component.restart.policy is RestartPolicy.NO
    assert component.entrypoint is None
    assert component.argv is None
    assert component.replicas == 1
    assert component.stop_signal == 15
    assert component.healthcheck is None
    assert component.profile is ProfileChoice.AUTO  # as in every document before the key was known


def test_the_canonical_document_is_the_contracts():
    document = Workload.from_json(FULL).to_json()
    assert document["components"][0] == FULL_COMPONENT
    assert list(document) == ["schema", "name", "components"]


def test_what_is_written_is_read_back_and_writes_the_same_bytes():
    workload = Workload.from_json(FULL)
    again = Workload.from_json(json.loads(workload.to_bytes()))
    assert again == workload
    assert again.to_bytes() == workload.to_bytes()


def test_a_dependency_keeps_its_condition():
    web = Workload.from_json(FULL).component("web")
    assert web is not None
    assert web.depends_on[0].condition is Condition.HEALTHY
    assert Workload.from_json(FULL).component("nothing") is None


def test_the_longest_instance_name_fits_the_protocols_128_bytes():
    assert len(instance_name("w" * 41, "c" * 41, MAX_INSTANCES).encode()) <= 128


def test_architectures_have_one_name():
    assert canonical_arch("x86_64") == "amd64"
    assert canonical_arch("AARCH64") == "arm64"
    assert canonical_arch("riscv64") == "riscv64"
    found = Workload.from_json(changed(("components", 0, "resources", "arch"), "aarch64"))
    assert found.components[0].resources.arch == "arm64"


C0 = ("components", 0)
BAD = {
    "no schema": ({"name": "a", "components": []}, "schema"),
    "another schema": (changed(("schema",), "apf-workload/2"), "schema"),
    "a bad name": (changed(("name",), "Shop"), "name"),
    "a profile of another word": (
        changed(("components", 0, "profile"), "yes"),
        "components[0].profile",
    ),
    "a long name": (changed(("name",), "a" * 42), "name"),
    "no components": (changed(("components",), []), "components"),
    "components of the wrong type": (changed(("components",), {}), "components"),
    "an unknown key": (changed((*C0, "imagee"), "x"), "components[0].imagee"),
    "an unknown key deep inside": (
        changed((*C0, "resources", "cpus"), 1),
        "components[0].resources.cpus",
    ),
    "a number as a string": (changed((*C0, "replicas"), "3"), "components[0].replicas"),
    "a bool as a number": (changed((*C0, "replicas"), True), "components[0].replicas"),
    "a fraction": (changed((*C0, "replicas"), 1.0), "components[0].replicas"),
    "too many replicas": (changed((*C0, "replicas"), 1025), "components[0].replicas"),
    "too many instances": (
        changed(
            ("components",),
            [{"name": f"c{n}", "image": "x", "replicas": 1024} for n in range(5)],
        ),
        "components",
    ),
    "too many components": (
        changed(
            ("components",),
            [{"name": f"c{n}", "image": "x"} for n in range(MAX_COMPONENTS + 1)],
        ),
        "components",
    ),
    "negative memory": (
        changed((*C0, "resources", "memory_bytes"), -1),
        "components[0].resources.memory_bytes",
    ),
    "absurd memory": (
        changed((*C0, "resources", "memory_bytes"), 1 << 60),
        "components[0].resources.memory_bytes",
    ),
    "a reservation above its limit": (
        changed((*C0, "resources", "cpu_milli"), 1001),
        "components[0].resources.cpu_milli",
    ),
    "an accelerator of no kind": (
        changed((*C0, "resources", "accelerators", 0, "kind"), ""),
        "components[0].resources.accelerators[0].kind",
    ),
    "an empty image": (changed((*C0, "image"), ""), "components[0].image"),
    "an image with a space": (changed((*C0, "image"), "a b"), "components[0].image"),
    "a NUL in an argument": (changed((*C0, "argv"), ["a\0b"]), "components[0].argv[0]"),
    "half a character": (changed((*C0, "argv"), ["\ud800"]), "components[0].argv[0]"),
    "half a character in a name of env": (
        changed((*C0, "env"), {"A\ud800": "1"}),
        "components[0].env.A?",  # it can be said
    ),
    "a number in env": (changed((*C0, "env"), {"A": 1}), "components[0].env.A"),
    "an env name with =": (changed((*C0, "env"), {"A=B": "1"}), "components[0].env.A=B"),
    "too much env": (
        changed((*C0, "env"), {f"A{n}": "" for n in range(257)}),
        "components[0].env",
    ),
    "a relative cwd": (changed((*C0, "cwd"), "srv"), "components[0].cwd"),
    "a relative target": (
        changed((*C0, "volumes", 0, "target"), "data"),
        "components[0].volumes[0].target",
    ),
    "a target that climbs": (
        changed((*C0, "volumes", 0, "target"), "/data/../etc"),
        "components[0].volumes",
    ),
    "one path mounted twice": (changed((*C0, "tmpfs"), ["/data"]), "components[0].volumes"),
    "the root as a mount": (changed((*C0, "tmpfs"), ["/"]), "components[0].volumes"),
    "the same component twice": (
        changed(("components", 1, "name"), "web"),
        "components[1].name",
    ),
    "a dependency on nothing": (
        changed((*C0, "depends_on", 0, "component"), "dbb"),
        "components[0].depends_on[0].component",
    ),
    "the same dependency twice": (
        changed((*C0, "depends_on"), [{"component": "db"}, {"component": "db"}]),
        "components[0].depends_on[1].component",
    ),
    "a dependency on itself": (
        changed((*C0, "depends_on", 0, "component"), "web"),
        "components",
    ),
    "a circle": (
        changed(("components", 1, "depends_on"), [{"component": "web"}]),
        "components",
    ),
    "waiting for a health that nobody checks": (
        changed(("components", 1, "healthcheck"), None),
        "components[0].depends_on[0].condition",
    ),
    "together with nothing": (
        changed((*C0, "placement", "together"), ["x"]),
        "components[0].placement.together[0]",
    ),
    "together with itself": (
        changed((*C0, "placement", "together"), ["web"]),
        "components[0].placement.together[0]",
    ),
    "an empty healthcheck": (
        changed((*C0, "healthcheck", "test"), []),
        "components[0].healthcheck.test",
    ),
    "signal 0": (changed((*C0, "stop_signal"), 0), "components[0].stop_signal"),
    "an unknown policy": (
        changed((*C0, "restart", "policy"), "sometimes"),
        "components[0].restart.policy",
    ),
    "a list": ([], "(document)"),
    "nothing": (None, "(document)"),
}


@pytest.mark.parametrize(("document", "path"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_with_its_path(document, path):
    with pytest.raises(WorkloadError) as refused:
        Workload.from_json(document)
    assert str(refused.value).startswith(f"{path}: wanted ")
    assert refused.value.want
    assert refused.value.got


def test_a_circle_is_spelt_out():
    document = changed(("components", 1, "depends_on"), [{"component": "web"}])
    with pytest.raises(WorkloadError, match=r"web -> db -> web"):
        Workload.from_json(document)


def test_a_near_miss_is_named():
    with pytest.raises(WorkloadError, match="only 'imagee'"):
        Workload.from_json(
            {"schema": SCHEMA, "name": "a", "components": [{"name": "a", "imagee": "x"}]}
        )


def test_an_evidence_text_is_short():
    with pytest.raises(WorkloadError) as refused:
        Workload.from_json(changed(("name",), "x" * 100_000))
    assert len(str(refused.value)) < 300


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
PATHS = st.sampled_from(
    [("name",), ("components",), C0, *[(*C0, key) for key in FULL_COMPONENT]]
    + [(*C0, "resources", key) for key in FULL_COMPONENT["resources"]]
    + [(*C0, "healthcheck", key) for key in FULL_COMPONENT["healthcheck"]]
)


@given(PATHS, JSON_VALUES)
def test_any_value_anywhere_is_read_or_refused(path, value):
    document = changed(path, value)
    try:
        workload = Workload.from_json(document)
    except WorkloadError:
        return
    assert Workload.from_json(workload.to_json()) == workload


@given(st.integers(2, 40), st.data())
def test_dependencies_in_one_direction_are_good_and_one_back_edge_is_not(count, data):
    names = [f"c{number}" for number in range(count)]
    components = [
        {
            "name": name,
            "image": "x",
            "depends_on": [
                {"component": other}
                for other in data.draw(st.lists(st.sampled_from(names[:place]), unique=True))
            ]
            if place
            else [],
        }
        for place, name in enumerate(names)
    ]
    document = {"schema": SCHEMA, "name": "a", "components": components}
    Workload.from_json(document)
    components[-1]["depends_on"] = [{"component": names[0]}]
    components[0]["depends_on"] = [{"component": names[-1]}]
    with pytest.raises(WorkloadError, match="circle"):
        Workload.from_json(document)


# --- priority and tenant ---


def test_a_workload_without_priority_and_tenant_has_the_bytes_of_before_them():
    workload = Workload.from_json(SMALL)
    assert (workload.tenant, workload.components[0].priority) == ("", 50)
    assert b"priority" not in workload.to_bytes()
    assert b"tenant" not in workload.to_bytes()
    said = copy.deepcopy(SMALL) | {"tenant": ""}
    said["components"][0]["priority"] = 50
    assert Workload.from_json(said) == workload
    assert Workload.from_json(said).to_bytes() == workload.to_bytes()


@given(st.integers(0, 100), st.sampled_from(["", "acme", "a.b-c_9"]))
def test_priority_and_tenant_come_back_as_they_were(priority, tenant):
    document = copy.deepcopy(SMALL) | {"tenant": tenant}
    document["components"][0]["priority"] = priority
    workload = Workload.from_json(document)
    assert (workload.tenant, workload.components[0].priority) == (tenant, priority)
    assert Workload.from_json(workload.to_json()) == workload


@pytest.mark.parametrize("priority", [-1, 101, 50.0, "50", None, True])
def test_a_priority_that_is_none_is_refused(priority):
    document = copy.deepcopy(SMALL)
    document["components"][0]["priority"] = priority
    with pytest.raises(WorkloadError) as refused:
        Workload.from_json(document)
    assert refused.value.path == ("components", 0, "priority")


@pytest.mark.parametrize("tenant", ["Acme", "a/b", " ", "a" * 42, None, 3])
def test_a_tenant_that_is_no_name_is_refused(tenant):
    with pytest.raises(WorkloadError) as refused:
        Workload.from_json(SMALL | {"tenant": tenant})
    assert refused.value.path == ("tenant",)
