"""HostView port through the keeper."""

from collections.abc import Mapping, Sequence

from hal.errors import HalError, PeerGone
from hal.local.client import KeeperClient, KeeperReply
from hal.local.wire import JsonObject
from hal.ports import Done, HostProcess


class LocalHostView:
    """CNM pids are those that its init sees, also for processes in containers."""

    def __init__(self, client: KeeperClient) -> None:
        self._client = client

    def submit_lookup(
        self,
        slot: int,
        cnm_pids: Sequence[int],
        deadline_ns: int,
        done: Done[Mapping[int, HostProcess]],
    ) -> None:
        def on_reply(reply: KeeperReply | HalError) -> None:
            if isinstance(reply, HalError):
                done(reply)
                return
            try:
                found = {
                    row["nspid"]: HostProcess(
                        pid=row["pid"], start_ticks=row["start_ticks"], cgroup=row["cgroup"]
                    )
                    for row in reply.result["processes"]
                }
            except (KeyError, TypeError) as exc:
                done(PeerGone(f"the keeper's list of processes is not ours: {exc}"))
                return
            done(found)

        arguments: JsonObject = {"slot": slot}
        if cnm_pids:
            arguments = {"slot": slot, "nspids": list(cnm_pids)}
        self._client.request("pids", arguments, deadline_ns, on_reply)
