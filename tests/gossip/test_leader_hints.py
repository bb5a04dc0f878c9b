"""Leaders' tales as the cargo of gossip: what is queued, what is told and how often, and how two nodes that differ
come to agree within a bounded number of packets.

Method: two or three of them that hand each other items as the core would; the packets' bytes are counted.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from kvstore.gossip.hint import HINT_BYTES_MAX, Hint, encode
from kvstore.gossip.hint_digests import PARTS_BYTES, HintDigests
from kvstore.gossip.hint_queue import HintQueue
from kvstore.gossip.leader_hints import BULK_ITEMS, QUEUE_MAX, LeaderHints
from kvstore.gossip.packet import BUCKETS_BYTES_MAX, Gossip, encode_body, room
from kvstore.gossip.seal import PAYLOAD_BYTES_MAX
from tests.gossip.histories import History, Shard, even_shards, node_bytes
from tests.gossip.test_hint_table import shard

ROOM = room(encode_body(Gossip()), PAYLOAD_BYTES_MAX)
"""What one packet has for items."""


def hints_of(number: int, *, queue_max: int = QUEUE_MAX, hints_max: int = 65_536) -> LeaderHints:
    return LeaderHints(node_bytes(number).hex(), queue_max=queue_max, hints_max=hints_max)


def raw(shards: Sequence[Shard]) -> list[Raw]:
    return [encode(one.hint()) for one in shards]


def filled(number: int, shards: Sequence[Shard]) -> LeaderHints:
    """Of a node that has heard all this long ago."""
    hints = hints_of(number)
    hints.receive(raw(shards), 0.0)
    while hints.pending:
        hints.take(10**9, members=2)
    return hints


def told(hints: LeaderHints, bytes_max: int = ROOM, members: int = 3) -> list[Hint]:
    return [msgspec.msgpack.decode(item, type=Hint) for item in hints.take(bytes_max, members=members)]


# -- what is passed on


def test_a_hint_fits_an_empty_packet() -> None:
    assert HINT_BYTES_MAX <= ROOM


def test_an_announcement_is_told_four_times_the_logarithm() -> None:
    for members, times in ((1, 4), (9, 4), (10, 8), (99, 8), (100, 12)):
        hints = hints_of(1)
        hints.announce([shard()])
        assert [told(hints, members=members) for _ in range(times)] == [[shard()]] * times
        assert hints.pending == 0


def test_only_differences_are_queued() -> None:
    hints = hints_of(1)
    hints.announce([shard(b"", b"m"), shard(b"m", id=3)])
    while hints.pending:
        told(hints)
    hints.announce([shard(b"", b"m"), shard(b"m", id=3)])
    assert hints.pending == 0
    hints.announce([shard(b"", b"m"), shard(b"m", id=3, term=2)])
    assert told(hints) == [shard(b"m", id=3, term=2)]


def test_a_lost_leadership_is_told_no_more() -> None:
    hints = hints_of(1)
    hints.announce([shard(b"", b"m"), shard(b"m", id=3)])
    hints.announce([shard(b"m", id=3)])
    assert told(hints) == [shard(b"m", id=3)]
    assert len(hints) == 2, "others hold it too, so that digests agree"


def test_another_leaders_news_goes_on_where_this_node_has_lost() -> None:
    hints = hints_of(1)
    hints.announce([shard()])
    hints.receive([encode(shard(term=2, leader=2))], 0.0)
    hints.announce([])
    assert told(hints) == [shard(term=2, leader=2)]


def test_an_old_claim_in_this_nodes_name_is_held_and_not_told() -> None:
    hints = hints_of(1)
    hints.receive([encode(shard(term=7))], 0.0)
    assert hints.table() == [shard(term=7)]
    assert hints.pending == 0
    hints.announce([shard(term=9)])
    hints.receive([encode(shard(term=8))], 0.0)
    assert told(hints) == [shard(term=9)]


def test_news_is_passed_on_and_what_is_known_is_not() -> None:
    hints = hints_of(2)
    hints.receive([encode(shard()), encode(shard())], 0.0)
    assert hints.pending == 1
    while hints.pending:
        told(hints)
    hints.receive([encode(shard())], 0.0)
    assert hints.pending == 0


def test_what_comes_in_bulk_is_not_passed_on() -> None:
    hints = hints_of(9)
    hints.receive(raw(even_shards(BULK_ITEMS + 1)), 0.0)
    assert len(hints) == BULK_ITEMS + 1
    assert hints.pending == 0


def test_news_that_is_overtaken_leaves_the_queue() -> None:
    hints = hints_of(9)
    hints.receive([encode(shard(b"m", id=3)), encode(shard(version=2))], 0.0)
    assert told(hints) == [shard(version=2)]


def test_a_change_is_told_once_to_who_listens() -> None:
    heard: list[Sequence[Hint]] = []
    hints = hints_of(1)
    hints.on_change = heard.append
    hints.announce([shard()])
    hints.announce([shard()])
    hints.receive([encode(shard())], 0.0)
    hints.receive([encode(shard(term=2)), encode(shard(term=3)), encode(shard(term=2))], 0.0)
    assert heard == [[shard()], [shard(term=2), shard(term=3)]]


def test_malformed_items_are_counted_and_skipped() -> None:
    hints = hints_of(1)
    hints.receive([Raw(b""), Raw(b"\xc1"), Raw(b"\x90"), encode(shard()), Raw(b"\x91" * 3_000)], 0.0)
    assert len(hints) == 1
    assert hints.counts()["malformed"] == 4


def test_the_table_is_bounded_and_goes_on_with_the_shards_that_it_holds() -> None:
    hints = hints_of(9, hints_max=10)
    hints.receive(raw(even_shards(12)), 0.0)
    assert len(hints) == 10
    assert hints.counts()["refused"] == 2
    hints.receive([encode(one.hint()) for one in even_shards(10, version=6)], 0.0)
    assert [one.version for one in hints.table()] == [6] * 10


# -- the queue


def item(text: str, size: int = 10) -> Raw:
    return Raw(text.encode().ljust(size, b"."))


def texts(queue: HintQueue, bytes_max: int = 10, limit: int = 3) -> str:
    return "".join(bytes(each)[:1].decode() for each in queue.take(bytes_max, limit=limit))


def test_least_told_first_then_newest() -> None:
    queue = HintQueue(9)
    queue.put(1, item("a"))
    queue.put(2, item("b"))
    assert [texts(queue) for _ in range(2)] == ["b", "a"]
    queue.put(3, item("c"))
    assert [texts(queue) for _ in range(8)] == ["c", "c", "a", "b", "b", "a", "c", ""]
    assert len(queue) == 0


def test_a_full_queue_drops_what_was_told_most() -> None:
    queue = HintQueue(3)
    for shard_id, text in ((1, "a"), (2, "b"), (3, "c")):
        queue.put(shard_id, item(text))
    assert texts(queue) == "c"
    queue.put(4, item("d"))
    assert texts(queue, 100, limit=1) == "dba"
    queue.put(5, item("e"))
    assert (queue.dropped, len(queue)) == (1, 1)


def test_what_does_not_fit_waits_and_a_long_queue_is_not_searched() -> None:
    queue = HintQueue(1_000)
    queue.put(0, item("s", 5))
    for number in range(1, 100):
        queue.put(number, item("a", 50))
    assert texts(queue, 20) == ""
    assert len(queue) == 100
    assert texts(queue, 60) == "a"


operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 5), st.integers(1, 9)),
        st.tuples(st.just("drop"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("take"), st.integers(1, 30), st.integers(1, 4)),
    ),
    max_size=40,
)


@given(operations)
def test_the_queue_against_a_sorted_list(steps: list[tuple[str, int, int]]) -> None:
    queue, serial = HintQueue(4), 0
    oracle: list[tuple[int, int, int, Raw]] = []  # times told, minus when it came to that, shard, item
    for what, number, size in steps:
        serial += 1
        if what == "put":
            new = Raw(bytes([number]) * size)
            queue.put(number, new)
            oracle = [each for each in oracle if each[2] != number]
            if len(oracle) == 4:
                oracle.remove(max(oracle, key=lambda each: each[:2]))
            oracle.append((0, -serial, number, new))
        elif what == "drop":
            queue.drop(number)
            oracle = [each for each in oracle if each[2] != number]
        else:
            left, expected, kept = number, [], []
            for times, since, shard_id, each in sorted(oracle, key=lambda one: one[:2]):
                if len(each) > left:
                    kept.append((times, since, shard_id, each))
                    continue
                left -= len(each)
                expected.append(bytes(each))
                serial += 1
                if times + 1 < size:
                    kept.append((times + 1, -serial, shard_id, each))
            oracle = kept
            assert [bytes(each) for each in queue.take(number, limit=size)] == expected
        assert len(queue) == len(oracle)


# -- digests and agreement


@settings(max_examples=50)
@given(st.integers(0, 2**32))
def test_the_digest_is_a_function_of_what_is_held(seed: int) -> None:
    rng = random.Random(seed)
    history = History(rng)
    for _ in range(30):
        history.step()
    tables = [hints_of(9) for _ in range(2)]
    for hints in tables:
        items = [encode(one) for one in history.told]
        rng.shuffle(items)
        hints.receive(items, 0.0)
    fresh = HintDigests()
    for one in history.newest():
        fresh.add(one.id, encode(one))
    assert [hints.table() for hints in tables] == [history.newest()] * 2
    assert {hints.digest() for hints in tables} == {fresh.all}
    assert len({hints.buckets() for hints in tables} | {fresh.parts()}) == 1
    for one in history.newest():
        fresh.remove(one.id)
    assert fresh.all == 0
    assert fresh.parts()[1:] == bytes(PARTS_BYTES - 1)


def test_the_digest_is_the_same_in_every_process() -> None:
    hints = hints_of(1)
    assert hints.digest() == 0
    hints.announce([shard()])
    assert f"{hints.digest():016x}" == "b33c08b9614700fe"
    assert len(hints.buckets()) == PARTS_BYTES <= BUCKETS_BYTES_MAX


def test_parts_that_look_equal_once_do_not_look_so_always() -> None:
    """16 bits of a digest are told at a time, and in the end all of them."""
    hints, empty = filled(1, even_shards(1)), HintDigests()
    shifts = {hints.buckets()[0] for _ in range(49)}
    assert shifts == set(range(49))
    assert all(hints.differing(empty.parts(), bytes_max=ROOM, packets_max=8) for _ in range(49))
    seen = {bytes(hints.buckets()[1:]) for _ in range(49)}
    assert len(seen) == 49


def test_malformed_digests_are_answered_with_nothing() -> None:
    hints = filled(1, even_shards(10))
    for theirs in (b"", bytes(PARTS_BYTES - 1), bytes(4_096)):
        assert hints.differing(theirs, bytes_max=ROOM, packets_max=8) == []
    assert len(hints.differing(bytes(PARTS_BYTES), bytes_max=ROOM, packets_max=8)) > 0
    assert hints.differing(bytes(PARTS_BYTES), bytes_max=50, packets_max=8) == [], "no room for even one"


def answer(one: LeaderHints, other: LeaderHints, *, packets_max: int = 8) -> int:
    """`one` is asked by `other`; the packets that it took. No packet is too long."""
    packets = one.differing(other.buckets(), bytes_max=ROOM, packets_max=packets_max)
    assert len(packets) <= packets_max
    for items in packets:
        assert sum(map(len, items)) <= ROOM
        assert len(set(map(bytes, items))) == len(items)
        other.receive(items, 0.0)
    return len(packets)


def agree(one: LeaderHints, other: LeaderHints) -> tuple[int, int]:
    """Compare, as probes do each second, until both hold the same; (comparisons, packets)."""
    rounds = packets = 0
    while one.digest() != other.digest():
        packets += answer(one, other) + answer(other, one)
        rounds += 1
        assert rounds < 1_000
    assert one.table() == other.table()
    return rounds, packets


def changed(shards: list[Shard], numbers: Sequence[int]) -> list[Shard]:
    """After an election in each of these."""
    after = list(shards)
    for number in numbers:
        old = shards[number]
        after[number] = Shard(old.id, old.start, old.end, version=old.version, term=old.term + 1, leader=2)
    return after


def test_one_lost_hint_of_thousands_is_found_with_the_first_answer() -> None:
    """What changed last is told first."""
    shards = even_shards(5_000)
    one, other = filled(1, shards), filled(2, shards)
    one.receive([encode(changed(shards, [4_321])[4_321].hint())], 0.0)
    assert agree(one, other)[0] == 1


def test_an_old_difference_is_found_in_turn() -> None:
    """One hint was lost long ago; since then everything else has changed."""
    shards = even_shards(5_000)
    after = changed(shards, range(5_000))
    one, other = filled(1, after), filled(2, [*after[:77], shards[77], *after[78:]])
    rounds, packets = agree(one, other)
    assert rounds <= 2
    assert packets <= 32


def test_a_hundred_lost_hints_of_thousands() -> None:
    shards = even_shards(5_000)
    numbers = random.Random(5).sample(range(5_000), 100)
    one, other = filled(1, shards), filled(2, shards)
    after = changed(shards, numbers)
    one.receive([encode(after[number].hint()) for number in numbers], 0.0)
    rounds, packets = agree(one, other)
    assert rounds <= 2
    assert packets <= 32


def test_a_node_that_knows_nothing_learns_thousands_by_datagrams_alone() -> None:
    shards = even_shards(5_000)
    one, other = filled(1, shards), hints_of(2)
    least = -(-sum(len(encode(each.hint())) for each in shards) // ROOM)
    rounds, packets = agree(one, other)
    assert rounds <= 1.1 * least / 8 + 1, "nothing is told twice"
    assert packets <= 2 * 8 * rounds


def test_two_nodes_that_lack_different_halves() -> None:
    shards = even_shards(2_000)
    one, other = filled(1, shards[::2]), filled(2, shards[1::2])
    agree(one, other)
    assert len(one.table()) == 2_000


def test_an_overflow_of_the_queue_is_repaired() -> None:
    shards = even_shards(300, nodes=1)
    one, other = hints_of(1, queue_max=50), hints_of(2)
    one.announce([each.hint() for each in shards])
    assert one.pending == 50
    while one.pending:
        other.receive(one.take(ROOM, members=2), 0.0)
    assert len(other) == 50
    agree(one, other)
    assert len(other) == 300


def test_merging_twenty_thousand_hints_takes_well_under_a_second() -> None:
    """In random order, so that the list of ranges is inserted into everywhere. A bound that a busy machine keeps, too:
    it takes about 0.3 s on one of 2020."""
    items = raw(even_shards(20_000))
    random.Random(1).shuffle(items)
    hints = hints_of(9)
    began = time.process_time()
    hints.receive(items, 0.0)
    assert time.process_time() - began < 2.0
    assert len(hints) == 20_000
