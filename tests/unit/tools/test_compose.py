"""Compose files: each thing a service says arrives in the normal form, is warned about, or is
refused with its line."""

import pytest

from tools.compose import ComposeError, load_compose


@pytest.fixture
def load(tmp_path):
    def run(text, *, env=None, name=None, profiles=(), file="shop.yaml"):
        path = tmp_path / file
        path.write_text(text)
        return load_compose(path, env=env or {}, name=name, profiles=profiles)

    return run


@pytest.fixture
def service(load):
    """One service `web` with these lines; its component and its warnings."""

    def run(*lines, env=None, after=""):
        body = "".join(f"    {line}\n" for line in lines)
        image = (
            "" if any(line.startswith(("image", "build")) for line in lines) else "    image: x\n"
        )
        found = load(f"services:\n  web:\n{image}{body}{after}", env=env)
        return found.workload.components[0], found.warnings

    return run


def problems(call, *args, **kwargs):
    with pytest.raises(ComposeError) as refused:
        call(*args, **kwargs)
    return refused.value.problems


# --- names ---


def test_the_file_names_the_workload_and_compose_yaml_takes_its_directory(load, tmp_path):
    text = "services: {web: {image: x}}"
    assert load(text).workload.name == "shop"
    assert load(text, file="compose.yaml").workload.name == tmp_path.name.replace("_", "_")[:41]
    assert load(f"name: own\n{text}").workload.name == "own"
    assert load(f"name: own\n{text}", name="given").workload.name == "given"
    assert load(f"name: own\n{text}", env={"COMPOSE_PROJECT_NAME": "env"}).workload.name == "env"


def test_a_bad_name_is_refused(load):
    assert problems(load, "services: {web: {image: x}}", name="Not good")[0].key == "--name"
    assert problems(load, "name: Not good\nservices: {web: {image: x}}")[0].line == 1


def test_a_service_name_that_is_too_wide_is_changed_with_a_warning(load):
    long = "a" * 60
    found = load(f"services: {{Web_1: {{image: x, depends_on: [{long}]}}, {long}: {{image: x}}}}")
    names = [component.name for component in found.workload.components]
    assert names[0] == "web_1"
    assert len(names[1]) == 41
    assert found.workload.components[0].depends_on[0].component == names[1]
    assert [warning.code for warning in found.warnings] == ["name_changed", "name_changed"]


def test_two_services_that_become_one_are_refused(load):
    found = problems(load, "services:\n  web: {image: x}\n  WEB: {image: x}")
    assert (found[0].line, found[0].key) == (3, "services.WEB")


# --- image, command ---


def test_build_without_image_names_the_image_and_warns(service):
    component, warnings = service("build: ./web")
    assert component.image == "shop-web"
    assert [(warning.code, warning.line) for warning in warnings] == [("unsupported_build", 3)]


def test_a_service_without_image_and_build_is_refused(load):
    found = problems(load, "services:\n  web:\n    command: x")
    assert (found[0].line, found[0].key) == (2, "services.web")


@pytest.mark.parametrize(
    ("line", "argv"),
    [
        ("command: ['a', 'b c']", ("a", "b c")),
        ("command: sh -c 'echo \"hi\"'", ("sh", "-c", 'echo "hi"')),
        ("command: []", ()),
        ("command: ''", ()),
        ("command: null", None),
        ("command: echo $$HOME", ("echo", "$HOME")),
    ],
)
def test_a_command_is_split_as_a_shell_would(service, line, argv):
    assert service(line)[0].argv == argv


def test_an_entrypoint_drops_the_images_arguments(service):
    component, _ = service("entrypoint: /bin/run --fast")
    assert component.entrypoint == ("/bin/run", "--fast")
    assert component.argv == ()
    component, _ = service("entrypoint: [/bin/run]", "command: [a]")
    assert component.argv == ("a",)


def test_an_open_quote_is_refused_with_its_line(load):
    found = problems(load, "services:\n  web:\n    image: x\n    command: sh -c 'oops")
    assert (found[0].line, found[0].key) == (4, "services.web.command")


