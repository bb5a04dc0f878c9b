"""What should be changed about a shard's replicas: a table of pictures, and that it ends from any picture."""

from __future__ import annotations

import random

import pytest

from kvstore.placement.repair import Step, StepKind, next_step

ADD, REMOVE = StepKind.ADD, StepKind.REMOVE


def decide(
    replicas: str, *, learners: str = "", alive: str = "", removed: str = "", load: dict[str, int] | None = None
) -> tuple[StepKind, str] | None:
    """Nodes are letters."""
    step = next_step(
        shard=2, replicas=replicas, learners=learners, alive=alive, removed=removed, load=load or {}, wanted=3
    )
    return None if step is None else (step.kind, step.node)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ({"replicas": "abc", "alive": "abc"}, None),
        ({"replicas": "abc", "alive": "abcd"}, None),
        ({"replicas": "a", "alive": "a"}, None),  # nowhere to go
        ({"replicas": "a", "alive": "abc"}, (ADD, "b")),
        ({"replicas": "a", "alive": "abc", "load": {"b": 4, "c": 1}}, (ADD, "c")),
        ({"replicas": "abc", "alive": "ab"}, None),  # down is not gone
        ({"replicas": "abc", "alive": "abd"}, None),
        ({"replicas": "abc", "alive": "abd", "removed": "c"}, (ADD, "d")),  # first the successor ...
        ({"replicas": "abcd", "alive": "abd", "removed": "c"}, (REMOVE, "c")),  # ... then the removed one
        ({"replicas": "abc", "alive": "ab", "removed": "c"}, (REMOVE, "c")),  # no successor: 2 of 2 is better
        ({"replicas": "abc", "alive": "abcd", "removed": "d"}, None),  # a removed node gets nothing
        ({"replicas": "ab", "alive": "abd", "removed": "d"}, None),
        ({"replicas": "abcd", "alive": "abcd"}, (REMOVE, "d")),
        ({"replicas": "abcd", "alive": "abd"}, (REMOVE, "c")),  # of too many, one that is down
        ({"replicas": "abcd", "alive": "abcd", "load": {"a": 9, "b": 2, "c": 2, "d": 2}}, (REMOVE, "a")),
        ({"replicas": "abc", "learners": "c", "alive": "abc"}, (ADD, "c")),  # finish what broke off
        ({"replicas": "abcd", "learners": "d", "alive": "abcd"}, (REMOVE, "d")),  # too many: the one without a vote
        ({"replicas": "abc", "learners": "c", "alive": "abd"}, (REMOVE, "c")),  # its node is down: take it back
        ({"replicas": "abc", "learners": "c", "alive": "abd", "removed": "c"}, (ADD, "d")),
    ],
)
def test_table(picture: dict[str, object], expected: tuple[StepKind, str] | None) -> None:
    assert decide(**picture) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(200))
def test_applied_to_its_own_results_it_ends_well(seed: int) -> None:
    rng = random.Random(seed)
    nodes = "abcdefg"[: rng.randint(1, 7)]
    replicas = {node for node in nodes if rng.random() < 0.6} or {"a"}
    removed = {node for node in nodes if rng.random() < 0.2}
    alive = {node for node in nodes if node not in removed and rng.random() < 0.8}
    learners = {node for node in replicas if rng.random() < 0.3}
    voters_before = replicas - learners
    for _ in range(20):
        step = next_step(
            shard=2,
            replicas=sorted(replicas),
            learners=sorted(learners),
            alive=sorted(alive),
            removed=sorted(removed),
            load={},
            wanted=3,
        )
        if step is None:
            break
        _carry_out(step, replicas, learners, alive, removed)
    else:
        pytest.fail("it does not end")
    voters = replicas - learners
    assert not replicas & removed
    assert not learners & alive
    assert len(replicas) <= 3
    # As many as there can be: those who were there and are not removed, and whoever lives.
    assert len(voters) >= min(3, len((voters_before - removed) | alive))


def _carry_out(step: Step, replicas: set[str], learners: set[str], alive: set[str], removed: set[str]) -> None:
    if step.kind == ADD:
        assert step.node in alive
        assert step.node not in removed
        assert step.node not in replicas or step.node in learners
        replicas.add(step.node)
        learners.discard(step.node)
    else:
        kept = replicas - learners - removed - {step.node}
        assert step.node in removed or step.node in learners or len(kept) >= 3
        replicas.remove(step.node)
        learners.discard(step.node)
