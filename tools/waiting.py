"""Waiting for a workload to run or to be gone, by asking the daemon (`apf submit --wait`)."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tools.client import Client
from tools.errors import CheckFailed, DaemonRefused, DeadlinePassed
from tools.polls import polls

POLL_MS: Final = 100
Instance = Mapping[str, Any]


def wait_until_running(
    client: Client,
    workload: str,
    *,
    timeout_ms: int,
    tell: Callable[[Sequence[Instance]], None],
) -> list[Instance]:
    """Every instance seen to run (or to have ended well). `tell` hears each poll. Raises
    CheckFailed as soon as one has failed for good, DeadlinePassed with what is not there."""
    instances: list[Instance] = []
    for _ in polls(timeout_ms, step_ms=POLL_MS):
        instances = client.call("workload.ps", {"workload": workload})
        tell(instances)
        failed = [item for item in instances if item.get("phase") == "FAILED"]
        if failed:
            why = failed[0].get("reason") or "no reason given"
            raise CheckFailed(
                "instance_failed",
                f"{failed[0].get('instance')} failed: {why}",
                {"instances": [dict(item) for item in failed]},
            )
        if instances and all(_is_good(item) for item in instances):
            return instances
    late = [item for item in instances if not _is_good(item)]
    raise DeadlinePassed(
        "not_running",
        f"{workload}: not all instances run after {timeout_ms / 1000:g} s\n"
        + "\n".join(f"  {why_waiting(item)}" for item in late[:20]),
        {"instances": [dict(item) for item in late]},
    )


def wait_until_gone(client: Client, workload: str, *, timeout_ms: int) -> int:
    """Milliseconds until nothing of it is left and its name is free, or taken anew by somebody
    who was faster. Raises DeadlinePassed."""
    for waited_ms in polls(timeout_ms, step_ms=POLL_MS):
        try:
            [row] = client.call("workload.list", {"workload": workload})
        except DaemonRefused as exc:
            if exc.code != "unknown_workload":
                raise
            return waited_ms
        if not row["removing"]:
            return waited_ms
    raise DeadlinePassed(
        "not_gone", f"{workload} is not gone after {timeout_ms / 1000:g} s", {"workload": workload}
    )


def _is_good(item: Instance) -> bool:
    """Seen to run, and healthy where a healthcheck says so; or it had a job, and has done it."""
    healthy = item.get("health") in (None, "healthy")
    return item.get("phase") == "STOPPED" or (item.get("phase") == "RUNNING" and healthy)


def why_waiting(item: Instance) -> str:
    """`shop/db/0 PENDING: cnm0: memory ...; cnm1: ...`."""
    pending = item.get("pending") or {}
    whys = [f"{cnm}: {why}" for cnm, why in pending.items()] or [str(item.get("reason") or "")]
    return f"{item.get('instance')} {item.get('phase')}: {'; '.join(whys)}".rstrip(": ")


def phases(instances: Sequence[Instance]) -> str:
    """`3 RUNNING, 1 STAGING`."""
    counts = Counter(str(item.get("phase")) for item in instances)
    return ", ".join(f"{count} {phase}" for phase, count in sorted(counts.items()))
