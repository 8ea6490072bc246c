"""Init keeps an agent running, whatever becomes of it."""

from firmware.cnm.supervisor import (
    BACKOFF_FIRST_MS,
    BACKOFF_MAX_MS,
    START_MS,
    STEADY_MS,
    AgentSupervisor,
)
from firmware.signs_of_life import HUNG_MIN_MS as HUNG_MS
from hal.errors import LinkDown, Unavailable


class FakeStream:
    def __init__(self, handle: int) -> None:
        self.handle = handle

    def read(self) -> bytes:
        raise LinkDown("closed")

    def write(self, data: bytes) -> int:
        return len(data)

    def close(self) -> None: ...


class FakeAgent:
    def __init__(self, pid: int, on_exit) -> None:
        self.pid, self.on_exit, self.signals = pid, on_exit, []

    def kill(self, signal: int) -> None:
        self.signals.append(signal)


class Bench:
    def __init__(self, loop) -> None:
        self.loop, self.agents, self.log = loop, [], []
        self.refuse = False
        self.supervisor = AgentSupervisor(
            loop, self.start, lambda peer: None, self.log.append, hung_ms=HUNG_MS
        )

    def start(self, on_exit):
        if self.refuse:
            raise Unavailable("no memory")
        self.agents.append(FakeAgent(100 + len(self.agents), on_exit))
        return FakeStream(len(self.agents)), self.agents[-1]


def test_an_agent_that_ends_is_started_again_later_and_later(loop) -> None:
    bench = Bench(loop)
    bench.supervisor.start()
    waits = []
    for _ in range(8):
        bench.agents[-1].on_exit(-9)
        count, waited = len(bench.agents), 0
        while len(bench.agents) == count:
            loop.advance(10)
            waited += 10
        waits.append(waited)
    assert waits[0] == BACKOFF_FIRST_MS
    assert waits == sorted(waits)
    assert waits[-1] == BACKOFF_MAX_MS


def test_an_agent_that_lived_long_is_started_again_at_once(loop) -> None:
    bench = Bench(loop)
    bench.supervisor.start()
    for _ in range(5):
        bench.agents[-1].on_exit(1)
        loop.advance(BACKOFF_MAX_MS)
    for _ in range(STEADY_MS // 1000):
        bench.supervisor.seen()
        loop.advance(1000)
    count = len(bench.agents)
    bench.agents[-1].on_exit(1)
    loop.advance(BACKOFF_FIRST_MS)
    assert len(bench.agents) == count + 1


def test_an_agent_without_a_sign_of_life_is_killed(loop) -> None:
    bench = Bench(loop)
    bench.supervisor.start()
    for _ in range(30):
        bench.supervisor.seen()
        loop.advance(HUNG_MS / 2)
    assert bench.agents[0].signals == []
    loop.advance(HUNG_MS)
    assert bench.agents[0].signals == [9]


def test_an_agent_that_starts_slowly_is_not_taken_for_a_hanging_one(loop) -> None:
    bench = Bench(loop)
    bench.supervisor.start()
    loop.advance(START_MS - 1)
    assert bench.agents[0].signals == []
    loop.advance(2)
    assert bench.agents[0].signals == [9]


def test_an_agent_that_hangs_right_after_its_first_sign_is_killed_as_soon_as_any(loop) -> None:
    bench = Bench(loop)
    bench.supervisor.start()
    bench.supervisor.seen()
    loop.advance(HUNG_MS)
    assert bench.agents[0].signals == [9]


def test_the_next_agent_has_as_long_to_start_as_the_first_one(loop) -> None:
    bench = Bench(loop)
    bench.supervisor.start()
    bench.supervisor.seen()
    bench.agents[0].on_exit(1)
    loop.advance(BACKOFF_FIRST_MS)
    loop.advance(START_MS - 1)
    assert bench.agents[1].signals == []


def test_an_agent_that_cannot_be_started_is_tried_again(loop) -> None:
    bench = Bench(loop)
    bench.refuse = True
    bench.supervisor.start()
    loop.advance(500)
    assert "no memory" in bench.log[0]
    bench.refuse = False
    loop.advance(BACKOFF_MAX_MS)
    assert bench.supervisor.pid == 100


def test_a_broken_stream_kills_its_agent(loop) -> None:
    bench = Bench(loop)
    bench.supervisor.start()
    bench.supervisor.peer.close("broken")
    assert bench.agents[0].signals == [9]
    assert bench.supervisor.peer is None


def test_a_stop_ends_the_agent_for_good(loop) -> None:
    bench = Bench(loop)
    bench.supervisor.start()
    done = []
    bench.supervisor.stop(lambda: done.append(True))
    assert bench.agents[0].signals == [15]
    bench.agents[0].on_exit(0)
    loop.advance(60_000)
    assert done == [True]
    assert len(bench.agents) == 1
