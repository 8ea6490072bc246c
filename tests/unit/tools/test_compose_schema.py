"""The Compose Specification's own schema is the outside judge of the parser.

What the schema refuses, we refuse; what we accept, the schema accepts. Both read the same text, by
different YAML readers.
"""

import io
import json
import os
from pathlib import Path

import jsonschema
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from tools.compose import ComposeError, load_compose

SHARED = Path(os.environ.get("APF_SHARED", Path(__file__).parents[4] / "shared")) / "compose"
SCHEMA_FILE = SHARED / "compose-spec.schema.json"
FILES = sorted(path.name for path in SHARED.glob("*.yaml"))
REFUSED = {"plex.yaml": (10, "services.plex.volumes[0]", "empty section between colons")}

pytestmark = pytest.mark.skipif(not SCHEMA_FILE.is_file(), reason="APF_SHARED is absent")


@pytest.fixture(scope="module")
def judge():
    schema = json.loads(SCHEMA_FILE.read_text())
    schema.pop("$id")  # it names no place to fetch anything from
    schema["$schema"] = "http://json-schema.org/draft-07/schema#"
    return jsonschema.Draft7Validator(schema)


@pytest.mark.parametrize("name", FILES)
def test_a_real_file_normalises_or_is_refused_with_a_true_reason(name, judge):
    try:
        found = load_compose(SHARED / name, env={})
    except ComposeError as exc:
        problem = exc.problems[0]
        line, key, words = REFUSED[name]
        assert (problem.line, problem.key) == (line, key)
        assert words in problem.text
        return
    assert name not in REFUSED
    assert found.workload.components
    assert all(warning.line > 0 and warning.key for warning in found.warnings)
    document = YAML(typ="safe").load((SHARED / name).read_text())
    assert judge.is_valid(document)
    assert {c.name for c in found.workload.components} == set(document["services"])


def test_plex_is_good_once_its_variable_is_set():
    if "plex.yaml" not in FILES:
        pytest.skip("not among the files")
    found = load_compose(SHARED / "plex.yaml", env={"PLEX_MEDIA_PATH": "/srv/media"})
    assert found.workload.components[0].image == "linuxserver/plex"


def test_every_key_that_the_schema_knows_is_known_here_and_no_other(judge):
    from tools.compose.grammar import DOCUMENT, VOLUME
    from tools.compose.grammar_parts import BUILD, DEPLOY, HEALTHCHECK
    from tools.compose.grammar_service import SERVICE

    schema = judge.schema
    assert set(DOCUMENT.known) == set(schema["properties"])
    parts = schema["definitions"]
    assert set(SERVICE.known) == set(parts["service"]["properties"])
    assert set(DEPLOY.known) == set(parts["deployment"]["properties"])
    assert set(HEALTHCHECK.known) == set(parts["healthcheck"]["properties"])
    assert set(VOLUME.known) == set(parts["volume"]["properties"])
    build = parts["service"]["properties"]["build"]["oneOf"][1]
    assert set(BUILD.known) == set(build["properties"])


SCALARS = st.sampled_from(
    [None, True, False, 0, 1, -1, 3, 1.5, 2.0, "", "x", "1", "no", "true", "a:/b", "1s", "22:22"]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "x-y", "source", "target", "type", "test"]), inner)
    ),
    max_leaves=6,
)


def known_keys():
    schema = json.loads(SCHEMA_FILE.read_text()) if SCHEMA_FILE.is_file() else {}
    service = schema.get("definitions", {}).get("service", {}).get("properties", {"image": {}})
    return sorted(service)


def fitting(part, schema, depth=0):
    """A strategy that mostly fits a part of the schema, so that documents get past the door."""
    if "$ref" in part:
        return fitting(schema["definitions"][part["$ref"].rsplit("/", 1)[1]], schema, depth)
    if "oneOf" in part:
        return st.one_of([fitting(item, schema, depth) for item in part["oneOf"]])
    if "enum" in part:
        return st.sampled_from(part["enum"])
    kinds = part.get("type", "object")
    made = []
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if kind == "object":
            names = {**part.get("properties", {})}
            inner = {key: fitting(item, schema, depth + 1) for key, item in names.items()}
            free = [item for key, item in part.get("patternProperties", {}).items() if key != "^x-"]
            required = {key: inner.pop(key) for key in part.get("required", ())}
            fixed = st.fixed_dictionaries(required, optional=inner if depth < 4 else {})
            made.append(fixed)
            if free and depth < 4:
                keys = st.sampled_from(["a", "web", "data"])
                made.append(st.dictionaries(keys, fitting(free[0], schema, depth + 1), max_size=2))
        elif kind == "array":
            made.append(st.lists(fitting(part.get("items", {}), schema, depth + 1), max_size=2))
        else:
            simple = {
                "string": st.sampled_from(["x", "1", "1s", "64m", "a:/b", "gpu", "/run", "no"]),
                "integer": st.integers(0, 3),
                "number": st.sampled_from([0, 1, 1.5]),
                "boolean": st.booleans(),
                "null": st.none(),
            }
            made.append(simple[kind])
    return st.one_of(made)


@st.composite
def services(draw):
    schema = json.loads(SCHEMA_FILE.read_text())
    known = schema["definitions"]["service"]["properties"]
    service = {"image": "x"}
    for key in draw(st.lists(st.sampled_from(known_keys()), max_size=4, unique=True)):
        service[key] = draw(fitting(known[key], schema))
    for key in draw(st.lists(st.sampled_from([*known_keys(), "imagee", "x-y"]), max_size=1)):
        service[key] = draw(VALUES)
    return service


def accepted(path, document):
    stream = io.StringIO()
    YAML(typ="safe").dump(document, stream)
    path.write_text(stream.getvalue())
    try:
        load_compose(path, env={}, name="test")
    except ComposeError as exc:
        return False, exc.problems
    return True, []


@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example({"image": "x", "ports": None})
@example({"image": "x", "scale": 2.0})
@example({"image": "x", "blkio_config": {"weight": 1.5}})
@example({"image": "x", "expose": [1, 1.0]})
@example({"image": "x", "expose": [1, "1"]})
@example({"image": "x", "cap_add": ["A", "A"]})
@example({"image": "x", "oom_score_adj": -1001})
@given(services() if SCHEMA_FILE.is_file() else st.just({}))
def test_what_the_schema_refuses_we_refuse_and_what_we_accept_it_accepts(tmp_path, judge, service):
    document = {"services": {"web": service}, "volumes": {"a": None}}
    good, _ = accepted(tmp_path / "test.yaml", document)
    assert not good or judge.is_valid(document), list(judge.iter_errors(document))[:1]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.dictionaries(
        st.sampled_from(
            ["version", "name", "volumes", "networks", "secrets", "configs", "models", "x-y", "v"]
        ),
        VALUES,
        max_size=3,
    )
)
def test_the_top_of_a_file_is_judged_alike(tmp_path, judge, top):
    document = {"services": {"web": {"image": "x"}}, **top}
    good, problems = accepted(tmp_path / "test.yaml", document)
    valid = judge.is_valid(document)
    assert not good or valid
    if valid and not good:  # stricter than the schema, for a reason of its own
        assert all(problem.key for problem in problems)
