"""Histories that others recorded of real systems get the verdict that is known of them.

Method: a selection lies in data/; a whole collection with an expected.json like it is judged, too, if the environment
variable KVSTORE_HISTORIES names its folder.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from jepsen import formats
from jepsen.counterexample import explain
from jepsen.history import Outcome
from jepsen.linearizability import Verdict, check
from jepsen.model import Model
from jepsen.models import guess, model_named

DATA = Path(__file__).parent / "data"
FOLDER = os.environ.get("KVSTORE_HISTORIES")
SLOW_S = 0.1
"""What takes porcupine longer may take 20 times as long here; all else only has to be quick."""
SECONDS_MAX = 2.0


def _expected(folder: Path, name: str = "expected.json") -> dict[str, dict[str, Any]]:
    path = folder / name
    found: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.exists() else {}
    return found


def _judged(path: Path, expected: dict[str, Any]) -> tuple[Model, Verdict]:
    history = formats.read(path)
    assert len(history.operations) == expected["ops"]
    model = model_named(expected["model"], history.meta.get("initial"))
    if history.operations:
        assert guess(history) == model.name
    verdict = check(history, model)
    assert verdict.valid is expected["linearizable"], path
    seconds = expected["porcupine_seconds"] or 0.0
    assert verdict.seconds < (20 * seconds if seconds > SLOW_S else SECONDS_MAX)
    return model, verdict


@pytest.mark.parametrize("name", _expected(DATA))
def test_a_recorded_history_gets_its_known_verdict(name: str) -> None:
    model, verdict = _judged(DATA / name, _expected(DATA)[name])
    for part in verdict.illegal:
        found = explain(model, part)
        assert found.smallest
        assert 0 < len(found.core) < len(part.operations)
        assert all(one.known for one in found.core)


def test_the_selection_has_both_verdicts_and_unknown_outcomes() -> None:
    expected = _expected(DATA)
    assert {one["linearizable"] for one in expected.values()} == {True, False}
    history = formats.read(DATA / "porcupine/etcd/etcd_002.log")
    assert sum(one.outcome is Outcome.UNKNOWN for one in history.operations) == 19


@pytest.mark.skipif(FOLDER is None, reason="KVSTORE_HISTORIES names no folder of recorded histories")
def test_a_whole_folder_of_histories_gets_its_known_verdicts() -> None:
    assert FOLDER is not None
    folder = Path(FOLDER)
    expected = _expected(folder) | _expected(folder, "expected_extra.json")
    assert expected
    for name, one in expected.items():
        _judged(folder / name, one)
