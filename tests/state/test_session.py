"""Goal: the oldest answer of a session is found, and its bytes are the same, whatever came and went before.

Method: random additions and removals against a plain minimum over all that is there.
"""

from __future__ import annotations

import random

import pytest

from kvstore.base.errors import DamagedRecord
from kvstore.base.operations import Mismatch, Result, encode
from kvstore.state.session import NO_SEQ, Session, decode_session, encode_session


@pytest.mark.parametrize("seed", range(20))
def test_the_oldest_answer(seed: int) -> None:
    rng = random.Random(seed)
    session = Session(0)
    for _ in range(400):
        seq = rng.randrange(12)  # few, so that a seq goes and comes back with another age
        if seq in session.answers:
            del session.answers[seq]
        else:
            session.remember(seq, rng.randrange(1, 9), 0)
        ages = [(issued_at, seq) for seq, (issued_at, _) in session.answers.items()]
        if rng.random() < 0.7:
            assert session.oldest() == min(ages, default=(session.newest, NO_SEQ))
        assert session.newest >= max(ages, default=(0, 0))[0]


def test_bytes_do_not_tell_the_order_of_arrival() -> None:
    answers: dict[int, tuple[int, Result]] = {5: (10, 1), 3: (10, Mismatch(0, None)), 4: (7, 0)}
    blobs = set()
    for order in ([3, 4, 5], [5, 4, 3], [4, 5, 3]):
        session = Session(2)
        for seq in order:
            session.remember(seq, *answers[seq])
        blobs.add(encode_session(session))
    (blob,) = blobs
    again = decode_session(blob)
    assert (again.low, again.newest, again.answers, again.weights) == (2, 10, answers, {3: 64})
    assert encode_session(again) == blob


def test_lists_of_unlike_lengths_are_damage() -> None:
    with pytest.raises(DamagedRecord):
        decode_session(b"\x01" + encode([0, 10, [1, 2], [0], [5, 6]]))