# --- environment ---


def test_environment_as_map_and_list(service):
    component, _ = service(
        "environment:", "  N: 1.50", "  S: 22:22", "  B: true", "  E: ''", "  OUT:", "  NONE:",
        env={"OUT": "side"},
    )  # fmt: skip
    assert component.env == {"N": "1.50", "S": "22:22", "B": "true", "E": "", "OUT": "side"}
    component, _ = service("environment: [A=1, B=x=y, OUT, NONE]", env={"OUT": "side"})
    assert component.env == {"A": "1", "B": "x=y", "OUT": "side"}


def test_env_files_come_first_and_environment_wins(service, tmp_path):
    (tmp_path / "a.env").write_text(
        "# words\nexport A=1\nB='single $A'\nC=\"two\\nlines ${A}\"\nD=plain # tail\nOUT\n"
    )
    component, _ = service(
        "env_file: [a.env, {path: none.env, required: false}]",
        "environment: {A: over}",
        env={"OUT": "side"},
    )
    assert component.env == {
        "A": "over",
        "B": "single $A",
        "C": "two\nlines 1",
        "D": "plain",
        "OUT": "side",
    }


def test_a_missing_env_file_is_refused(service):
    found = problems(service, "env_file: none.env")
    assert (found[0].line, "none.env" in found[0].text) == (4, True)


def test_a_broken_env_file_is_refused_with_its_own_line(service, tmp_path):
    (tmp_path / "a.env").write_text("A=1\nB='open\n")
    assert "a.env:2" in problems(service, "env_file: a.env")[0].text


def test_dotenv_beside_the_file_fills_variables_and_the_environment_wins(service, tmp_path):
    (tmp_path / ".env").write_text("TAG=1\nPORT=2\n")
    component, _ = service("image: x:${TAG}", "command: ${PORT}", env={"PORT": "3"})
    assert (component.image, component.argv) == ("x:1", ("3",))


# --- resources ---


def test_limits_reserve_as_much_unless_a_reservation_is_given(service):
    component, _ = service("cpus: 0.5", "mem_limit: 64m", "pids_limit: 10")
    needs = component.resources
    assert (needs.cpu_milli, needs.cpu_limit_milli, needs.pids) == (500, 500, 10)
    assert (needs.memory_bytes, needs.memory_limit_bytes) == (64 << 20, 64 << 20)
    component, _ = service(
        "deploy: {resources: {limits: {cpus: '2', memory: 1.5G, pids: 5},"
        " reservations: {cpus: '0.25', memory: 512mb}}}"
    )
    needs = component.resources
    assert (needs.cpu_milli, needs.cpu_limit_milli, needs.pids) == (250, 2000, 5)
    assert (needs.memory_bytes, needs.memory_limit_bytes) == (512 << 20, 3 << 29)


def test_a_quota_is_a_share_of_processors(service):
    needs = service("cpu_quota: 50000")[0].resources
    assert needs.cpu_limit_milli == 500
    assert service("cpu_quota: 50000", "cpu_period: 10000")[0].resources.cpu_limit_milli == 5000


@pytest.mark.parametrize(
    ("lines", "key"),
    [
        (["cpus: lots"], "services.web.cpus"),
        (["cpus: -1"], "services.web.cpus"),
        (["mem_limit: 5 parsecs"], "services.web.mem_limit"),
        (["pids_limit: many"], "services.web.pids_limit"),
        (["cpus: 1", "deploy: {resources: {limits: {cpus: '2'}}}"], "services.web.cpus"),
        (["scale: 1", "deploy: {replicas: 2}"], "services.web.scale"),
        (["scale: 5000"], "services.web.scale"),
        (["mem_limit: 1g", "mem_reservation: 2g"], "services.web"),
    ],
)
def test_resources_that_make_no_sense_are_refused(service, lines, key):
    assert problems(service, *lines)[0].key == key


