"""A window in shared memory whose reader and writer are killed at random points."""

import random
import time

import pytest

from tests.hil.pump import CHUNK_BYTES, Worker, crc_of, progress, read, write

pytestmark = pytest.mark.process
CHUNKS = 16_384  # 1 GiB
KILLS = 12


@pytest.mark.parametrize("seed", [1, 2])
def test_every_chunk_comes_once_and_in_order_whoever_is_killed(tmp_path, seed):
    draw = random.Random(seed)
    window, kept = tmp_path / "window", tmp_path / "kept"
    window.write_bytes(bytes(16 << 20))
    writer = Worker(lambda: write(f"map:{window}?side=a", CHUNKS))
    reader = Worker(lambda: read(f"map:{window}?side=b", CHUNKS, kept))
    workers = [writer, reader]
    for worker in workers:
        worker.start()
    at = sorted(draw.randrange(CHUNKS * 9 // 10) for _ in range(KILLS))  # by chunks, not by time
    deadline = time.monotonic() + 100
    try:
        while not (reader.ended() and writer.ended()):
            assert time.monotonic() < deadline, f"{progress(kept)} of {CHUNKS}"
            time.sleep(draw.uniform(0.001, 0.02))
            if at and progress(kept)[0] >= at[0]:
                del at[0]
                draw.choice(workers).kill_and_restart()
    finally:
        for worker in workers:
            worker.stop()
    assert progress(kept) == (CHUNKS, crc_of(CHUNKS))
    assert writer.kills + reader.kills == KILLS
    print(f"{CHUNKS * CHUNK_BYTES >> 20} MiB, {writer.kills} and {reader.kills} kills")
