"""Shapes of what a service holds: build, deploy, healthcheck and the smaller parts.

Ref: compose-spec build.md, deploy.md, develop.md, 05-services.md.
"""

from typing import Final

from tools.compose.shape import (
    BOOL,
    BOOL_TEXT,
    COMMAND,
    INTEGER_TEXT,
    NUMBER_TEXT,
    PAIRS,
    TEXT,
    TEXT_OR_TEXTS,
    TEXTS,
    UNIQUE_TEXTS,
    Items,
    Named,
    Shape,
    Table,
    among,
    either,
)

OPTIONS: Final = Named(item=NUMBER_TEXT)
EXTERNAL: Final = either(BOOL, TEXT, Table(known={"name": TEXT}))
# of secrets and configs the schema leaves the inside open; a misspelt name is refused all the same
FILE_MOUNTS: Final = Items(
    item=either(
        TEXT,
        Table(
            known={"source": TEXT, "target": TEXT, "uid": TEXT, "gid": TEXT, "mode": NUMBER_TEXT}
        ),
    )
)
ULIMITS: Final = Named(
    item=either(
        INTEGER_TEXT,
        Table(known={"hard": INTEGER_TEXT, "soft": INTEGER_TEXT}, required=("soft", "hard")),
    ),
    pattern="^[a-z]+$",
)
EXTRA_HOSTS: Final = either(Named(item=either(TEXT, TEXTS)), UNIQUE_TEXTS)
BLKIO_LIMITS: Final = Items(
    item=Table(known={"path": TEXT, "rate": INTEGER_TEXT}, extensions=False)
)
ENV_FILE: Final = either(
    TEXT,
    Items(
        item=either(
            TEXT,
            Table(
                known={"path": TEXT, "format": TEXT, "required": BOOL_TEXT},
                required=("path",),
                extensions=False,
            ),
        )
    ),
)
HOOK: Final = Table(
    known={
        "command": COMMAND,
        "user": TEXT,
        "privileged": BOOL_TEXT,
        "working_dir": TEXT,
        "environment": PAIRS,
    },
    required=("command",),
)
HEALTHCHECK: Final = Table(
    known={
        "disable": BOOL_TEXT,
        "interval": TEXT,
        "retries": NUMBER_TEXT,
        "test": either(TEXT, TEXTS),
        "timeout": TEXT,
        "start_period": TEXT,
        "start_interval": TEXT,
    }
)
BUILD: Final = Table(
    known={
        **dict.fromkeys(
            ("context", "dockerfile", "dockerfile_inline", "network", "target", "isolation"), TEXT
        ),
        **dict.fromkeys(("args", "ssh", "labels", "additional_contexts"), PAIRS),
        **dict.fromkeys(("entitlements", "cache_from", "cache_to", "tags", "platforms"), TEXTS),
        **dict.fromkeys(("no_cache", "pull", "privileged", "provenance", "sbom"), BOOL_TEXT),
        "shm_size": INTEGER_TEXT,
        "extra_hosts": EXTRA_HOSTS,
        "secrets": FILE_MOUNTS,
        "ulimits": ULIMITS,
    }
)
DEVELOP: Final = Table(
    known={
        "watch": Items(
            item=Table(
                known={
                    "ignore": TEXT_OR_TEXTS,
                    "include": TEXT_OR_TEXTS,
                    "path": TEXT,
                    "action": among("rebuild", "sync", "restart", "sync+restart", "sync+exec"),
                    "target": TEXT,
                    "exec": HOOK,
                    "initial_sync": BOOL,
                },
                required=("path", "action"),
            )
        )
    }
)
DEVICE: Final[dict[str, Shape]] = {
    "capabilities": UNIQUE_TEXTS,
    "count": INTEGER_TEXT,
    "device_ids": UNIQUE_TEXTS,
    "driver": TEXT,
    "options": PAIRS,
}
ROLLOUT: Final = Table(
    known={
        "parallelism": INTEGER_TEXT,
        "delay": TEXT,
        "failure_action": TEXT,
        "monitor": TEXT,
        "max_failure_ratio": NUMBER_TEXT,
        "order": among("start-first", "stop-first"),
    }
)
DEPLOY: Final = Table(
    known={
        "mode": TEXT,
        "endpoint_mode": TEXT,
        "replicas": INTEGER_TEXT,
        "labels": PAIRS,
        "rollback_config": ROLLOUT,
        "update_config": ROLLOUT,
        "resources": Table(
            known={
                "limits": Table(known={"cpus": NUMBER_TEXT, "memory": TEXT, "pids": INTEGER_TEXT}),
                "reservations": Table(
                    known={
                        "cpus": NUMBER_TEXT,
                        "memory": TEXT,
                        "generic_resources": Items(
                            item=Table(
                                known={
                                    "discrete_resource_spec": Table(
                                        known={"kind": TEXT, "value": NUMBER_TEXT}
                                    )
                                }
                            )
                        ),
                        "devices": Items(item=Table(known=DEVICE, required=("capabilities",))),
                    }
                ),
            }
        ),
        "restart_policy": Table(
            known={"condition": TEXT, "delay": TEXT, "max_attempts": INTEGER_TEXT, "window": TEXT}
        ),
        "placement": Table(
            known={
                "constraints": TEXTS,
                "preferences": Items(item=Table(known={"spread": TEXT})),
                "max_replicas_per_node": INTEGER_TEXT,
            }
        ),
    }
)