def test_devices_become_accelerators(service):
    component, warnings = service(
        "deploy: {resources: {reservations: {devices: ["
        "{capabilities: [gpu], count: 2, options: {model: sim-t4, milli: '500'}},"
        "{capabilities: [fpga], device_ids: ['0', '3']}, {capabilities: [gpu], count: all}],"
        " generic_resources: [{discrete_resource_spec: {kind: SSD, value: 3}}]}}}"
    )
    found = [(a.kind, a.model, a.count, a.milli) for a in component.resources.accelerators]
    assert found == [
        ("gpu", "sim-t4", 2, 500),
        ("fpga", None, 2, 1000),
        ("gpu", None, 1, 1000),
        ("ssd", None, 3, 1000),
    ]
    assert [warning.code for warning in warnings] == ["unsupported_device_ids", "devices_all"]
    assert service("gpus: all")[0].resources.accelerators[0].kind == "gpu"


# --- placement ---


def test_placement_constraints_and_preferences(service):
    component, warnings = service(
        "deploy:",
        "  replicas: 3",
        "  placement:",
        "    constraints: [node.labels.zone==a, node.platform.arch == aarch64, node.role == x]",
        "    preferences: [{spread: node.labels.zone}]",
        "    max_replicas_per_node: 2",
    )
    assert component.replicas == 3
    assert component.placement.labels == {"zone": "a"}
    assert component.placement.spread
    assert component.placement.max_per_cnm == 2
    assert component.resources.arch == "arm64"
    assert [warning.code for warning in warnings] == [
        "unsupported_constraint",
        "spread_by_label",
    ]


def test_our_own_extension_is_read_strictly(load, service):
    component, _ = service(
        "x-apf: {runtime: process, labels: {zone: b}, spread: true, max_per_cnm: 1,"
        " nvme: 2g, nvme_mbit: 800, link_mbit: 100, window_slots: 4, together: [db]}",
        after="  db: {image: x}\n",
    )
    assert component.runtime == "process"
    assert component.placement.together == ("db",)
    assert (component.resources.nvme_bytes, component.resources.link_mbit) == (2 << 30, 100)
    assert (component.resources.nvme_mbit, component.resources.window_slots) == (800, 4)
    assert problems(service, "x-apf: {window_slots: 5000}")[0].line == 4
    assert problems(service, "x-apf: {runtme: oci}")[0].key == "services.web.x-apf.runtme"
    assert problems(service, "x-apf: {runtime: vm}")[0].line == 4
    assert component.profile == "auto"
    assert problems(service, "x-apf: {together: [none]}")[0].key.endswith("together[0]")


@pytest.mark.parametrize("word", ["on", "off", '"off"'])
def test_the_profile_is_on_or_off(service, word):
    assert service(f"x-apf: {{profile: {word}}}")[0].profile == word.strip('"')


@pytest.mark.parametrize("word", ["auto", "false", "0", '""', "[on]"])
def test_a_profile_that_is_neither_is_refused_with_its_line(service, word):
    found = problems(service, f"x-apf: {{profile: {word}}}")[0]
    assert (found.line, found.key) == (4, "services.web.x-apf.profile")


def test_a_service_has_its_own_priority_or_the_files(load):
    found = load(
        "x-apf: {tenant: acme, priority: '70'}\nservices:\n  a: {image: x}\n"
        "  b: {image: x, x-apf: {priority: 0}}\n"
    ).workload
    assert found.tenant == "acme"
    assert [component.priority for component in found.components] == [70, 0]


@pytest.mark.parametrize("word", ["101", "-1", "high", "5.5", "[1]"])
def test_a_priority_that_is_none_is_refused_with_its_line(service, word):
    found = problems(service, f"x-apf: {{priority: {word}}}")[0]
    assert (found.line, found.key) == (4, "services.web.x-apf.priority")


@pytest.mark.parametrize(
    ("top", "key"),
    [
        ("{tenant: A B}", "x-apf.tenant"),
        ("{priority: 200}", "x-apf.priority"),
        ("{runtime: oci}", "x-apf.runtime"),
        ("high", "x-apf"),
    ],
)
def test_the_files_own_extension_is_read_strictly(load, top, key):
    with pytest.raises(ComposeError) as refused:
        load(f"x-apf: {top}\nservices:\n  a: {{image: x}}\n")
    assert (refused.value.problems[0].line, refused.value.problems[0].key) == (1, key)


