"""An image and the workloads that use it, while either is still on its way to the disk."""

from typing import Any

import pytest

from tests.fuzz.targets import card as target
from tools.sim.documents import image, layer

LAYER = layer({"a": b"x"})
WORKLOAD = {
    "schema": "apf-workload/1",
    "name": "x",
    "components": [{"name": "c", "image": "app:1", "resources": {"cpu_milli": 100}}],
}
REMOVE = ("image.remove", {"ref": "app:1"})
SUBMIT = ("workload.submit", {"workload": WORKLOAD})


class _SlowStore(target.Store):
    """A disk that answers when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.held: list[tuple[Any, Any]] | None = None

    def submit(self, batch: Any, done: Any) -> None:
        if self.held is None:
            super().submit(batch, done)
        else:
            self.held.append((tuple(batch), done))

    def answer(self) -> None:
        waiting, self.held = self.held or [], None
        for batch, done in waiting:
            super().submit(batch, done)


@pytest.mark.parametrize(
    ("first", "second", "word"),
    [(REMOVE, SUBMIT, b"image_missing"), (SUBMIT, REMOVE, b"image_in_use")],
)
def test_an_image_never_goes_from_under_a_workload_that_was_accepted(
    monkeypatch: pytest.MonkeyPatch, first: Any, second: Any, word: bytes
) -> None:
    monkeypatch.setattr(target, "Store", _SlowStore)
    bench: Any = target.Bench()
    for _ in range(40):
        bench.answer()
    bench.card.images._blobs.put(LAYER)
    bench.operate("image.begin", {"ref": "app:1", "manifest": image("app:1", LAYER)})
    bench.operate("image.commit", {"ref": "app:1"})
    bench.store.held = []
    bench.operate(*first)
    bench.operate(*second)
    assert word in bench.answers[-1]
    bench.store.answer()
    bench.loop.advance(1)
    known = bench.card.images.resolve("app:1") is not None
    assert known == ("x" in bench.card.decisions.workloads)
