"""What people asked of the card and what it answered, read off its own dispatcher: whichever way a
request came, what was promised is known to the judge."""

import json
from collections.abc import Callable
from typing import Any, Final

from firmware.rpc import Caller, Deferred, Dispatcher, MethodTable
from tools.sim.invariants.decided import Decided

SUBMIT: Final = "workload.submit"
REMOVE: Final = "workload.remove"


class WatchedDispatcher(Dispatcher):
    """The daemon's dispatcher; submits and removals are noted when they are asked and when they
    are answered with a yes."""

    def __init__(self, table: MethodTable, book: Decided) -> None:
        super().__init__(table)
        self._book = book

    def dispatch(
        self,
        line: bytes,
        caller: Caller,
        fds: list[int],
        answer: Callable[[bytes], None],
    ) -> Deferred | None:
        method, params = _request(line)
        if method == REMOVE:
            self._book.asked_to_remove(str(params.get("name")))
        elif method == SUBMIT:
            self._book.asked_to_submit(params.get("workload"))
        else:
            return super().dispatch(line, caller, fds, answer)

        def answered(raw: bytes) -> None:
            if "error" not in json.loads(raw):
                if method == SUBMIT:
                    self._book.accepted(params["workload"])
                else:
                    self._book.removal_accepted(str(params["name"]))
            answer(raw)

        return super().dispatch(line, caller, fds, answered)


def _request(line: bytes) -> tuple[str, dict[str, Any]]:
    """Method and parameters; ("", {}) for what is no request of interest, well-formed or not."""
    if b'"workload.' not in line:
        return "", {}
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return "", {}
    if not isinstance(value, dict) or not isinstance(value.get("params"), dict):
        return "", {}
    return str(value.get("method")), value["params"]
