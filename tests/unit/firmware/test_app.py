"""firmware.app: who may open the control socket."""

import os

import pytest

from firmware import app


@pytest.mark.parametrize(
    ("uid", "groups", "found", "wanted"),
    [
        (0, [], 77, 77),
        (0, [], None, None),
        (1000, [77], 77, 77),
        (1000, [1000], 77, None),  # chown would be refused
    ],
)
def test_the_socket_is_given_to_the_operators_group_where_that_is_allowed(
    uid: int,
    groups: list[int],
    found: int | None,
    wanted: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app, "group_id", {app.OPERATORS_GROUP: found}.get)
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setattr(os, "getgroups", lambda: groups)
    assert app.socket_gid() == wanted
