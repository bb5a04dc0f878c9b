"""Goal: a shard is cut near the middle of its data, at a key that parts no group, with keys on both sides.

Method: random keys, with and without groups, against a count over all legal cuts; and the shapes that have none.
"""

from __future__ import annotations

import random

import pytest

from kvstore.base.errors import Invalid
from kvstore.base.key_groups import is_legal_cut
from kvstore.placement.split_point import find_middle, measure_left
from kvstore.storage.protocol import Record, StateStore
from tests.state.fake_store import FakeStore
from tests.state.machine import PREFIX, descriptor


def filled(sizes: dict[bytes, int]) -> StateStore:
    store = FakeStore()
    for key, size in sizes.items():
        store.put(PREFIX + key, Record(b"v" * size, 1, 1, 1))
    return store  # type: ignore[return-value]


def total(sizes: dict[bytes, int]) -> int:
    return sum(len(PREFIX) + len(key) + size for key, size in sizes.items())


def best_distance(sizes: dict[bytes, int]) -> int:
    """How far from the middle the nearest legal cut with keys on both sides is."""
    half = total(sizes) // 2
    keys = sorted(sizes)
    distances = []
    for first in keys[1:]:
        group_free = [cut for cut in (first, first[: first.find(b"}") + 1]) if is_legal_cut(cut) and cut > keys[0]]
        left = [total({key: sizes[key] for key in keys if key < cut}) for cut in group_free]
        distances += [abs(half - one) for one in left if one]
    return min(distances)


@pytest.mark.parametrize("seed", range(40))
async def test_cut_is_the_nearest_to_the_middle(seed: int) -> None:
    rng = random.Random(seed)
    sizes: dict[bytes, int] = {}
    for _ in range(rng.choice((2, 5, 40, 900))):
        plain = b"%04d" % rng.randrange(10_000)
        grouped = b"{g%d}/%d" % (rng.randrange(6), rng.randrange(1_000))
        sizes[rng.choice((plain, grouped, b"x" + grouped))] = rng.choice((0, 10, 400, 3_000))
    sizes |= {b"a": 5, b"z": 5}
    store = filled(sizes)
    cut = await find_middle(store, descriptor(), total(sizes))
    assert is_legal_cut(cut.key[4:])
    left = {key: size for key, size in sizes.items() if PREFIX + key < cut.key}
    assert left
    assert len(left) < len(sizes)
    assert total(left) == cut.left_bytes == await measure_left(store, descriptor(), cut.key, 0)
    assert abs(total(sizes) // 2 - cut.left_bytes) == best_distance(sizes)


@pytest.mark.parametrize("believed", [0, 1, 10**9])
async def test_wrong_belief_about_the_size_still_gives_a_cut(believed: int) -> None:
    """`data_bytes` is an estimate once a shard has been split."""
    sizes = {b"k%03d" % number: 100 for number in range(500)}
    cut = await find_middle(filled(sizes), descriptor(), believed)
    assert cut.left_bytes > 0
    if believed > 1:
        assert abs(cut.left_bytes - total(sizes) // 2) < 200


@pytest.mark.parametrize(
    "keys",
    [[], [b"one"], [b"{g}/%d" % number for number in range(50)], [b"{g}"], [b"{g}", b"{g}/"]],
)
async def test_shard_that_cannot_be_divided(keys: list[bytes]) -> None:
    sizes = dict.fromkeys(keys, 100)
    for believed in (0, total(sizes), 10 * total(sizes)):
        with pytest.raises(Invalid, match="one key"):
            await find_middle(filled(sizes), descriptor(), believed)


async def test_large_group_at_either_end() -> None:
    group = {b"{g}/%03d" % number: 100 for number in range(300)}
    for small in ({b"a": 1}, {b"~": 1}):
        cut = await find_middle(filled(group | small), descriptor(), total(group | small))
        assert cut.key == PREFIX + (b"{g}" if b"a" in small else b"~")
