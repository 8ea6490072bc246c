"""Reading what a CNM really runs: pages of STATUS, one consistent report (SPEC, status)."""

from collections.abc import Callable
from typing import Final

from firmware.endpoint import RequestError
from firmware.inventory import Cnm
from protocol.apf import STATUS_END, InstanceStatus, StatusReply, StatusRequest

PAGES_LIMIT: Final = 256  # of 16 instances
RESTARTS_LIMIT: Final = 8  # the report changed while it was read


class StatusReader:
    """At most one read under way per CNM; a wish that comes meanwhile causes another read."""

    def __init__(self, on_report: Callable[[Cnm, set[str]], None]) -> None:
        """`on_report(cnm, changed)` with the instances whose status differs from before."""
        self._on_report = on_report
        self._reading: dict[str, list[Callable[[bool], None]]] = {}
        self._again: set[str] = set()

    def wish(self, cnm: Cnm) -> None:
        """Read soon; a change was announced."""
        if cnm.id in self._reading:
            self._again.add(cnm.id)
        elif cnm.agent_ready:
            self.read(cnm, lambda _good: None)

    def read(self, cnm: Cnm, done: Callable[[bool], None]) -> None:
        """Read all pages; `done(True)` when `cnm.observed` is a new, whole report."""
        waiting = self._reading.get(cnm.id)
        if waiting is not None:
            waiting.append(done)
            return
        self._reading[cnm.id] = [done]
        _Report(cnm, lambda report: self._finish(cnm, report)).start()

    def _finish(self, cnm: Cnm, report: "_Report | None") -> None:
        waiting = self._reading.pop(cnm.id)
        again = cnm.id in self._again
        self._again.discard(cnm.id)
        if report is not None:
            before, cnm.observed = cnm.observed, report.entries
            cnm.observed_seq = report.status_seq
            names = before.keys() | report.entries.keys()
            changed = {name for name in names if before.get(name) != report.entries.get(name)}
            self._on_report(cnm, changed)
        for done in waiting:
            done(report is not None)
        if again:
            self.wish(cnm)


class _Report:
    def __init__(self, cnm: Cnm, done: "Callable[[_Report | None], None]") -> None:
        self.entries: dict[str, InstanceStatus] = {}
        self.status_seq = 0
        self._cnm = cnm
        self._done = done
        self._boot_id = cnm.boot_id
        self._restarts = 0
        self._pages = 0

    def start(self) -> None:
        self.entries = {}
        self._pages = 0
        self._ask(0)

    def _ask(self, cursor: int) -> None:
        self._cnm.agent.request(StatusRequest(cursor=cursor), lambda r: self._on(r, cursor))

    def _on(self, reply: StatusReply | RequestError, cursor: int) -> None:
        if isinstance(reply, RequestError) or reply.boot_id != self._boot_id:
            self._done(None)
            return
        if cursor and reply.status_seq != self.status_seq:  # it moved while we were reading
            self._restarts += 1
            if self._restarts > RESTARTS_LIMIT:
                self._done(None)
            else:
                self.start()
            return
        self.status_seq = reply.status_seq
        self.entries.update((entry.instance, entry) for entry in reply.entries)
        self._pages += 1
        if reply.next_cursor == STATUS_END:
            self._done(self)
        elif reply.next_cursor <= cursor or self._pages >= PAGES_LIMIT:
            self._done(None)  # a cursor that does not advance would keep us here for ever
        else:
            self._ask(reply.next_cursor)
