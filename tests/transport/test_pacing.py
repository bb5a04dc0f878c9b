"""Goal: pauses, rates and repeated warnings stay within what they promise. Method: tables on explicit time."""

from __future__ import annotations

import logging
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.transport.backoff import Backoff
from kvstore.transport.quiet_log import KEYS_MAX, REPEAT_SECONDS, QuietLog
from kvstore.transport.rate_limit import TokenBucket


def test_pauses_double_up_to_the_limit_and_are_spread() -> None:
    backoff = Backoff(seconds_min=0.02, seconds_max=1.0, rng=random.Random(1))
    wanted = [0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 1.0, 1.0]
    pauses = [backoff.next() for _ in wanted]
    assert all(whole / 2 <= pause <= whole for pause, whole in zip(pauses, wanted, strict=True))
    assert len(set(pauses)) == len(pauses)
    backoff.reset()
    assert backoff.next() <= 0.02
    backoff.slow_down()
    assert backoff.next() >= 0.5


@given(st.lists(st.tuples(st.integers(1, 5_000), st.floats(0, 2)), min_size=1, max_size=60))
def test_no_more_than_the_rate_and_the_burst(asked: list[tuple[int, float]]) -> None:
    rate, burst = 1_000.0, 500.0
    bucket = TokenBucket(rate=rate, burst=burst)
    now, sent = 0.0, 0
    largest = max(amount for amount, _ in asked)
    for amount, idle in asked:
        delay = bucket.reserve(amount, now=now)
        now += delay  # the sender waits that long, then sends
        sent += amount
        assert sent <= rate * now + burst + 1e-6 or delay == 0
        assert sent <= rate * now + burst + largest + 1e-6
        now += idle


def test_a_clock_that_steps_back_gives_nothing_away() -> None:
    bucket = TokenBucket(rate=100.0, burst=0.0)
    assert bucket.reserve(100, now=50.0) == 1.0
    assert bucket.reserve(100, now=10.0) == 2.0
    assert bucket.reserve(0, now=12.0) == 0.0


def test_the_same_warning_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    quiet = QuietLog(logging.getLogger("test"))
    said = [quiet.warn("n1", "no secret", now=now) for now in (0.0, 1.0, REPEAT_SECONDS - 0.1, REPEAT_SECONDS)]
    assert said == [True, False, False, True]
    assert quiet.warn("n2", "no secret", now=2.0)
    quiet.forget("n2")
    assert quiet.warn("n2", "again", now=3.0)
    assert caplog.messages == ["no secret", "no secret", "no secret", "again"]


def test_a_flood_of_different_warnings_is_forgotten() -> None:
    quiet = QuietLog(logging.getLogger("test"))
    for number in range(3 * KEYS_MAX):
        assert quiet.warn(str(number), "x", now=0.0)
    assert quiet.warn("0", "x", now=0.0)
    assert not quiet.warn(str(3 * KEYS_MAX - 1), "x", now=0.0)
