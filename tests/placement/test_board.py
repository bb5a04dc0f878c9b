"""Operators: a step is done when the view shows it; time-outs, refusals, cancelling, rests, safety."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from benchmarks.placement import PaperCluster
from kvstore.placement.board import OperatorBoard
from kvstore.placement.moves import add, make_plan, remove, transfer
from kvstore.placement.moves import replace as replaced
from kvstore.placement.operators import STEP_SECONDS_MAX, Kind, Plan, State, Step, StepKind
from kvstore.placement.safety import danger, has_quorum
from kvstore.placement.schedulers.repair import LEARNER_SECONDS_MAX
from kvstore.placement.thresholds import DEFAULTS, Thresholds, changed
from kvstore.placement.view import Health, View
from tests.placement.pictures import picture, told, with_shards


def move(view: View, away: str = "a", to: str = "d") -> Plan:
    return replaced(view, view.shards[2], away=away, to=to, kind=Kind.REPLICAS, reason="a test")


def test_steps_are_done_when_the_view_shows_it() -> None:
    view = with_shards(picture("abcd"), "abc")
    board = OperatorBoard(view)
    operator = board.begin(move(view))
    assert told(operator.plan) == "+d >b ~d-a"
    assert board.observe() == []
    view.put_shard(replace(view.shards[2], learners=("d",)))
    assert board.observe() == [operator]
    assert operator.step == Step(StepKind.TRANSFER, "b")
    view.put_shard(replace(view.shards[2], leader="c"))
    assert board.observe() == []  # another one leads than was wanted
    view.put_shard(replace(view.shards[2], leader="b", voters=("a", "b", "c", "d"), learners=(), joint=True))
    assert board.observe() == [operator]
    view.put_shard(replace(view.shards[2], voters=("b", "c", "d"), joint=True))
    assert board.observe() == []  # the joint state is not left yet
    assert operator.state == State.RUNNING
    view.put_shard(replace(view.shards[2], joint=False))
    board.observe()
    assert operator.state == State.DONE
    assert list(board.ended) == [operator]
    assert not view.running
    assert [text for _, text in operator.history] == [
        "begun: a test",
        "add learner done",
        "transfer leader done",
        "swap done",
        "done",
    ]


def test_time_outs_and_rest() -> None:
    view = with_shards(picture("abcd"), "abc")
    board = OperatorBoard(view)
    operator = board.begin(move(view))
    board.refused(operator, "no leader", final=False)
    board.refused(operator, "no leader", final=False)
    view.now += STEP_SECONDS_MAX[StepKind.ADD_LEARNER] + 1
    board.observe()
    assert operator.state == State.FAILED
    assert "no leader" in operator.error
    assert [text for _, text in operator.history].count("refused: no leader") == 1
    assert view.rests(2)
    view.now += 3_600
    assert not view.rests(2)


def test_a_target_that_goes_out_of_service_ends_it_at_once() -> None:
    view = with_shards(picture("abcd"), "abc")
    board = OperatorBoard(view)
    operator = board.begin(move(view))
    view.put_node(replace(view.nodes["d"], draining=True))
    board.observe()
    assert (operator.state, operator.error) == (State.FAILED, "d is not in service any more")


def test_what_a_cancelled_operator_has_begun_is_taken_back() -> None:
    rules = Thresholds(rest_seconds=0)
    view = with_shards(picture("abcd", rules=rules), "abc")
    board = OperatorBoard(view)
    operator = board.begin(move(view))
    view.put_shard(replace(view.shards[2], learners=("d",)))
    board.observe()
    assert board.cancel(operator.id) is operator
    assert board.cancel(operator.id) is None
    assert (operator.state, view.running) == (State.CANCELLED, {})
    assert board.decide() == []  # somebody may be adding it by hand
    view.now += LEARNER_SECONDS_MAX
    (next_one,) = board.decide()
    assert told(next_one.plan) == "-d"


def test_a_shard_that_fails_again_and_again_rests_longer() -> None:
    view = with_shards(picture("abcd"), "abc")
    board = OperatorBoard(view)
    rests = []
    for _ in range(12):
        board.refused(board.begin(move(view)), "no", final=True)
        began = view.now
        while view.rests(2):
            view.now += 1
        rests.append(view.now - began)
    assert rests == sorted(rests)
    assert rests[0] < 10
    assert 300 < rests[-1] < 1_000


def test_important_ones_first() -> None:
    """A lost replica before a drain before balance, under a limit of one operator in all."""
    view = picture("abcdef", lost="c", draining="b", rules=Thresholds(operators_max=1))
    with_shards(view, "abd", "adb", "acd", *["ade"] * 9)
    assert [operator.plan.kind for operator in OperatorBoard(view).decide()] == [Kind.REPAIR]


@pytest.mark.parametrize(
    ("plan", "objection"),
    [
        (lambda v, s: add(v, s, to="b", kind=Kind.REPAIR, reason=""), "a second replica on b"),
        (lambda v, s: transfer(v, s, to="d", kind=Kind.LEADERS, reason=""), "d cannot lead"),
        (lambda v, s: make_plan(v, s, Kind.LOAD, [Step(StepKind.REMOVE, "a")], ("b", "c"), "b", ""), "leader is remov"),
        (lambda v, s: make_plan(v, s, Kind.LOAD, [Step(StepKind.PROMOTE, "d")], ("a",), "a", ""), "no learner"),
        (lambda v, s: make_plan(v, s, Kind.LOAD, [Step(StepKind.REMOVE, "c")], ("a", "c"), "a", ""), "do not lead"),
    ],
)
def test_unsafe_plans_do_not_begin(plan: object, objection: str) -> None:
    view = with_shards(picture("abcd"), "abc")
    made = plan(view, view.shards[2])  # type: ignore[operator]
    said = danger(view, view.shards[2], made)
    assert said is not None
    assert objection in said
    with pytest.raises(AssertionError, match="shard 2"):
        OperatorBoard(view).begin(made)


def test_the_last_majority_is_not_removed() -> None:
    view = with_shards(picture("abcd", down="c"), "abc")
    plan = remove(view, view.shards[2], node="b", kind=Kind.REPAIR, reason="")
    assert plan is not None
    assert danger(view, view.shards[2], plan) == "no quorum after: remove b"


def test_a_removal_is_given_up_when_it_would_cost_the_quorum_by_now() -> None:
    """Four voters, of which one is surplus; then another one dies, and a third."""
    view = with_shards(picture("abcd"), "abcd")
    board = OperatorBoard(view)
    (operator,) = board.decide()
    assert told(operator.plan) == "-d"
    view.put_node(replace(view.nodes["c"], health=Health.DOWN, down_since=view.now))
    board.observe()
    assert operator.state == State.RUNNING  # of a, b, c two are up
    view.put_node(replace(view.nodes["c"], health=Health.UP, down_since=0.0))
    board.observe()
    shard = replace(view.shards[2], voters=("a", "b", "d"))
    view.put_shard(shard)  # somebody took c out by hand
    view.put_node(replace(view.nodes["b"], health=Health.DOWN, down_since=view.now))
    board.observe()
    assert (operator.state, "quorum" in operator.error) == (State.FAILED, True)


def test_settings_have_names_and_bounds() -> None:
    assert changed(DEFAULTS, {"dead_after_seconds": 12.5, "rebalance": False}).dead_after_seconds == 12.5
    assert not changed(DEFAULTS, {"rebalance": False}).rebalance
    for wrong in (
        {"nonsense": 1},
        {"replication_factor": 0},
        {"split_bytes": "1000000000"},
        {"rebalance": 0},
        {"disk_used_max": 1.5},
    ):
        with pytest.raises(Exception, match="setting"):
            changed(DEFAULTS, wrong)


@pytest.mark.parametrize("seed", range(25))
def test_random_clusters_stay_safe_and_come_to_rest(seed: int) -> None:
    """Nodes die, come back, are drained, removed and join at random while operators run. At every round: no shard has
    two replicas on a node, none loses a quorum but by deaths, balance never crowds a zone. In the end all is calm."""
    rng = random.Random(seed)
    cluster = PaperCluster(Thresholds(rest_seconds=5, dead_after_seconds=30))
    view = cluster.view
    nodes = [cluster.add_node(number, zone=rng.choice("xyz")) for number in range(rng.randint(4, 9))]
    for shard in range(1, rng.randint(5, 40)):
        cluster.add_shard(shard, rng.sample(nodes, rng.randint(1, min(5, len(nodes)))), rng.randint(0, 60 << 20))
    for _ in range(60):
        _disturb(cluster, rng)
        before = {shard.id: shard for shard in view.shards.values()}
        cluster.round()
        for shard in view.shards.values():
            assert len(set(shard.nodes)) == len(shard.nodes)
            old = before.get(shard.id)
            if old is not None and has_quorum(view, old.voters):
                assert has_quorum(view, shard.voters), (old, shard)
    for node in view.nodes.values():
        if node.health == Health.DOWN:
            cluster.change_node(node.id, health=Health.UP)
    cluster.rest()
    for shard in view.shards.values():
        if has_quorum(view, shard.voters):
            assert shard.learners == ()
            assert not any(map(view.is_removed, shard.voters))


def _disturb(cluster: PaperCluster, rng: random.Random) -> None:
    view = cluster.view
    node = view.nodes[rng.choice(sorted(view.nodes))]
    dice = rng.random()
    if dice < 0.05 and sum(one.health == Health.UP for one in view.nodes.values()) > 3:
        cluster.change_node(node.id, health=Health.DOWN, down_since=view.now)
    elif dice < 0.15 and node.health == Health.DOWN:
        cluster.change_node(node.id, health=Health.UP)
    elif dice < 0.18 and sum(one.in_service for one in view.nodes.values()) > 4:
        cluster.change_node(node.id, draining=True)
    elif dice < 0.20 and len(view.serving()) > 4:
        cluster.change_node(node.id, health=Health.REMOVED)
    elif dice < 0.25 and len(view.nodes) < 12:
        cluster.add_node(len(view.nodes), zone=rng.choice("xyz"))
