"""The token bucket: never more than the burst and the rate give, and nothing is lost by asking."""

from hypothesis import given
from hypothesis import strategies as st

from firmware.tokens import SECOND_NS, Tokens


@given(
    per_s=st.integers(1, 1_000),
    burst=st.integers(1, 1_000),
    steps_ns=st.lists(st.integers(0, SECOND_NS), max_size=50),
)
def test_what_is_taken_is_bounded_by_burst_and_rate(
    per_s: int, burst: int, steps_ns: list[int]
) -> None:
    tokens = Tokens(0, per_s=per_s, burst=burst)
    now_ns = taken = 0
    for step_ns in [0, *steps_ns]:
        now_ns += step_ns
        while tokens.take(now_ns):
            taken += 1
        assert taken <= burst + now_ns * per_s // SECOND_NS


@given(per_s=st.integers(1, 1_000), asked_ns=st.lists(st.integers(1, 10_000_000), max_size=50))
def test_asking_in_between_does_not_put_the_next_token_off(per_s: int, asked_ns: list[int]) -> None:
    tokens = Tokens(0, per_s=per_s, burst=1)
    assert tokens.take(0)
    due_ns = -(-SECOND_NS // per_s)
    now_ns = 0
    for step_ns in asked_ns:
        if now_ns + step_ns >= due_ns:
            break
        now_ns += step_ns
        assert not tokens.take(now_ns)
    assert tokens.take(due_ns)
