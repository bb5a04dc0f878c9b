"""Goal: what status and dev say about a cluster is true. Method: pictures in, sentences out."""

from __future__ import annotations

from typing import Any

from kvstore.cli.picture import NodeView, changes, node_view, shard_views


def node(name: str, *replicas: tuple[int, str, int]) -> NodeView:
    status: dict[str, Any] = {
        "name": name,
        "uptime_ms": 1_500,
        "shards": [{"id": shard, "role": role, "term": term, "applied": 7} for shard, role, term in replicas],
    }
    return node_view(status, name="?", address=f"h:{name}")


def down(name: str) -> NodeView:
    return NodeView(name, f"h:{name}", up=False)


def test_a_node_s_own_words() -> None:
    view = node("n1", (2, "leader", 3), (1, "follower", 3))
    assert (view.name, view.uptime_seconds, view.leads) == ("n1", 1.5, (2,))
    assert list(view.replicas) == [1, 2]
    assert view.replicas[2].applied == 7


def test_what_a_node_does_not_tell_is_missing_not_an_error() -> None:
    bare = node_view({}, name="n1", address="h:1")
    assert (bare.name, bare.uptime_seconds, bare.version, dict(bare.replicas)) == ("n1", None, "", {})
    odd = node_view({"shards": [{}], "uptime_ms": "soon", "name": 5}, name="n1", address="h:1")
    assert odd.replicas[0].role == "?"


def test_the_higher_term_is_believed() -> None:
    (shard,) = shard_views([node("n1", (2, "leader", 3)), node("n2", (2, "leader", 4)), node("n3", (2, "follower", 4))])
    assert (shard.leader, shard.term) == ("n2", 4)


def test_who_is_down_leads_nothing() -> None:
    (shard,) = shard_views([down("n1"), node("n2", (2, "follower", 3))])
    assert (shard.leader, shard.term) == (None, 3)


def test_changes_are_told_once() -> None:
    start = [down("n1"), down("n2")]
    both = [node("n1", (2, "leader", 2)), node("n2", (2, "follower", 2))]
    lost = [down("n1"), node("n2", (2, "candidate", 3))]
    again = [down("n1"), node("n2", (2, "leader", 3))]
    assert changes(start, both) == ["n1 is up at http://h:n1", "n2 is up at http://h:n2", "n1 leads shard 2 in term 2"]
    assert changes(both, both) == []
    assert changes(both, lost) == ["n1 does not answer", "shard 2 has no leader"]
    assert changes(lost, again) == ["n2 leads shard 2 in term 3"]