# --- dependencies, health, restart ---


def test_depends_on_short_and_long(load):
    found = load(
        "services:\n"
        "  a: {image: x, depends_on: [b, c]}\n"
        "  b: {image: x, healthcheck: {test: [CMD, ok]}}\n"
        "  c:\n    image: x\n    depends_on:\n"
        "      b: {condition: service_healthy}\n"
        "      d: {condition: service_completed_successfully}\n"
        "      gone: {condition: service_started, required: false}\n"
        "  d: {image: x}\n"
    )
    by_name = {c.name: [(d.component, d.condition) for d in c.depends_on] for c in found.workload.components}  # fmt: skip  # noqa: E501
    assert by_name["a"] == [("b", "started"), ("c", "started")]
    assert by_name["c"] == [("b", "healthy"), ("d", "completed")]


def test_healthy_without_a_healthcheck_is_warned_and_started_is_waited_for(load):
    found = load(
        "services:\n  a:\n    image: x\n    depends_on:\n"
        "      b:\n        condition: service_healthy\n  b: {image: x}\n"
    )
    assert found.workload.components[0].depends_on[0].condition == "started"
    assert [(w.code, w.line) for w in found.warnings] == [("healthy_without_healthcheck", 6)]


def test_dependencies_on_nothing_and_in_circles_are_refused(load):
    found = problems(load, "services:\n  a:\n    image: x\n    depends_on:\n    - b\n")
    assert (found[0].line, found[0].key) == (5, "services.a.depends_on[0]")
    circle = "services:\n  a: {image: x, depends_on: [b]}\n  b: {image: x, depends_on: [a]}\n"
    assert "circle" in problems(load, circle)[0].text


@pytest.mark.parametrize(
    ("test", "argv"),
    [
        ("[CMD, curl, -f, localhost]", ("curl", "-f", "localhost")),
        ("[CMD-SHELL, 'a | b']", ("/bin/sh", "-c", "a | b")),
        ("a && b $$X", ("/bin/sh", "-c", "a && b $X")),
        ("[NONE]", None),
    ],
)
def test_a_healthcheck_becomes_a_plain_argv(service, test, argv):
    check = service(f"healthcheck: {{test: {test!r}}}" if test[0] == "a" else f"healthcheck: {{test: {test}}}")[0].healthcheck  # fmt: skip  # noqa: E501
    assert (check.test if check else None) == argv


def test_a_healthchecks_times(service):
    check = service(
        "healthcheck: {test: [CMD, x], interval: 1m30s, timeout: 500ms, retries: 7,"
        " start_period: 1h}"
    )[0].healthcheck
    assert check is not None
    assert (check.interval_ms, check.timeout_ms) == (90_000, 500)
    assert (check.retries, check.start_period_ms) == (7, 3_600_000)
    usual = service("healthcheck: {test: [CMD, x], interval: 0s}")[0].healthcheck
    assert usual is not None
    assert (usual.interval_ms, usual.retries) == (30_000, 3)
    assert service("healthcheck: {disable: true, test: x}")[0].healthcheck is None
    assert problems(service, "healthcheck: {test: [RUN, x]}")[0].key.endswith("test")
    assert problems(service, "healthcheck: {test: x, interval: 5 moons}")[0].line == 4


@pytest.mark.parametrize(
    ("line", "policy"),
    [
        ("restart: no", ("no", 0)),
        ("restart: 'always'", ("always", 0)),
        ("restart: on-failure:5", ("on-failure", 5)),
        ("restart: unless-stopped", ("unless-stopped", 0)),
        ("deploy: {restart_policy: {condition: any, max_attempts: 2}}", ("always", 2)),
        ("deploy: {restart_policy: {condition: none}}", ("no", 0)),
    ],
)
def test_restart_policies(service, line, policy):
    restart = service(line)[0].restart
    assert (restart.policy, restart.max_attempts) == policy


