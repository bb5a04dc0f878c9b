"""The queue of news: least told first, newer replaces older, and an end to telling.

Method: examples, then random operations against a plain list as oracle.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Raw

from kvstore.gossip.broadcast import Broadcasts


def news(text: str, size: int = 10) -> Raw:
    return Raw(text.encode().ljust(size, b"."))


def told(queue: Broadcasts, bytes_max: int = 10, limit: int = 3) -> str:
    return "".join(bytes(each)[:1].decode() for each in queue.take(bytes_max, limit=limit))


def test_least_told_first_then_oldest() -> None:
    queue = Broadcasts()
    queue.put("1", news("a"))
    queue.put("2", news("b"))
    assert [told(queue) for _ in range(2)] == ["a", "b"]
    queue.put("3", news("c"))
    assert [told(queue) for _ in range(4)] == ["c", "a", "b", "c"]


def test_told_no_more_than_the_limit() -> None:
    queue = Broadcasts()
    queue.put("1", news("a"))
    assert [told(queue) for _ in range(5)] == ["a", "a", "a", "", ""]
    assert len(queue) == 0
    assert queue.bytes_waiting == 0


def test_newer_news_replaces_older_and_starts_anew() -> None:
    queue = Broadcasts()
    queue.put("1", news("a"))
    queue.take(10, limit=3)
    queue.take(10, limit=3)
    queue.put("1", news("b"))
    assert len(queue) == 1
    assert [told(queue) for _ in range(4)] == ["b", "b", "b", ""]


def test_what_does_not_fit_waits_and_smaller_goes_first() -> None:
    queue = Broadcasts()
    queue.put("1", news("a", 50))
    queue.put("2", news("b", 10))
    assert told(queue, 20) == "b"
    assert told(queue, 60) == "ab"


def test_a_long_queue_is_not_searched_for_what_fits() -> None:
    queue = Broadcasts()
    for number in range(100):
        queue.put(str(number), news("a", 50))
    queue.put("small", news("b", 10))
    assert told(queue, 20) == ""
    assert "small" in queue


operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 5), st.integers(1, 9)),
        st.tuples(st.just("drop"), st.integers(0, 5), st.just(0)),
        st.tuples(st.just("take"), st.integers(1, 30), st.integers(1, 4)),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(operations)
def test_against_a_sorted_list(steps: list[tuple[str, int, int]]) -> None:
    queue, oracle, serial = Broadcasts(), [], 0  # oracle: [times told, when it came to that, node, news]
    for what, number, size in steps:
        serial += 1
        if what == "put":
            item = Raw(bytes([number]) * size)
            queue.put(str(number), item)
            oracle = [each for each in oracle if each[2] != number]
            oracle.append((0, serial, number, item))
        elif what == "drop":
            queue.drop(str(number))
            oracle = [each for each in oracle if each[2] != number]
        else:
            left, expected, kept = number, [], []
            for times, since, node, item in sorted(oracle, key=lambda each: each[:2]):
                if len(item) > left:
                    kept.append((times, since, node, item))
                    continue
                left -= len(item)
                expected.append(bytes(item))
                serial += 1
                if times + 1 < size:
                    kept.append((times + 1, serial, node, item))
            oracle = kept
            assert [bytes(each) for each in queue.take(number, limit=size)] == expected
        assert len(queue) == len(oracle)
        assert queue.bytes_waiting == sum(len(each[3]) for each in oracle)
