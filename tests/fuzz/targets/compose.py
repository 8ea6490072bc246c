"""What a user writes: Compose files, variables, env files, signals, sizes and durations."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from firmware.workload import Workload
from tests.fuzz.reader import all_keys, json_text
from tests.fuzz.target import Check, Target
from tools.compose import ComposeError, load_compose
from tools.compose.envfile import EnvFileError, parse_env_file
from tools.compose.interpolate import MAX_RESULT_CHARS, TemplateError, substitute
from tools.compose.report import MAX_FINDINGS
from tools.compose.units import UnitError, parse_cpu_milli, parse_duration_ms, parse_size
from tools.signals import signal_number

ENV = {"X": "x", "EMPTY": "", "N": "${X}", "LONG": "y" * 2000}
PIECES: tuple[dict[str, Any], ...] = (
    {},
    {
        "command": ["sh", "-c", "echo $$A ${X:-d}"],
        "entrypoint": '/bin/sh -c \'a b\' "c\\"d"',
        "environment": {"A": "1", "B": None, "C": 2, "D": True},
        "env_file": [{"path": "w.env", "required": False}],
        "working_dir": "/srv",
        "hostname": "${X:?say}",
    },
    {
        "deploy": {
            "mode": "replicated",
            "replicas": 2,
            "placement": {"constraints": ["node.labels.zone==a"], "max_replicas_per_node": 1},
            "restart_policy": {"condition": "on-failure", "max_attempts": 3},
        },
        "profiles": ["a"],
        "labels": ["a=b"],
        "environment": ["A=1", "B"],
    },
    {
        "deploy": {
            "resources": {
                "limits": {"cpus": "0.5", "memory": "50M", "pids": 3},
                "reservations": {
                    "cpus": 0.25,
                    "memory": "20m",
                    "devices": [{"capabilities": ["gpu"], "count": 1, "driver": "x"}],
                },
            }
        },
    },
    {
        "volumes": ["data:/srv:ro", {"type": "volume", "source": "data", "target": "/b"}],
        "tmpfs": ["/run"],
        "ports": ["80:80"],
        "networks": {"front": {"aliases": ["w"]}},
        "user": "1:2",
        "read_only": True,
    },
    {
        "healthcheck": {"test": ["CMD-SHELL", "true"], "interval": "1s", "retries": 2},
        "stop_signal": "SIGINT",
        "stop_grace_period": "1m30s",
        "restart": "on-failure:3",
        "cpus": 1.5,
        "mem_limit": "1g",
        "x-apf": {"link_mbit": 3, "profile": "off"},
    },
)
BASES: tuple[dict[str, Any], ...] = (
    *(
        {
            "services": {"web": {"image": "x", **piece}},
            "volumes": {"data": {"driver": "local"}},
            "networks": {"front": {}},
        }
        for piece in PIECES
    ),
    {
        "name": "shop",
        "services": {
            "web": {
                "image": "w",
                "depends_on": {"db": {"condition": "service_healthy", "required": True}},
            },
            "db": {"extends": {"service": "base"}, "depends_on": ["base"], "image": "d"},
            "base": {"image": "b", "healthcheck": {"test": "true"}, "command": "a b"},
        },
    },
)
TEXTS = (
    "services: {web: {image: x}}\n",
    """\
x-a: &a
  image: ${X}
  environment: {A: 1}
services:
  web:
    <<: *a
    command: >-
      one
      two
    stop_grace_period: 3s
    ports: ["22:22"]
  db: {<<: [*a], restart: "no", cpus: 0.5}
volumes: {d: , e: ~}
""",
    """\
%YAML 1.2
---
"services":
  'w': !!map
    image: !!str 1
    command: |
      a
       b
    environment:
      - A=${X:-${EMPTY-$N}}
      - "B=\\u00e9\\x41"
    ? tmpfs
    : [/a, /b]
