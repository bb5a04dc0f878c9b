"""What follows from a refusal: pure decisions, made from the table of codes alone.

Invariant: a mutation of which some attempt was not definite never ends in a definite error (`final_error`).
Invariant: pauses are jittered, grow, and have a ceiling.
Source: AWS Architecture Blog, "Exponential Backoff and Jitter"; the outcomes are those of Jepsen's Maelstrom.
"""

from __future__ import annotations

import random
from enum import Enum

from kvstore.base.errors import CODES, ERRORS, Code, KVError, Retry, Timeout, Unavailable

BACKOFF_SECONDS_MIN = 0.02
BACKOFF_SECONDS_MAX = 1.0
HUNT_SECONDS_MIN = 0.01  # between tries to find a shard's leader: an election takes a second or two,
HUNT_SECONDS_MAX = 0.1  # and a try is cheap, so the new leader is found soon after it is there

_KNOWN = {int(code): code for code in Code}


class Verdict(Enum):
    """What to do with an operation that was refused."""

    RAISE = "raise"  # tell the caller
    RESTAMP = "restamp"  # nothing can have happened: stamp it anew and send it at once
    REROUTE = "reroute"  # look for the right place
    BACKOFF = "backoff"  # the same again after a pause
    DIVIDE = "divide"  # something in the frame was bad, or it was too much: in smaller frames


def judge(code: int, *, uncertain: bool, crowd: bool, applied: bool) -> Verdict:
    """`uncertain`: an attempt, this one included, may have taken effect. `crowd`: the refusal was of a shared frame.
    `applied`: the shard refused this one mutation when it came to apply it."""
    known = _KNOWN.get(code)
    if known is None:
        return Verdict.RAISE  # a code of a newer server: its `definite` still counts
    info = CODES[known]
    if known is Code.SESSION_EXPIRED and not uncertain:
        return Verdict.RESTAMP
    if known is Code.INVALID and applied:
        # The form was checked before; what is left is a stamp ahead of the shard's. If an earlier attempt may still
        # be under way, the stamp must stay, and the shard's will catch up.
        return Verdict.BACKOFF if uncertain else Verdict.RESTAMP
    if known in (Code.INVALID, Code.TOO_LARGE) and crowd:
        return Verdict.DIVIDE
    match info.retry:
        case Retry.NEVER:
            return Verdict.RAISE
        case Retry.REROUTE:
            return Verdict.REROUTE
        case Retry.BACKOFF:
            return Verdict.BACKOFF


def error_of(code: int, message: str, *, definite: bool, retry_after_ms: int = 0) -> KVError:
    """The exception for a code from the wire."""
    known = _KNOWN.get(code)
    if known is not None:
        return ERRORS[known](message, definite=definite, retry_after_ms=retry_after_ms)
    return Unavailable(f"unknown code {code}: {message}", definite=definite, retry_after_ms=retry_after_ms)


def final_error(error: KVError, *, uncertain: bool) -> KVError:
    """What the caller gets when nothing more is tried; `error` is the last thing heard."""
    if uncertain:
        return Timeout(
            f"the outcome is unknown: the operation may or may not have taken effect; last heard: {error.message}",
            definite=False,
            detail=error.detail,
        )
    if error.info.retry is Retry.REROUTE or error.code is Code.TIMEOUT:
        return Unavailable(f"not done: {error.message}", definite=True, detail=error.detail)
    # A new one for each caller: raising writes into an exception.
    return type(error)(error.message, definite=True, retry_after_ms=error.retry_after_ms, detail=error.detail)


def backoff_seconds(attempts: int, retry_after_ms: int, rng: random.Random) -> float:
    """The pause before attempt number `attempts` + 1; never shorter than what the server asked for."""
    assert attempts >= 1
    base = max(retry_after_ms / 1000, BACKOFF_SECONDS_MIN)
    grown = base * 2.0 ** min(attempts - 1, 10)
    return max(base, min(grown, BACKOFF_SECONDS_MAX)) * rng.uniform(1.0, 1.5)


class Pace:
    """How fast a shard whose leader is not found is tried again. Forgotten with the first answer from the shard."""

    __slots__ = ("misses", "not_before")

    def __init__(self) -> None:
        self.misses = 0
        self.not_before = 0.0  # loop time; until then operations for the shard wait

    def miss(self, now: float, *, news: bool, rng: random.Random) -> float:
        """Seconds to wait. With news (another place to ask) the first two tries follow at once; not more, since
        two nodes that each think that the other leads would be asked in a circle without a pause."""
        if now < self.not_before:
            return self.not_before - now  # one miss a pause, however many frames were under way
        self.misses += 1
        if news and self.misses <= 2:
            return 0.0
        delay = min(HUNT_SECONDS_MIN * 1.5 ** min(self.misses - 1, 20), HUNT_SECONDS_MAX) * rng.uniform(0.5, 1.0)
        self.not_before = now + delay
        return delay
