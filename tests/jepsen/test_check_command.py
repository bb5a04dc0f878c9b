"""`python -m jepsen check`: exit codes, the last line, bounds.

Method: the command in this process by click's runner; once as a process of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from jepsen.commands import jepsen
from jepsen.history import Event, History, pair
from jepsen.linearizability import check
from jepsen.models import model_named
from jepsen.search import Answer

DATA = Path(__file__).parent / "data"
HARD = 26


def _run(*arguments: str | Path) -> tuple[Result, dict[str, Any]]:
    result = CliRunner().invoke(jepsen, ["check", *map(str, arguments)])
    lines = result.stdout.splitlines()
    last: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return result, last


@pytest.mark.parametrize(
    ("name", "valid", "ops", "code"),
    [
        ("porcupine/etcd/etcd_002.log", True, 77, 0),
        ("porcupine/etcd/etcd_099.log", False, 82, 1),
        ("porcupine/etcd/etcd_095.log", True, 0, 0),
        ("porcupine/kv/c01-ok.txt", True, 58, 0),
        ("porcupine/kv/c10-bad.txt", False, 405, 1),
    ],
)
def test_the_last_line_and_the_exit_code_say_the_verdict(name: str, valid: bool, ops: int, code: int) -> None:
    result, last = _run(DATA / name)
    assert result.exit_code == code
    assert (last["valid"], last["ops"]) == (valid, ops)
    assert 0 <= last["seconds"] < 5
    assert set(last) == {"valid", "ops", "seconds"}
    assert ("linearizable" in result.stdout) and ("cannot be put in order" in result.stdout) is not valid


def test_format_and_model_may_be_named() -> None:
    result, _ = _run(DATA / "porcupine/etcd/etcd_005.log", "--format", "porcupine-etcd", "--model", "cas-register")
    assert result.exit_code == 0
    result, last = _run(DATA / "porcupine/etcd/etcd_005.log", "--format", "knossos")
    assert (result.exit_code, last) == (2, {})
    assert "line 1: " in result.stderr
    result, last = _run(DATA / "porcupine/etcd/etcd_005.log", "--model", "queue")
    assert (result.exit_code, last) == (2, {})
    assert "a queue knows" in result.stderr


def test_the_file_may_name_its_model(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text('{"history": 1, "model": "counter", "initial": 5}\n')
    with path.open("a") as file:
        for fields in ({"type": "invoke"}, {"type": "ok", "value": 5}):
            file.write(json.dumps({"process": 0, "f": "read", **fields}) + "\n")
    assert _run(path)[1]["valid"] is True
    path.write_text(path.read_text().replace("counter", "heap"))
    result, _ = _run(path)
    assert result.exit_code == 2
    assert "no model is called 'heap'" in result.stderr


def _lines(path: Path, *fields: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps({"process": 0, **one}) + "\n" for one in fields))
    return path


def test_transactions_on_lists_are_told_by_their_cycles(tmp_path: Path) -> None:
    txn = {"f": "txn"}
    path = _lines(
        tmp_path / "lists.jsonl",
        {**txn, "type": "invoke", "value": [["append", "x", 1]]},
        {**txn, "type": "ok", "value": [["append", "x", 1]]},
        {**txn, "type": "invoke", "value": [["r", "x", None]]},
        {**txn, "type": "ok", "value": [["r", "x", []]]},
    )
    result, last = _run(path, "--html", tmp_path / "page.html")
    assert (result.exit_code, last["valid"], last["ops"]) == (1, False, 2)
    assert "G-single-realtime:" in result.stdout
    assert "-realtime->" in result.stdout
    page = (tmp_path / "page.html").read_text()
    assert "G-single-realtime" in page
    assert '"edges":[[1,0,"rw","read x as [], without 1 of"],[0,1,"realtime",' in page
    good = _lines(path, {**txn, "type": "invoke", "value": [["append", "x", 1]]}, {**txn, "type": "info"})
    result, last = _run(good, "--html", tmp_path / "page.html", "--model", "list-append")
    assert (result.exit_code, last["valid"]) == (0, True)


def test_a_set_is_told_by_what_became_of_its_elements(tmp_path: Path) -> None:
    path = _lines(
        tmp_path / "set.jsonl",
        {"f": "add", "type": "invoke", "value": 1},
        {"f": "add", "type": "ok", "value": 1},
        {"f": "read", "type": "invoke"},
        {"f": "read", "type": "ok", "value": []},
    )
    result, last = _run(path)
    assert (result.exit_code, last["valid"]) == (1, False)
    assert "lost: 1\n" in result.stdout
    twice = _lines(
        path,
        {"f": "add", "type": "invoke", "value": 1},
        {"f": "add", "type": "ok", "value": 1},
        {"f": "read", "type": "invoke"},
        {"f": "read", "type": "ok", "value": [1, 1]},
    )
    result, last = _run(twice)
    assert (result.exit_code, last["valid"]) == (1, False)
    assert "duplicated: 1\n" in result.stdout


def test_as_a_process_of_its_own() -> None:
    command = [sys.executable, "-m", "jepsen", "check", str(DATA / "porcupine/etcd/etcd_097.log")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["valid"] is False
    assert done.stderr == ""


def _hard() -> History:
    """Counters that were raised by different powers of two, with no answer, and a sum that they cannot make."""
    events = [Event(number, number, "invoke", "add", value=2 << number) for number in range(HARD)]
    events += [Event(HARD, HARD, "invoke", "read"), Event(HARD, HARD, "ok", "read", value=(4 << HARD) - 3)]
    return pair(events)


def test_out_of_time_is_unknown_and_never_a_pass(tmp_path: Path) -> None:
    verdict = check(_hard(), model_named("counter"), seconds_max=0.1)
    assert verdict.valid is None
    assert "out of time" in verdict.why
    assert verdict.seconds < 5
    assert verdict.summary()["valid"] == "unknown"
    path = tmp_path / "hard.jsonl"
    with path.open("w") as file:
        for number in range(HARD):
            file.write(json.dumps({"process": number, "type": "invoke", "f": "add", "value": 2 << number}) + "\n")
        file.write(json.dumps({"process": HARD, "type": "invoke", "f": "read"}) + "\n")
        file.write(json.dumps({"process": HARD, "type": "ok", "f": "read", "value": (4 << HARD) - 3}) + "\n")
    result, last = _run(path, "--time-limit", "0.1")
    assert (result.exit_code, last["valid"]) == (2, "unknown")


def test_out_of_memory_is_unknown() -> None:
    verdict = check(_hard(), model_named("counter"), memory_bytes_max=1 << 20)
    assert verdict.valid is None
    assert "out of memory" in verdict.why


def test_what_is_unknown_does_not_hide_what_is_illegal() -> None:
    """One part runs out of time; another one is illegal, whichever is looked at first."""
    for lines in (1, HARD * 2):
        history = _hard()
        for one in history.operations:
            one.key = "hard"
        bad = pair(
            [Event(n, 0, kind, "read", "bad", value=7) for n in range(lines) for kind in ("invoke", "ok")]
        ).operations
        for one in bad:
            one.index += len(history.operations)
        history.operations += bad
        verdict = check(history, model_named("counter"), seconds_max=0.2, every_part=True)
        assert verdict.valid is False
        assert [part.answer for part in verdict.parts] == [Answer.ILLEGAL, Answer.UNKNOWN]


def test_the_first_illegal_part_ends_the_check_unless_all_are_wanted() -> None:
    events = [Event(n, 0, kind, "read", f"k{n}", value=n) for n in range(4) for kind in ("invoke", "ok")]
    verdict = check(pair(events), model_named("register"))
    assert verdict.valid is False
    assert sum(part.result is None for part in verdict.parts) == 3
    assert all(part.result for part in check(pair(events), model_named("register"), every_part=True).parts)
