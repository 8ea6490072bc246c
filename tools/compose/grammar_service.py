"""The shape of a service: every key of the Compose Specification, 05-services.md."""

from typing import Final

from tools.compose.grammar_parts import (
    BLKIO_LIMITS,
    BUILD,
    DEPLOY,
    DEVELOP,
    DEVICE,
    ENV_FILE,
    EXTRA_HOSTS,
    FILE_MOUNTS,
    HEALTHCHECK,
    HOOK,
    OPTIONS,
    ULIMITS,
)
from tools.compose.shape import (
    BOOL,
    BOOL_TEXT,
    COMMAND,
    INTEGER_TEXT,
    NAME_PATTERN,
    NULL,
    NUMBER,
    NUMBER_TEXT,
    PAIRS,
    TEXT,
    TEXT_OR_TEXTS,
    TEXTS,
    UNIQUE_TEXTS,
    Anything,
    Items,
    Named,
    Plain,
    Shape,
    Table,
    among,
    either,
)

PORT: Final = Table(
    known={
        **dict.fromkeys(("name", "mode", "host_ip", "protocol", "app_protocol"), TEXT),
        "target": INTEGER_TEXT,
        "published": INTEGER_TEXT,
    }
)
MOUNT: Final = Table(
    known={
        "type": among("bind", "volume", "tmpfs", "cluster", "npipe", "image"),
        "source": TEXT,
        "target": TEXT,
        "read_only": BOOL_TEXT,
        "consistency": TEXT,
        "bind": Table(
            known={
                "propagation": TEXT,
                "create_host_path": BOOL_TEXT,
                "recursive": among("enabled", "disabled", "writable", "readonly"),
                "selinux": among("z", "Z"),
            }
        ),
        "volume": Table(known={"labels": PAIRS, "nocopy": BOOL_TEXT, "subpath": TEXT}),
        "tmpfs": Table(
            known={
                "size": either(
                    Plain(
                        want="a size that is not negative",
                        kinds=frozenset(("int", "float")),
                        whole=True,
                        low=0,
                    ),
                    TEXT,
                ),
                "mode": NUMBER_TEXT,
            }
        ),
        "image": Table(known={"subpath": TEXT}),
    },
    required=("type",),
)
SERVICE_NETWORK: Final = Table(
    known={
        **dict.fromkeys(("aliases", "link_local_ips"), UNIQUE_TEXTS),
        **dict.fromkeys(("interface_name", "ipv4_address", "ipv6_address", "mac_address"), TEXT),
        "driver_opts": OPTIONS,
        "priority": NUMBER,
        "gw_priority": NUMBER,
    }
)
DEPENDENCY: Final = Table(
    known={
        "restart": BOOL_TEXT,
        "required": BOOL,
        "condition": among("service_started", "service_healthy", "service_completed_successfully"),
    },
    required=("condition",),
)


def _bounded(low: int, high: int | None = None) -> Shape:
    want = f"an integer from {low}" + (f" to {high}" if high is not None else "")
    kinds = frozenset(("int", "float"))
    return either(TEXT, Plain(want=want, kinds=kinds, whole=True, low=low, high=high))


