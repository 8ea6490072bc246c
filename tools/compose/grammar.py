"""What a Compose file may hold: every key of the Compose Specification, and its shape.

Ref: compose-spec 04 to 10 (services, networks, volumes, configs, secrets, models), deploy.md,
build.md, develop.md. The specification's JSON schema is the outside judge in the tests.
"""

from typing import Final

from tools.compose.grammar_parts import EXTERNAL, OPTIONS
from tools.compose.grammar_service import SERVICE
from tools.compose.shape import (
    BOOL_TEXT,
    INTEGER,
    NAME_PATTERN,
    NULL,
    PAIRS,
    TEXT,
    TEXT_OR_TEXTS,
    TEXTS,
    Items,
    Named,
    Shape,
    Table,
    either,
)

NETWORK: Final = Table(
    known={
        "name": TEXT,
        "driver": TEXT,
        "driver_opts": OPTIONS,
        "ipam": Table(
            known={
                "driver": TEXT,
                "config": Items(
                    item=Table(
                        known={
                            **dict.fromkeys(("subnet", "ip_range", "gateway"), TEXT),
                            "aux_addresses": Named(item=TEXT),
                        }
                    )
                ),
                "options": Named(item=TEXT),
            }
        ),
        "external": EXTERNAL,
        **dict.fromkeys(("internal", "enable_ipv4", "enable_ipv6", "attachable"), BOOL_TEXT),
        "labels": PAIRS,
    }
)
VOLUME: Final = Table(
    known={
        "name": TEXT,
        "driver": TEXT,
        "driver_opts": OPTIONS,
        "external": EXTERNAL,
        "labels": PAIRS,
    }
)
_STORED: Final[dict[str, Shape]] = {
    **dict.fromkeys(("name", "environment", "file", "template_driver"), TEXT),
    "external": EXTERNAL,
    "labels": PAIRS,
}
DOCUMENT: Final = Table(
    known={
        "version": TEXT,
        "name": TEXT,
        "include": Items(
            item=either(
                TEXT,
                Table(
                    known={
                        "path": TEXT_OR_TEXTS,
                        "env_file": TEXT_OR_TEXTS,
                        "project_directory": TEXT,
                    },
                    extensions=False,
                ),
            )
        ),
        "services": Named(item=SERVICE, pattern=NAME_PATTERN),
        "models": Named(
            item=Table(
                known={
                    "name": TEXT,
                    "model": TEXT,
                    "context_size": INTEGER,
                    "runtime_flags": TEXTS,
                },
                required=("model",),
            ),
            pattern=NAME_PATTERN,
        ),
        "networks": Named(item=either(NETWORK, NULL), pattern=NAME_PATTERN),
        "volumes": Named(item=either(VOLUME, NULL), pattern=NAME_PATTERN),
        "secrets": Named(
            item=Table(known={**_STORED, "driver": TEXT, "driver_opts": OPTIONS}),
            pattern=NAME_PATTERN,
        ),
        "configs": Named(item=Table(known={**_STORED, "content": TEXT}), pattern=NAME_PATTERN),
    },
    want="a Compose file",
)
