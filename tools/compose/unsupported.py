"""What a card does not do, in words: each key that is there becomes a warning with its line."""

from typing import Final

from tools.compose.cursor import Cursor

_NETWORK: Final = "instances have a loopback network only; this is left out"
_SECURITY: Final = "the runtime's own defaults are used; this is left out"
_DOCKER: Final = "has no meaning on a card; this is left out"
_LIMIT: Final = "this limit is not set on a card; it is left out"

SERVICE: Final = {
    "annotations": _DOCKER,
    "attach": _DOCKER,
    "blkio_config": _LIMIT,
    "cap_add": _SECURITY,
    "cap_drop": _SECURITY,
    "cgroup": _SECURITY,
    "cgroup_parent": _DOCKER,
    "configs": "configs are not mounted; this is left out",
    "container_name": "instances are named WORKLOAD/COMPONENT/INDEX; this is left out",
    "cpu_count": _LIMIT,
    "cpu_percent": _LIMIT,
    "cpu_rt_period": _LIMIT,
    "cpu_rt_runtime": _LIMIT,
    "cpu_shares": _LIMIT,
    "cpuset": _LIMIT,
    "credential_spec": _DOCKER,
    "develop": _DOCKER,
    "device_cgroup_rules": _SECURITY,
    "devices": "host devices are not passed on; reserve them in deploy.resources",
    "dns": _NETWORK,
    "dns_opt": _NETWORK,
    "dns_search": _NETWORK,
    "domainname": _NETWORK,
    "expose": _NETWORK,
    "external_links": _NETWORK,
    "extra_hosts": _NETWORK,
    "group_add": _SECURITY,
    "init": "instances have no extra init; this is left out",
    "ipc": _SECURITY,
    "isolation": _DOCKER,
    "label_file": _DOCKER,
    "labels": "labels of containers are not kept; placement labels are in x-apf.labels",
    "links": _NETWORK,
    "logging": "the card keeps the output in bounded files; this is left out",
    "mac_address": _NETWORK,
    "mem_swappiness": _LIMIT,
    "memswap_limit": _LIMIT,
    "models": _DOCKER,
    "network_mode": _NETWORK,
    "networks": _NETWORK,
    "oom_kill_disable": _LIMIT,
    "oom_score_adj": _LIMIT,
    "pid": _SECURITY,
    "ports": _NETWORK,
    "post_start": "hooks are not run; this is left out",
    "pre_stop": "hooks are not run; this is left out",
    "privileged": _SECURITY,
    "pull_policy": "a card pulls nothing; bring images by `apf image import`",
    "pull_refresh_after": "a card pulls nothing; bring images by `apf image import`",
    "runtime": "Docker's runtimes are not used; x-apf.runtime chooses auto, oci or process",
    "secrets": "secrets are not mounted at /run/secrets; this is left out",
    "security_opt": _SECURITY,
    "shm_size": _LIMIT,
    "stdin_open": "instances have no standard input; this is left out",
    "storage_opt": _DOCKER,
    "sysctls": _SECURITY,
    "tty": "instances have no terminal; this is left out",
    "ulimits": _LIMIT,
    "use_api_socket": _DOCKER,
    "userns_mode": _SECURITY,
    "uts": _SECURITY,
    "volumes_from": "volumes of other services are not shared this way; name them instead",
}
DEPLOY: Final = {
    "endpoint_mode": _NETWORK,
    "labels": "labels of services are not kept; placement labels are in x-apf.labels",
    "rollback_config": "workloads are replaced, not rolled; this is left out",
    "update_config": "workloads are replaced, not rolled; this is left out",
}
DOCUMENT: Final = {
    "configs": "configs are not mounted; this is left out",
    "models": _DOCKER,
    "networks": _NETWORK,
    "secrets": "secrets are not mounted; this is left out",
    "version": "obsolete, and not looked at",
}
VOLUME: Final = {
    "driver": "volumes live on the card's own storage; this is left out",
    "driver_opts": "volumes live on the card's own storage; this is left out",
    "labels": "labels of volumes are not kept",
}
_USUAL: Final = {"driver": ("local",), "pull_policy": ("never", "missing", "if_not_present")}


def warn_unsupported(at: Cursor, words: dict[str, str]) -> None:
    """One warning for each key of `words` that says more than nothing."""
    for key, below in at.entries():
        if key not in words or below.value in (None, False, "", "false", [], {}):
            continue
        if below.value in _USUAL.get(key, ()):
            continue
        below.warn(f"unsupported_{key}", words[key])