@pytest.mark.parametrize(
    "line",
    [
        "restart: sometimes",
        "restart: always:3",
        "restart: true",
        "stop_signal: SIGNOTHING",
        "stop_grace_period: 10",
        "user: 'a b'",
        "working_dir: relative",
        "hostname: '-x'",
        "deploy: {restart_policy: {condition: maybe}}",
        "image: ''",
        "provider: {type: cloud}",
    ],
)
def test_values_that_mean_nothing_are_refused_at_their_line(service, line):
    found = problems(service, line)
    assert found[0].line in (3, 4)
    assert found[0].key.startswith("services.web")


def test_stop_signal_and_grace(service):
    component, _ = service("stop_signal: SIGINT", "stop_grace_period: 1m5s")
    assert (component.stop_signal, component.stop_grace_ms) == (2, 65_000)
    assert service("stop_signal: SIGRTMIN+3")[0].stop_signal == 37
    assert service("stop_signal: '9'")[0].stop_signal == 9


# --- volumes ---


def test_named_volumes_tmpfs_and_what_a_cnm_does_not_have(service):
    component, warnings = service(
        "volumes:",
        "  - data:/data:ro",
        "  - {type: volume, source: named, target: /named/}",
        "  - {type: tmpfs, target: /run, tmpfs: {size: 1m}}",
        "  - ./src:/src",
        "  - {type: bind, source: /etc, target: /etc2}",
        "  - /cache",
        "tmpfs: /tmp",
        after="volumes:\n  data:\n  named: {name: own}\n",
    )
    volumes = [(v.name, v.target, v.read_only) for v in component.volumes]
    assert volumes == [("shop_data", "/data", True), ("own", "/named", False)]
    assert component.tmpfs == ("/run", "/tmp")
    assert [(warning.code, warning.line) for warning in warnings] == [
        ("unsupported_tmpfs_options", 7),
        ("unsupported_bind", 8),
        ("unsupported_bind", 9),
        ("unsupported_anonymous_volume", 10),
    ]


@pytest.mark.parametrize(
    "mount",
    [
        ":/data",
        "data:",
        "data:relative",
        "data:/a:ro:x",
        "nowhere:/data",
        "data:/",
        "data:/../..",
        "{type: volume, source: data}",
        "{type: volume, source: data, target: /a, volume: {subpath: x}}",
    ],
)
def test_mounts_that_cannot_be_are_refused(service, mount):
    found = problems(service, f"volumes: [{mount!r}]" if mount[0] != "{" else f"volumes: [{mount}]", after="volumes: {data: }\n")  # fmt: skip  # noqa: E501
    assert found[0].key.startswith("services.web.volumes[0]")


def test_one_path_mounted_twice_is_refused(service):
    found = problems(service, "volumes: ['data:/a', 'data:/a/']", after="volumes: {data: }\n")
    assert found[0].key == "services.web.volumes[1]"


# --- the rest of the file ---


def test_what_a_card_cannot_honour_is_named_with_its_line(service):
    _, warnings = service("ports: ['80:80']", "privileged: true", "tty: false", "cap_add: [ALL]")
    assert [(w.code, w.line) for w in warnings] == [
        ("unsupported_ports", 4),
        ("unsupported_privileged", 5),
        ("unsupported_cap_add", 7),
    ]


def test_profiles_switch_services_on(load):
    text = "services:\n  a: {image: x}\n  b: {image: x, profiles: [dev]}\n"
    names = lambda found: [c.name for c in found.workload.components]  # noqa: E731
    assert names(load(text)) == ["a"]
    assert names(load(text, profiles=["dev"])) == ["a", "b"]
    assert names(load(text, env={"COMPOSE_PROFILES": "dev,x"})) == ["a", "b"]
    assert names(load(text, profiles=["*"])) == ["a", "b"]
    depends = text + "  c: {image: x, depends_on: [b]}\n"
    assert "profiles" in problems(load, depends)[0].text


