"""Sequence numbers, `low` and stamps."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from kvstore.client.session import SeqBlock, Session


def test_ids_are_random_and_of_the_right_length() -> None:
    one, other = Session(random.Random(1)), Session(random.Random(2))
    assert len(one.id) == 16
    assert one.id != other.id


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 50)), max_size=40))
def test_low_never_passes_what_is_waited_for(steps: list[tuple[int, int]]) -> None:
    """Against a set of all numbers that are waited for: low is at most their lowest, and at least the first of the
    lowest one's block."""
    session = Session(random.Random(1))
    waiting: dict[int, SeqBlock] = {}
    given_out = 0
    for count, settle in steps:
        block = session.begin(count)
        assert block.first == given_out + 1
        for seq in range(block.first, block.first + count):
            waiting[seq] = block
        given_out += count
        for seq in sorted(waiting, key=lambda one: one * 7919 % 101)[:settle]:
            waiting.pop(seq).remaining -= 1
        lowest = min(waiting, default=given_out + 1)
        assert session.low() <= lowest
        assert session.low() == (waiting[lowest].first if waiting else given_out + 1)


def test_stamps_are_those_of_the_shard_plus_the_time_since() -> None:
    session = Session(random.Random(1))
    assert session.stamp_ms(2, 10.0, 777) == 777
    session.heard(2, 5_000, 10.0)
    assert session.stamp_ms(2, 12.5, 777) == 7_500
    assert session.stamp_ms(3, 12.5, 777) == 777
    session.forget_stamps({3})
    assert session.stamp_ms(2, 12.5, 777) == 777