...
""",
)


def compose(scratch: Path) -> Check:
    words = all_keys(*BASES)
    file = scratch / "shop.yaml"

    def check(data: bytes) -> bool:
        raw = json_text(data, BASES, words)
        file.write_bytes(raw)
        try:
            found = load_compose(file, env=ENV, profiles=("a",))
        except ComposeError as exc:
            assert exc.problems
            json.dumps([str(exc), exc.data], ensure_ascii=False).encode()  # it can be said
            assert len(exc.problems) <= MAX_FINDINGS + 1
            lines = raw.count(b"\n") + raw.count(b"\r") + raw.count("\u2028".encode()) + 2
            assert all(0 <= problem.line <= lines + raw.count(b"\x85") for problem in exc.problems)
            return False
        workload = found.workload
        assert Workload.from_json(workload.to_json()) == workload
        assert len(found.warnings) <= MAX_FINDINGS + 1
        said = [warning.to_json() for warning in found.warnings]
        json.dumps([said, workload.to_json()], ensure_ascii=False).encode()
        return True

    return check


def _compose_seeds() -> Iterable[bytes]:
    yield from (text.encode() for text in TEXTS)
    for index, base in enumerate(BASES):
        yield json.dumps(base).encode()
        yield bytes([index])
        for place in range(12):
            yield bytes([index, 0, 2, place % 3, place, 255, 5, 1, place])
            yield bytes([index, 0, 2, 0, place, place % 5, 7, 5, 1, place * 5])
            yield bytes([index, 0, 2, 0, place, place % 5, 0, 3, 2, 0, 0])


def template(_scratch: Path) -> Check:
    def check(data: bytes) -> bool:
        text = data.decode(errors="replace")
        _units(text)
        missed: list[str] = []
        try:
            result = substitute(text, ENV, missed.append)
        except TemplateError:
            return False
        assert len(result) <= MAX_RESULT_CHARS + 2000
        assert "$" in text or result == text
        assert substitute(text.replace("$", "$$"), ENV, missed.append) == text
        return True

    return check


def _units(text: str) -> None:
    for parse in (parse_size, parse_duration_ms, parse_cpu_milli):
        try:
            assert parse(text) >= 0
        except UnitError:
            continue
    number = signal_number(text)
    assert number is None or 1 <= number <= 64


def env_file(_scratch: Path) -> Check:
    def check(data: bytes) -> bool:
        text = data.decode(errors="replace")
        try:
            found = parse_env_file(text, ENV)
        except EnvFileError as exc:
            assert 1 <= exc.line <= max(1, len(text.splitlines()))
            return False
        assert all(key and "=" not in key for key in found)
        return bool(found)

    return check


TARGETS = (
    Target(
        name="compose",
        text="a Compose file, as text or edited",
        make=compose,
        seeds=_compose_seeds,
        words=(
            *(word.encode() for word in all_keys(*BASES) if len(word) < 24),
            *(
                b"&a ",
                b"*a",
                b"<<: ",
                b"!!int ",
                b"|-\n ",
                b"? ",
                b"---\n",
                b"${X:-",
                b"\n  ",
                b": ",
            ),
        ),
        max_bytes=2048,
    ),
    Target(
        name="template",
        text="texts with variables; sizes, durations, shares of processors, signals",
        make=template,
        seeds=lambda: [
            *(
                b"a ${X:-${EMPTY-$N}} $$ $X",
                b"${X:?say}${Q+a}${Q:-}",
                b"1.5gb",
                b"1h2m3.5s",
                b"0.25",
            ),
            *(b"SIGRTMIN+3", b"512", b"10", b"${N}${LONG}", b"1e3", b"1e999999", b"1e-999999"),
        ],
        words=(b"${", b":-", b":?", b":+", b"}", b"$X", b"SIG", b"RTMAX-", b"ms", b"kib"),
        max_bytes=200,
    ),
    Target(
        name="env_file",
        text="an env file",
        make=env_file,
        seeds=lambda: [
            b"A=1\nB=${A}x # c\n# c\nexport C='$A'\nD=\"a\\n$A\"\nX\n\nE=\n",
            b"\xef\xbb\xbfA=\"two\nlines\" # c\nB='\n'\n",
        ],
        words=(b"export ", b"=", b"'", b'"', b"\\n", b" #", b"${A:-"),
        max_bytes=400,
    ),
)