def test_anchors_merge_keys_and_extends(load):
    found = load(
        "x-env: &env {A: 1, B: 2}\n"
        "services:\n"
        "  base: {image: x, environment: *env, command: [a]}\n"
        "  web:\n    extends: {service: base}\n"
        "    environment: {<<: *env, B: 3}\n    command: [b]\n"
    )
    web = found.workload.components[1]
    assert web.env == {"A": "1", "B": "3"}
    assert (web.image, web.argv) == ("x", ("b",))


def test_extends_in_a_circle_or_of_another_file_is_refused(load):
    circle = "services:\n  a: {image: x, extends: b}\n  b: {image: x, extends: a}\n"
    assert "circle" in problems(load, circle)[0].text
    other = "services:\n  a: {extends: {service: b, file: other.yaml}}\n"
    assert "flatten" in problems(load, other)[0].text


def test_undeclared_networks_and_secrets_are_refused(load):
    text = "services:\n  a:\n    image: x\n    networks: [front]\n    secrets: [key]\n"
    assert [found.line for found in problems(load, text)] == [4, 5]


def test_all_problems_of_a_file_are_said_at_once(load):
    text = "services:\n  a: {image: 5, prots: []}\n  b: {imag: x}\nvolume: {}\n"
    found = problems(load, text)
    assert [item.key for item in found] == [
        "services.a.image",
        "services.a.prots",
        "services.b.imag",
        "volume",
    ]
    assert "did you mean 'ports'" in found[1].text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("services: {", 1),
        ("a: 1\na: 2", 2),
        ("services:\n  a: {image: x}\n---\nservices: {}", 3),
        ("1: x", 1),
        ("services: !reset {}", 1),
        ("services: *nothing", 1),
        ("a: &a [*a]", 1),
        ("<<: [1]", 1),
        ("? [a]\n: b", 1),
        ("services:\n\t- x", 2),
        ("[" * 100, 1),
        ("\x00", 0),
        ("%YAML 1.3\n---\na: 1", 0),
        ("- a", 1),
        ("just words", 1),
    ],
)
def test_what_is_no_compose_yaml_is_refused(load, text, line):
    assert problems(load, text)[0].line == line


def test_an_empty_file_has_no_services(load):
    assert "no services" in problems(load, "")[0].text


def test_an_alias_bomb_is_refused_before_it_goes_off(load):
    lines = ["x-a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    for this, last in zip("bcdefghij", "abcdefghi", strict=True):
        lines.append(f"x-{this}: &{this} [{', '.join([f'*{last}'] * 10)}]")
    assert "aliases expanded" in problems(load, "\n".join(lines))[0].text


def test_a_merge_bomb_is_refused(load):
    lines = ["x-a: &a {k: 1}"]
    for this, last in zip("bcdefghijklmnopqrst", "abcdefghijklmnopqrs", strict=True):
        lines.append(f"x-{this}: &{this} {{<<: [*{last}, *{last}], k{this}: *{last}}}")
    assert problems(load, "\n".join(lines))


def test_a_file_of_more_than_a_mebibyte_is_refused(load):
    assert "larger" in problems(load, "#" * ((1 << 20) + 1))[0].text


def test_a_missing_file_and_bytes_that_are_no_text_are_refused(tmp_path):
    assert "No such file" in problems(load_compose, tmp_path / "none.yaml")[0].text
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    assert "UTF-8" in problems(load_compose, tmp_path / "bad.yaml")[0].text
    assert problems(load_compose, tmp_path)


def test_yaml_1_2_reads_22_22_and_no_as_strings(service):
    component, _ = service("command: [22:22, no, 'y']")
    assert component.argv == ("22:22", "no", "y")


def test_an_escaped_character_is_one_and_half_of_one_is_refused_at_its_line(service):
    component, _ = service('command: ["\\ud83d\\ude00"]')  # as JSON writes U+1F600
    assert component.argv == ("\N{GRINNING FACE}",)
    (problem,) = problems(service, 'command: ["\\ud83d"]')
    assert "half a character" in problem.text
    assert problem.line == 4


def test_the_whole_path_of_a_bad_value_of_the_normal_form_is_said(service):
    found = problems(service, "user: 'a b'")
    assert (found[0].line, "user" in found[0].key) == (4, True)