SERVICE: Final = Table(
    known={
        **dict.fromkeys(
            (
                "cgroup_parent",
                "cpuset",
                "domainname",
                "hostname",
                "image",
                "ipc",
                "isolation",
                "mac_address",
                "network_mode",
                "platform",
                "pull_refresh_after",
                "restart",
                "runtime",
                "stop_grace_period",
                "stop_signal",
                "user",
                "userns_mode",
                "uts",
                "working_dir",
            ),
            TEXT,
        ),
        **dict.fromkeys(
            ("attach", "init", "oom_kill_disable", "privileged", "read_only", "stdin_open", "tty"),
            BOOL_TEXT,
        ),
        **dict.fromkeys(
            (
                "cpu_period",
                "cpu_quota",
                "cpu_rt_period",
                "cpu_rt_runtime",
                "cpu_shares",
                "cpus",
                "mem_limit",
                "memswap_limit",
                "pids_limit",
                "shm_size",
            ),
            NUMBER_TEXT,
        ),
        **dict.fromkeys(("mem_reservation", "mem_swappiness", "scale"), INTEGER_TEXT),
        **dict.fromkeys(("annotations", "environment", "labels", "sysctls"), PAIRS),
        **dict.fromkeys(
            (
                "cap_add",
                "cap_drop",
                "device_cgroup_rules",
                "dns_opt",
                "external_links",
                "links",
                "profiles",
                "security_opt",
                "volumes_from",
            ),
            UNIQUE_TEXTS,
        ),
        **dict.fromkeys(("dns", "dns_search", "tmpfs"), TEXT_OR_TEXTS),
        **dict.fromkeys(("command", "entrypoint"), COMMAND),
        **dict.fromkeys(("configs", "secrets"), FILE_MOUNTS),
        **dict.fromkeys(("post_start", "pre_stop"), Items(item=HOOK)),
        "blkio_config": Table(
            known={
                **dict.fromkeys(
                    (
                        "device_read_bps",
                        "device_read_iops",
                        "device_write_bps",
                        "device_write_iops",
                    ),
                    BLKIO_LIMITS,
                ),
                "weight": INTEGER_TEXT,
                "weight_device": Items(
                    item=Table(known={"path": TEXT, "weight": INTEGER_TEXT}, extensions=False)
                ),
            },
            extensions=False,
        ),
        "build": either(TEXT, BUILD),
        "cgroup": among("host", "private"),
        "container_name": Plain(
            want="a name like [a-zA-Z0-9][a-zA-Z0-9_.-]+",
            kinds=frozenset(("str",)),
            pattern=r"[a-zA-Z0-9][a-zA-Z0-9_.-]+",
        ),
        "cpu_count": _bounded(0),
        "cpu_percent": _bounded(0, 100),
        "credential_spec": Table(known={"config": TEXT, "file": TEXT, "registry": TEXT}),
        "depends_on": either(UNIQUE_TEXTS, Named(item=DEPENDENCY, pattern=NAME_PATTERN)),
        "deploy": either(DEPLOY, NULL),
        "develop": either(DEVELOP, NULL),
        "devices": Items(
            item=either(
                TEXT,
                Table(
                    known={"source": TEXT, "target": TEXT, "permissions": TEXT},
                    required=("source",),
                ),
            )
        ),
        "env_file": ENV_FILE,
        "expose": Items(item=NUMBER_TEXT, unique=True),
        "extends": either(
            TEXT,
            Table(known={"service": TEXT, "file": TEXT}, required=("service",), extensions=False),
        ),
        "external_links": UNIQUE_TEXTS,
        "extra_hosts": EXTRA_HOSTS,
        "gpus": either(among("all"), Items(item=Table(known=DEVICE))),
        "group_add": Items(item=NUMBER_TEXT, unique=True),
        "healthcheck": HEALTHCHECK,
        "label_file": either(TEXT, TEXTS),
        "logging": Table(known={"driver": TEXT, "options": Named(item=either(TEXT, NUMBER, NULL))}),
        "models": either(
            UNIQUE_TEXTS,
            Named(
                item=Table(known={"endpoint_var": TEXT, "model_var": TEXT}), pattern=NAME_PATTERN
            ),
        ),
        "networks": either(
            UNIQUE_TEXTS, Named(item=either(SERVICE_NETWORK, NULL), pattern=NAME_PATTERN)
        ),
        "oom_score_adj": _bounded(-1000, 1000),
        "pid": either(TEXT, NULL),
        "ports": Items(item=either(NUMBER_TEXT, PORT), unique=True),
        "provider": Table(
            known={
                "type": TEXT,
                "options": Named(
                    item=either(TEXT, NUMBER, BOOL, Items(item=either(TEXT, NUMBER, BOOL)))
                ),
            },
            required=("type",),
        ),
        "pull_policy": Plain(
            want="a pull policy such as always, never, missing or every_1d",
            kinds=frozenset(("str",)),
            pattern=r"always|never|build|if_not_present|missing|refresh|daily|weekly"
            r"|every_([0-9]+[wdhms])+",
        ),
        "storage_opt": Named(item=Anything()),
        "ulimits": ULIMITS,
        "use_api_socket": BOOL,
        "volumes": Items(item=either(TEXT, MOUNT), unique=True),
    }
)
