"""Pages over shards. Goal: joined pages cover a range once, whatever the shards do. Oracle: a sorted list of keys."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.api.cursors import Piece, Span, encode_cursor, piece_of, prefix_end, rest_of, resume
from kvstore.base.errors import Invalid
from kvstore.base.operations import Found, Page, Scan
from kvstore.base.shards import Route
from tests.api.fake_backend import STALE, DictShards, FakeRouter

KEYS = st.binary(min_size=1, max_size=3)
CUTS = st.lists(st.binary(min_size=1, max_size=2), max_size=4, unique=True).map(sorted)


@pytest.mark.parametrize(
    ("prefix", "end"), [(b"a", b"b"), (b"a\xff", b"b"), (b"\xff", b""), (b"", b""), (b"a\xfe\xff\xff", b"a\xff")]
)
def test_prefix_end(prefix: bytes, end: bytes) -> None:
    assert prefix_end(prefix) == end


@given(prefix=st.binary(max_size=3), key=KEYS)
def test_a_prefix_is_the_range_to_its_end(prefix: bytes, key: bytes) -> None:
    end = prefix_end(prefix)
    assert key.startswith(prefix) == (prefix <= key and (not end or key < end))


def pages(state: DictShards, span: Span, *, limit: int, reverse: bool, cuts: Sequence[Sequence[bytes]]) -> list[bytes]:
    """All keys by pages; between the plan and the answer of each page the shards are cut anew."""
    keys: list[bytes] = []
    rest: Span | None = span
    turn = 0
    while rest is not None and not rest.empty:
        piece = piece_of(rest, routes_of(state), reverse=reverse)
        turn += 1
        assert turn < 500, "the pages do not come to an end"
        if turn % 2:
            state.cut(cuts[turn // 2 % len(cuts)])
        page = state.read(Scan(0, piece.span.start, piece.span.end, limit, 1 << 20, reverse))
        if page is STALE or not piece.exact(piece_of(rest, routes_of(state), reverse=reverse)):
            continue
        assert isinstance(page, Page)
        keys += [item.key for item in page.items]
        left = rest_of(rest, piece, page.cursor, reverse=reverse)
        token = encode_cursor(left, reverse=reverse)
        rest = None if token is None else resume(span, token.encode(), reverse=reverse)
        assert rest == left
    return keys


def routes_of(state: DictShards) -> list[Route]:
    return [Route(2 + i, 1, start, end, state.version, 1, 1, None, None) for i, (start, end) in enumerate(state.bounds)]


@settings(max_examples=300, deadline=None)
@given(
    keys=st.sets(KEYS, max_size=20),
    start=st.binary(max_size=2),
    end=st.binary(max_size=2),
    limit=st.integers(1, 4),
    reverse=st.booleans(),
    cuts=st.lists(CUTS, min_size=1, max_size=4),
)
def test_pages_cover_the_range_once_while_shards_split_and_merge(
    keys: set[bytes], start: bytes, end: bytes, limit: int, reverse: bool, cuts: list[list[bytes]]
) -> None:
    state = FakeRouter().state
    for key in keys:
        state.data[key] = Found(b"v", 1, 1, 1)
    expected = sorted(key for key in keys if start <= key and (not end or key < end))
    if reverse:
        expected.reverse()
    assert pages(state, Span(start=start, end=end), limit=limit, reverse=reverse, cuts=cuts) == expected


@given(token=st.binary(max_size=30), reverse=st.booleans())
def test_any_bytes_are_a_cursor_inside_the_range_or_refused(token: bytes, reverse: bool) -> None:
    span = Span(start=b"b", end=b"y")
    try:
        rest = resume(span, token, reverse=reverse)
    except Invalid:
        return
    assert span.start <= rest.start
    assert rest.end <= span.end


def test_a_cursor_is_of_one_direction_and_one_range() -> None:
    span = Span(start=b"b", end=b"y")
    token = encode_cursor(Span(start=b"m", end=b"y"), reverse=False)
    assert token is not None
    assert resume(span, token.encode(), reverse=False) == Span(start=b"m", end=b"y")
    with pytest.raises(Invalid):
        resume(span, token.encode(), reverse=True)
    with pytest.raises(Invalid):
        resume(Span(start=b"n", end=b"y"), token.encode(), reverse=False)
    with pytest.raises(Invalid):
        resume(Span(start=b"a", end=b"c"), token.encode(), reverse=False)


def test_a_hole_in_the_routes_is_asked_for_by_itself() -> None:
    routes = [Route(3, 1, b"d", b"m", 1, 1, 1, None, None)]
    whole = Span(start=b"", end=b"")
    assert piece_of(whole, routes, reverse=False) == Piece(Span(start=b"", end=b"d"))
    assert piece_of(whole, routes, reverse=True) == Piece(Span(start=b"m", end=b""))
    assert piece_of(whole, [], reverse=False) == Piece(whole)
