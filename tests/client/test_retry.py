"""The decisions, by table."""

from __future__ import annotations

import random

import pytest

from kvstore.base.errors import CODES, ERRORS, Code, Conflict, KVError, Overloaded, Retry, Timeout, Unavailable
from kvstore.client.retry import (
    BACKOFF_SECONDS_MAX,
    BACKOFF_SECONDS_MIN,
    HUNT_SECONDS_MAX,
    Pace,
    Verdict,
    backoff_seconds,
    error_of,
    final_error,
    judge,
)


@pytest.mark.parametrize("code", list(Code))
def test_each_code_is_judged_by_its_row(code: Code) -> None:
    expected = {
        Retry.NEVER: Verdict.RAISE,
        Retry.REROUTE: Verdict.REROUTE,
        Retry.BACKOFF: Verdict.BACKOFF,
    }[CODES[code].retry]
    assert judge(code, uncertain=True, crowd=False, applied=False) is expected


def test_the_exceptions_to_the_rows() -> None:
    assert judge(Code.SESSION_EXPIRED, uncertain=False, crowd=False, applied=True) is Verdict.RESTAMP
    assert judge(Code.SESSION_EXPIRED, uncertain=True, crowd=False, applied=True) is Verdict.RAISE
    assert judge(Code.INVALID, uncertain=False, crowd=True, applied=False) is Verdict.DIVIDE
    assert judge(Code.TOO_LARGE, uncertain=True, crowd=True, applied=False) is Verdict.DIVIDE
    assert judge(Code.INVALID, uncertain=False, crowd=False, applied=True) is Verdict.RESTAMP
    assert judge(Code.INVALID, uncertain=True, crowd=False, applied=True) is Verdict.BACKOFF
    assert judge(Code.FORBIDDEN, uncertain=False, crowd=True, applied=False) is Verdict.RAISE
    assert judge(999, uncertain=False, crowd=True, applied=False) is Verdict.RAISE


@pytest.mark.parametrize("kind", list(ERRORS.values()))
def test_the_final_error_is_definite_only_if_all_attempts_were(kind: type[KVError]) -> None:
    certain = final_error(kind("why", definite=True, detail=5), uncertain=False)
    assert certain.definite
    assert certain.outcome == "failed"
    assert certain.detail == 5
    assert "why" in certain.message
    if kind.code in (Code.NOT_LEADER, Code.STALE_ROUTE, Code.TIMEOUT):
        assert type(certain) is Unavailable  # "not leader" is the client's affair, not the caller's
    else:
        assert type(certain) is kind
    unknown = final_error(kind("why"), uncertain=True)
    assert type(unknown) is Timeout
    assert unknown.outcome == "unknown"
    assert "the outcome is unknown" in unknown.message


def test_callers_never_share_an_exception() -> None:
    error = Overloaded()
    assert final_error(error, uncertain=False) is not final_error(error, uncertain=False)


def test_codes_from_the_wire() -> None:
    assert type(error_of(Code.CONFLICT, "m", definite=True)) is Conflict
    strange = error_of(77, "m", definite=False)
    assert (type(strange), strange.definite) == (Unavailable, False)


def test_pauses_grow_have_a_ceiling_and_respect_the_server() -> None:
    rng = random.Random(1)
    for attempts in range(1, 40):
        assert BACKOFF_SECONDS_MIN <= backoff_seconds(attempts, 0, rng) <= BACKOFF_SECONDS_MAX * 1.5
        assert 5.0 <= backoff_seconds(attempts, 5_000, rng) <= 7.5
    firsts = {backoff_seconds(1, 0, rng) for _ in range(20)}
    assert len(firsts) > 10  # jitter


def test_a_hunt_is_quick_at_first_and_never_a_busy_loop() -> None:
    pace = Pace()
    rng = random.Random(2)
    assert pace.miss(0.0, news=True, rng=rng) == 0.0
    assert pace.miss(0.0, news=True, rng=rng) == 0.0
    now, tries = 0.0, 0
    while now < 1.0:
        delay = pace.miss(now, news=True, rng=rng)
        assert 0 < delay <= HUNT_SECONDS_MAX
        assert pace.miss(now + delay / 2, news=True, rng=rng) == pytest.approx(delay / 2)  # the same pause
        now += delay
        tries += 1
    assert 10 <= tries <= 40
