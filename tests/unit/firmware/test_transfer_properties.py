"""Whatever is lost, doubled, broken or restarted: no wrong blob, and in the end a whole one."""

from hypothesis import given, settings
from hypothesis import strategies as st

from firmware.transfer import TransferError
from tests.unit.firmware.transfer_fakes import MS, TransferRig

FAULTS = st.lists(
    st.tuples(
        st.integers(1, 400),  # loop steps before it
        st.sampled_from(
            ["flip", "flip_head", "drop", "double", "stray", "agent", "daemon", "deaf", "link"]
        ),
        st.integers(0, 2**14 - 1),
    ),
    max_size=12,
)


class Trouble:
    """Applies one fault of the list at a time."""

    def __init__(self, rig: TransferRig) -> None:
        self.rig = rig
        self.drops = self.doubles = self.losses = 0
        self.hook()
        rig.link.lose = self.lose

    def lose(self) -> bool:
        self.losses -= 1
        return self.losses >= 0

    def hook(self) -> None:
        for channel in (self.rig.card_channel, self.rig.cnm_channel):
            deliver = channel.on_chunk
            if getattr(deliver, "troubled", False):
                continue

            def leaky(
                kind: int, transfer_id: int, chunk: int, data: bytes, deliver: object = deliver
            ) -> None:
                if self.drops > 0:
                    self.drops -= 1
                    return
                for _ in range(1 + min(self.doubles, 1)):
                    deliver(kind, transfer_id, chunk, data)  # type: ignore[operator]
                self.doubles = max(0, self.doubles - 1)

            leaky.troubled = True  # type: ignore[attr-defined]
            channel.on_chunk = leaky

    def cause(self, fault: str, where: int) -> None:
        rig = self.rig
        if fault == "flip":
            rig.windows.halves[where & 1][0x100 + where % (2**14 - 0x100)] ^= 1 << (where % 8)
        elif fault == "flip_head":
            rig.windows.halves[where & 1][where % 0x100] ^= 1 << (where % 8)
        elif fault == "drop":
            self.drops += where % 5
        elif fault == "double":
            self.doubles += where % 5
        elif fault == "stray":
            transfer_id = rig.sender._next_id - 1
            rig.card_channel.send(where % 4, transfer_id, where % 50, bytes(where % 257))
        elif fault == "agent":
            rig.kill_cnm()
            rig.start_cnm(keep_store=bool(where & 1))
        elif fault == "daemon":  # only its window end; the transfers are the test's to repeat
            rig.card_channel._stop()
            rig.card_channel.attach()
        elif fault == "deaf":
            rig.windows.bells[where & 1].deaf = bool(where & 2)
        elif fault == "link":
            self.losses = where % 6
        self.hook()


@settings(max_examples=120, deadline=None)
@given(FAULTS, st.integers(0, 9_000), st.booleans(), st.integers(0, 2**32))
def test_no_fault_admits_a_wrong_blob_or_loses_a_right_one(
    faults: list[tuple[int, str, int]], size: int, pushing: bool, seed: int
) -> None:
    rig = TransferRig(seed=seed)
    trouble = Trouble(rig)
    _, data = rig.blob(size)
    source, sink = (rig.card_blobs, rig.cnm_blobs) if pushing else (rig.cnm_blobs, rig.card_blobs)
    digest = source.put(data)
    start = rig.sender.push if pushing else rig.sender.pull
    results: list[TransferError | None] = []
    start(digest, results.append)
    for steps, fault, where in faults:
        for _ in range(steps):
            if not rig.reactor.step():
                rig.reactor.advance(MS)
        trouble.cause(fault, where)
        assert sink.whole.get(digest, data) == data
    trouble.drops = trouble.losses = 0
    for bell in rig.windows.bells:
        bell.deaf = False
    rig.reactor.run_until(lambda: bool(results))
    for _ in range(3):  # a transfer may be given up under so many faults; the next one holds
        if results[-1] is None:
            break
        assert isinstance(results[-1], TransferError)
        count = len(results)
        start(digest, results.append)
        rig.reactor.run_until(lambda count=count: len(results) > count)  # type: ignore[misc]
    assert results[-1] is None
    assert sink.whole == {digest: data}
