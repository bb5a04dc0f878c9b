"""The route cache against the rule "(version, term) decides", by table and against a dumb second implementation."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.base.shards import Route
from kvstore.client.routes import RouteTable


def route(
    shard: int, start: bytes, end: bytes, *, version: int = 1, term: int = 1, leader: str | None = "n1", conf: int = 1
) -> Route:
    address = f"{leader}:1" if leader is not None else None
    return Route(shard, 1, start, end, version, conf, term, leader, address, (("n9", "n9:1", 1),))


def table(*routes: Route) -> RouteTable:
    made = RouteTable()
    made.keyspace = 1
    made.merge(routes)
    return made


def test_finds_by_range_and_tells_gaps() -> None:
    routes = table(route(2, b"", b"g"), route(3, b"m", b""))
    assert [shard.id if (shard := routes.find(key)) else None for key in (b"a", b"g", b"l", b"m", b"zz")] == [
        2,
        None,
        None,
        3,
        3,
    ]
    assert routes.find_below(b"") is routes.get(3)
    assert routes.find_below(b"n") is routes.get(3)
    assert routes.find_below(b"m") is None
    assert routes.find_below(b"g") is routes.get(2)
    assert routes.find_below(b"h") is None
    assert routes.only is None


def test_one_shard_is_the_whole_keyspace() -> None:
    routes = table(route(2, b"", b""))
    assert routes.only == route(2, b"", b"")
    routes.merge([route(2, b"", b"m", version=2), route(3, b"m", b"", version=2)])
    assert routes.only is None
    assert [one.id for one in routes] == [2, 3]


def test_only_newer_leaders_are_believed() -> None:
    routes = table(route(2, b"", b"", term=5, leader="n2"))
    assert not routes.merge([route(2, b"", b"", term=4, leader="n1")])
    assert not routes.merge([route(2, b"", b"", term=5, leader=None)])
    assert routes.merge([route(2, b"", b"", term=6, leader=None)])
    assert routes.merge([route(2, b"", b"", term=6, leader="n3")])
    assert routes.merge([route(2, b"", b"", term=6, leader="n3", conf=2)])
    known = routes.get(2)
    assert known is not None
    assert (known.leader, known.conf) == ("n3", 2)


def test_a_higher_version_covers_and_a_lower_one_is_dropped() -> None:
    routes = table(route(2, b"", b"m", version=2), route(3, b"m", b"", version=2))
    assert not routes.merge([route(2, b"", b"", version=1, term=99)])
    assert routes.merge([route(2, b"", b"", version=3)])
    assert [one.id for one in routes] == [2]
    assert not routes.merge([route(3, b"m", b"", version=2, term=99)])


def test_half_a_split_leaves_a_gap_to_be_asked_for() -> None:
    routes = table(route(2, b"", b"", version=1))
    assert routes.merge([route(3, b"m", b"", version=2)])
    assert routes.find(b"a") is None
    assert routes.merge([route(2, b"", b"m", version=2)])
    assert routes.find(b"a") is not None


def test_other_keyspaces_are_ignored() -> None:
    routes = table()
    assert not routes.merge([Route(2, 7, b"", b"", 1, 1, 1, "n1", "n1:1")])
    assert len(routes) == 0


def test_a_denied_leader_is_forgotten_until_a_newer_hint() -> None:
    routes = table(route(2, b"", b"", term=3, leader="n2"))
    assert routes.deny(2, address="n3:1", node="n3") == route(2, b"", b"", term=3, leader="n2")
    denied = routes.deny(2, address="elsewhere:1", node="n2")
    assert denied is not None
    assert denied.leader is None
    assert denied.address is None
    assert routes.get(2) == routes.only == denied
    assert routes.deny(99, address="n2:1", node="n2") is None


BOUNDS = [b"", b"b", b"d", b"f", b"h"]


@st.composite
def histories(draw: st.DrawFn) -> list[list[Route]]:
    """Real histories of splits and merges; each element: the routes that cover the keyspace at that moment."""
    moments = [[route(2, b"", b"")]]
    next_id = 3
    steps = draw(st.lists(st.tuples(st.integers(0, 99), st.sampled_from(BOUNDS[1:]), st.booleans()), max_size=8))
    for place, cut, split in steps:
        current = list(moments[-1])
        position = place % len(current)
        one = current[position]
        if split and one.start < cut and (not one.end or cut < one.end):
            current[position : position + 1] = [
                route(one.id, one.start, cut, version=one.version + 1),
                route(next_id, cut, one.end, version=one.version + 1),
            ]
            next_id += 1
        elif position + 1 < len(current):
            other = current[position + 1]
            version = max(one.version, other.version) + 1
            current[position : position + 2] = [route(one.id, one.start, other.end, version=version)]
        else:
            current[position] = route(one.id, one.start, one.end, version=one.version, term=one.term + 1, leader="n2")
        moments.append(current)
    return moments


@settings(max_examples=150, deadline=None)
@given(histories(), st.randoms(use_true_random=False))
def test_any_order_of_hints_ends_with_the_newest_routes(moments: list[list[Route]], rng: object) -> None:
    """However the hints of a real history are shuffled and repeated: once all routes of the last moment have come
    after them, the table is exactly the last moment; and on the way the invariant holds (asserted inside)."""
    hints = [one for moment in moments for one in moment] * 2
    rng.shuffle(hints)  # type: ignore[attr-defined]
    routes = RouteTable()
    routes.keyspace = 1
    for hint in hints:
        routes.merge([hint])
        found = routes.find(b"c")
        assert found is None or found.start <= b"c"
    routes.merge(moments[-1])
    assert list(routes) == moments[-1]
    assert all(routes.find(key) is not None for key in BOUNDS)
