"""The merge is a join, and records that cannot be told are refused where they are made.

Method: properties by hypothesis over few nodes' tales, so that ranks often collide; a table of bad records.
"""

from __future__ import annotations

from functools import reduce

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.gossip.member import (
    INCARNATION_MAX,
    LABELS_MAX,
    RECORD_BYTES_MAX,
    Member,
    MemberState,
    check,
    is_address,
    merged,
)
from kvstore.gossip.packet import encode_told
from kvstore.gossip.settings import PACKET_BYTES_MIN
from tests.gossip.cores import member, node_id

tales = st.builds(
    member,
    st.just(1),
    st.integers(0, 3),
    st.sampled_from(MemberState),
    name=st.sampled_from(["a", "b"]),
    labels=st.sampled_from([{}, {"zone": "x"}, {"zone": "y"}]),
)


@settings(deadline=None)
@given(tales, tales)
def test_merge_is_commutative(one: Member, other: Member) -> None:
    assert merged(one, other) == merged(other, one)


@settings(deadline=None)
@given(tales, tales, tales)
def test_merge_is_associative(one: Member, two: Member, three: Member) -> None:
    assert merged(merged(one, two), three) == merged(one, merged(two, three))


@settings(deadline=None)
@given(tales, tales)
def test_merge_is_idempotent_and_never_goes_back(one: Member, other: Member) -> None:
    joined = merged(one, other)
    assert merged(one, one) == one
    assert merged(joined, one) == merged(joined, other) == joined
    assert joined.rank == max(one.rank, other.rank)


@settings(deadline=None)
@given(st.lists(tales, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_order_and_repetition_do_not_matter(told: list[Member], rng: object) -> None:
    again = told + told[:3]
    again.sort(key=lambda _: rng.random())  # type: ignore[attr-defined]
    assert reduce(merged, told) == reduce(merged, again)


def test_states_override_each_other_in_this_order() -> None:
    assert [state.name for state in sorted(MemberState)] == ["ALIVE", "SUSPECT", "DEAD", "LEFT"]
    assert [member(1, 5, state).is_gone for state in MemberState] == [False, False, True, True]


GOOD = member(1, labels={"zone": "a"})
BAD = {
    "short id": {"node": "ab"},
    "upper case id": {"node": "AB" * 16},
    "no name": {"name": ""},
    "long name": {"name": "n" * 65},
    "control character": {"name": "n\n1"},
    "no port": {"address": "10.0.0.1"},
    "port 0": {"address": "10.0.0.1:0"},
    "large port": {"address": "10.0.0.1:65536"},
    "space": {"address": "10.0.0.1 :7001"},
    "newline": {"address": "10.0.0.1:7001\n"},
    "bare v6": {"address": "::1:7001"},
    "long address": {"address": "h" * 260 + ":1"},
    "negative incarnation": {"incarnation": -1},
    "large incarnation": {"incarnation": INCARNATION_MAX + 1},
    "long version": {"version": "1" * 65},
    "many labels": {"labels": {f"l{n}": "" for n in range(LABELS_MAX + 1)}},
    "empty label": {"labels": {"": "a"}},
    "long label": {"labels": {"a": "b" * 65}},
    "unprintable label": {"labels": {"a": "\x1b[2J"}},
    "all together too large": {"labels": {f"label-{n}": "v" * 40 for n in range(LABELS_MAX)}},
}


@pytest.mark.parametrize("changes", BAD.values(), ids=BAD.keys())
def test_bad_records_are_named(changes: dict[str, object]) -> None:
    assert check(GOOD) is None
    assert check(msgspec.structs.replace(GOOD, **changes))


@pytest.mark.parametrize("address", ["10.0.0.1:7001", "[::1]:7001", "node-1.example.com:65535", "localhost:1"])
def test_good_addresses(address: str) -> None:
    assert is_address(address)


def test_the_largest_record_fits_the_smallest_packet() -> None:
    labels = {f"l{n}": "v" * 20 for n in range(LABELS_MAX)}
    large = msgspec.structs.replace(GOOD, labels=labels, incarnation=INCARNATION_MAX)
    while check(msgspec.structs.replace(large, version=large.version + "v")) is None:
        large = msgspec.structs.replace(large, version=large.version + "v")
    assert len(msgspec.msgpack.encode(large)) >= RECORD_BYTES_MAX - 100
    assert len(encode_told(large, node_id(2))) + 80 <= PACKET_BYTES_MIN
