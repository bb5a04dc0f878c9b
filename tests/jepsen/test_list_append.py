"""Anomalies of transactions on lists are found, named as Adya does, and nothing is called one that is none.

Method: one hand-written history for each anomaly; random histories of a store that is strictly serializable, and of one
that is not, judged by trying every order of whole transactions.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from jepsen.cycles import RW, WR, WW, Graph, classify, components, find
from jepsen.history import Event, History, Value, pair
from jepsen.list_append import Lists, check, steps_of
from jepsen.model import ModelError
from tests.jepsen.brute import Recorder, linearizable

Step = tuple[str, Value, Value]
CASES = 600


def _history(*transactions: tuple[str, list[Step]]) -> History:
    """All at the same time, each of its own process: only what they read orders them."""
    events = [Event(n, n, "invoke", "txn", value=_asked(steps)) for n, (_, steps) in enumerate(transactions)]
    for n, (outcome, steps) in enumerate(transactions):
        events.append(Event(n, n, outcome, "txn", value=tuple(steps) if outcome == "ok" else _asked(steps)))
    return pair(events)


def _asked(steps: list[Step]) -> Value:
    return tuple((f, key, value if f == "append" else None) for f, key, value in steps)


def _one_by_one(*transactions: tuple[str, list[Step]]) -> History:
    events = []
    for n, (outcome, steps) in enumerate(transactions):
        events.append(Event(2 * n, n, "invoke", "txn", value=_asked(steps)))
        events.append(Event(2 * n + 1, n, outcome, "txn", value=tuple(steps) if outcome == "ok" else _asked(steps)))
    return pair(events)


def _names(history: History) -> set[str]:
    return {anomaly.name for anomaly in check(history).anomalies}


OK, FAIL, INFO = "ok", "fail", "info"


@pytest.mark.parametrize(
    ("name", "transactions"),
    [
        (
            "G0",
            [
                (OK, [("append", "x", 1), ("append", "y", 1)]),
                (OK, [("append", "x", 2), ("append", "y", 2)]),
                (OK, [("r", "x", (1, 2))]),
                (OK, [("r", "y", (2, 1))]),
            ],
        ),
        ("G1a", [(FAIL, [("append", "x", 1)]), (OK, [("r", "x", (1,))])]),
        (
            "G1b",
            [(OK, [("append", "x", 1), ("append", "x", 2)]), (OK, [("r", "x", (1,))]), (OK, [("r", "x", (1, 2))])],
        ),
        (
            "G1c",
            [(OK, [("append", "x", 1), ("r", "y", (1,))]), (OK, [("append", "y", 1), ("r", "x", (1,))])],
        ),
        (
            "G-single",
            [(OK, [("append", "x", 1), ("append", "y", 1)]), (OK, [("r", "x", (1,)), ("r", "y", ())])],
        ),
        (
            "G2",
            [(OK, [("r", "x", ()), ("append", "y", 1)]), (OK, [("r", "y", ()), ("append", "x", 1)])],
        ),
        ("internal", [(OK, [("append", "x", 1), ("r", "x", ())])]),
        ("internal", [(OK, [("append", "x", 1)]), (OK, [("r", "x", ()), ("append", "x", 2), ("r", "x", (1, 2))])]),
        ("internal", [(OK, [("append", "x", 1)]), (OK, [("r", "x", ()), ("r", "x", (1,))])]),
        ("duplicate", [(OK, [("append", "x", 1)]), (OK, [("r", "x", (1, 1))])]),
        ("unexpected", [(OK, [("r", "x", (9,))])]),
        (
            "incompatible-order",
            [
                (OK, [("append", "x", 1)]),
                (OK, [("append", "x", 2)]),
                (OK, [("r", "x", (1, 2))]),
                (OK, [("r", "x", (2, 1))]),
            ],
        ),
    ],
)
def test_each_anomaly_is_found_and_named(name: str, transactions: list[tuple[str, list[Step]]]) -> None:
    verdict = check(_history(*transactions))
    assert verdict.valid is False
    assert name in {anomaly.name for anomaly in verdict.anomalies}
    assert verdict.summary()["valid"] is False
    anomaly = next(one for one in verdict.anomalies if one.name == name)
    assert anomaly.operations
    assert any(f"T{anomaly.operations[0].index} " in line for line in anomaly.lines)


def test_a_cycle_is_printed_with_its_reasons() -> None:
    history = _history((OK, [("append", "x", 1), ("append", "y", 1)]), (OK, [("r", "x", (1,)), ("r", "y", ())]))
    lines = list(check(history).lines())
    assert lines[1:] == [
        "not strictly serializable",
        "G-single:",
        "  T1 (line 1, process 1) r x [1] r y []\n    -rw-> read y as [], without 1 of",
        "  T0 (line 0, process 0) append x 1 append y 1\n    -wr-> appended 1 to x, which was read by",
        "  T1 (line 1, process 1) r x [1] r y []",
    ]


def test_what_a_failed_transaction_appended_is_told_and_goes_into_no_cycle() -> None:
    history = _one_by_one(
        (FAIL, [("append", "x", 1), ("append", "y", 1)]),
        (OK, [("append", "x", 2)]),
        (OK, [("r", "x", (1, 2)), ("r", "y", ())]),
        (OK, [("r", "y", (1,))]),
    )
    assert _names(history) == {"G1a"}


def test_a_stale_read_needs_the_order_of_time() -> None:
    stale = _one_by_one((OK, [("append", "x", 1)]), (OK, [("r", "x", ())]))
    assert _names(stale) == {"G-single-realtime"}
    lost = _one_by_one((OK, [("append", "x", 1)]), (OK, [("append", "x", 2)]), (OK, [("r", "x", (2,))]))
    assert any(name.endswith("-realtime") for name in _names(lost))
    backwards = _one_by_one((OK, [("append", "x", 1)]), (OK, [("append", "x", 2)]), (OK, [("r", "x", (2, 1))]))
    assert _names(backwards) == {"G0-realtime"}


def test_unknown_outcomes_may_have_happened_or_not() -> None:
    assert _names(_history((INFO, [("append", "x", 1)]), (OK, [("r", "x", (1,))]))) == set()
    assert _names(_history((INFO, [("append", "x", 1)]), (OK, [("r", "x", ())]))) == set()
    seen_then_gone = _one_by_one((INFO, [("append", "x", 1)]), (OK, [("r", "x", (1,))]), (OK, [("r", "x", ())]))
    assert _names(seen_then_gone) == {"G-single-realtime"}


@pytest.mark.parametrize(
    "value", [None, (1,), (("write", "x", 1),), (("append", "x"),), (("append", "x", 1), ("append", "x", 1))]
)
def test_what_is_no_transaction_on_lists_is_refused(value: Value) -> None:
    with pytest.raises(ModelError):
        check(pair([Event(1, 0, "invoke", "txn", value=value)]))


def _call(rng: random.Random, number: int) -> tuple[str, Value, Value]:
    keys = [rng.choice("xy") for _ in range(rng.randrange(1, 3))]
    return (
        "txn",
        None,
        tuple(
            ("append", key, 10 * number + place) if rng.random() < 0.5 else ("r", key, None)
            for place, key in enumerate(keys)
        ),
    )


def _apply(states: dict[Value, Value], f: str, key: Value, value: Value) -> Value:
    assert isinstance(value, tuple)
    answers = []
    for kind, name, element in value:
        now = states.get(name, ())
        assert isinstance(now, tuple)
        if kind == "append":
            states[name] = (*now, element)
        answers.append((kind, name, element if kind == "append" else now))
    return tuple(answers)


def _spoil(rng: random.Random, history: History) -> None:
    """One read forgets its end, or two of its elements change places."""
    candidates = [one for one in history.operations if one.known]
    for one in rng.sample(candidates, len(candidates)):
        assert isinstance(one.output, tuple)
        steps = list(one.output)
        for place, (kind, key, value) in enumerate(steps):
            if kind == "r" and value:
                steps[place] = (kind, key, value[:-1] if rng.random() < 0.6 else (*value[:-2], *value[-2:][::-1]))
                one.output = tuple(steps)
                return


def _with_last_reads(history: History) -> History:
    """A last transaction reads all lists, so that nothing stays unread."""
    states: dict[Value, Value] = {}
    longest: dict[Value, tuple[Value, ...]] = {"x": (), "y": ()}
    for one in history.operations:
        for append, key, value in steps_of(one):
            if not append and isinstance(value, tuple):
                longest[key] = max(longest[key], value, key=len)
    for one in history.operations:
        for append, key, value in steps_of(one):
            if append and value not in longest[key]:
                longest[key] = (*longest[key], value)
    assert not states
    last = replace(
        history.operations[-1],
        index=len(history.operations),
        process=999,
        output=tuple(("r", key, seen) for key, seen in longest.items()),
        call=history.events,
        ret=history.events + 1,
    )
    return History([*history.operations, last], events=history.events + 2)


def test_anomalies_are_told_exactly_when_no_order_exists() -> None:
    """If all that was appended is read at the end and no outcome is unknown, there is nothing that cannot be seen."""
    verdicts: Counter[bool] = Counter()
    for seed in range(CASES):
        rng = random.Random(f"lists {seed}")
        calls = [_call(rng, number) for number in range(1, rng.randrange(3, 7))]
        history = Recorder(rng, clients=3, lost=0).record(calls, _apply)
        if rng.random() < 0.6:
            _spoil(rng, history)
        history = _with_last_reads(history)
        expected = linearizable(Lists(), history.operations)
        assert check(history).valid is expected, f"seed {seed}: {history.operations}"
        verdicts[expected] += 1
    assert min(verdicts.values()) > CASES / 10


def test_nothing_is_called_an_anomaly_that_is_none() -> None:
    """With unknown outcomes and without last reads some anomalies cannot be seen; what is seen is still true."""
    found = 0
    for seed in range(CASES):
        rng = random.Random(f"unseen {seed}")
        calls = [_call(rng, number) for number in range(1, rng.randrange(3, 7))]
        history = Recorder(rng, clients=3, lost=0.2).record(calls, _apply)
        if rng.random() < 0.6:
            _spoil(rng, history)
        if not check(history).valid:
            found += 1
            assert not linearizable(Lists(), history.operations), f"seed {seed}: {history.operations}"
    assert found > CASES / 20


def test_components_of_random_graphs_agree_with_reachability() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        size = rng.randrange(2, 9)
        graph = Graph()
        pairs = {(rng.randrange(size), rng.randrange(size)) for _ in range(rng.randrange(2 * size))}
        for source, target in pairs:
            graph.add(source, target, rng.choice([WW, WR, RW]), "")
        reach = {(a, a) for a in range(size)} | {(a, b) for a, b in pairs if a != b}
        for _ in range(size):
            reach |= {(a, d) for a, b in reach for c, d in reach if b == c}
        expected = {frozenset(b for b in range(size) if (a, b) in reach and (b, a) in reach) for a in range(size)}
        found = {frozenset(one) for one in components(graph, (WW, WR, RW))}
        assert found == {one for one in expected if len(one) > 1}
        for cycle in find(graph):
            assert cycle.name == classify(cycle.edges)
            assert all(a.target == b.source for a, b in zip(cycle.edges, cycle.edges[1:], strict=False))
            assert cycle.edges[-1].target == cycle.edges[0].source
        assert bool(find(graph)) is bool(found), "every component has a cycle of some name"


def test_ten_thousand_transactions_are_judged_in_seconds() -> None:
    rng = random.Random(1)
    calls: list[tuple[str, Value, Value]] = []
    for number in range(10_000):
        key = number // 50
        steps = (("append", key, number), ("r", key + rng.randrange(2), None))
        calls.append(("txn", None, steps))
    verdict = check(Recorder(rng, clients=10, lost=0.001).record(calls, _apply))
    assert verdict.valid is True
    assert verdict.seconds < 10
