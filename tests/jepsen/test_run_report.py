"""Goal: the folder of a run leads to everything, tells what is wrong, and shows texts as texts. Method: outcomes and
histories made by hand; outages are found in histories whose times are known."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import orjson
import pytest

from jepsen import outages, plots, run_report
from jepsen.history import Event, History, freeze, pair
from jepsen.outages import NS
from jepsen.outcome import Options, Outcome
from jepsen.workloads import WORKLOADS


def history(*steps: tuple[Any, ...]) -> History:
    """Each step: (process, type, f, value, seconds)."""
    return pair(
        Event(line=line, process=process, type=kind, f=f, key=0, value=freeze(value), time=int(seconds * NS))
        for line, (process, kind, f, value, seconds) in enumerate(steps, start=1)
    )


def write(value: int, begin: float, end: float, kind: str = "ok") -> list[tuple[Any, ...]]:
    return [(value, "invoke", "write", value, begin), (value, kind, "write", value, end)]


def fault(name: str, begin: float, end: float, value: str = "n1") -> list[tuple[Any, ...]]:
    return [("nemesis", "invoke", name, value, begin), ("nemesis", "info", name, None, end)]


WRONG = history(*write(1, 0.0, 0.1), *write(2, 0.2, 0.3), (9, "invoke", "read", None, 0.4), (9, "ok", "read", 1, 0.5))


def report(folder: Path, one: History, **more: Any) -> str:
    options = Options(
        workloads=["register"], nemeses=["kill"], seconds=1, nodes=3, seed=42, out=folder, clients=1, rate=1.0
    )
    outcome = Outcome(None, {"register": WORKLOADS["register"](random.Random(1)).judge(one)}, **more)
    outcome.settle()
    run_report.write(options, outcome, {"register": one})
    return (folder / run_report.INDEX_FILE).read_text()


def test_a_wrong_history_is_told_and_explained(tmp_path: Path) -> None:
    (tmp_path / "n1.log").write_text("started\n")
    index = report(tmp_path, WRONG, faults={"kill": 2}, skipped={"clock": "no libfaketime"})
    assert 'class="badge invalid"' in index
    for link in ("register.html", "register.jsonl", "n1.log", "verdict.json"):
        assert f'href="{link}"' in index
    assert "no libfaketime" in index
    assert "--seed 42" in index
    verdict = orjson.loads((tmp_path / "verdict.json").read_bytes())
    assert verdict["valid"] is False
    page = (tmp_path / "register.html").read_text()
    data = orjson.loads(page.split('type="application/json">')[1].split("</script>")[0])
    (part,) = data["parts"]
    assert part["core"], "the contradiction is not explained"


def test_texts_are_shown_as_texts(tmp_path: Path) -> None:
    index = report(tmp_path, WRONG, problems=["<script>alert(1)</script>"], errors={"n1": ["<b>ERROR"]})
    assert "<script" not in index
    assert "<b>ERROR" not in index
    assert "&lt;script&gt;" in index


def test_a_run_with_a_problem_is_not_valid_though_its_histories_are(tmp_path: Path) -> None:
    right = history(*write(1, 0.0, 0.1))
    assert 'class="badge valid"' in report(tmp_path, right)
    assert "<title>invalid" in report(tmp_path, right, problems=["a node has ended"])


@pytest.mark.parametrize("faults", [[], fault("kill", 0.1, 0.2)])
def test_plots(tmp_path: Path, faults: list[tuple[Any, ...]]) -> None:
    pytest.importorskip("matplotlib", reason="the extra `bench` is not installed")
    one = history(*faults, *write(1, 0.3, 0.4), *write(2, 0.5, 0.6, "fail"), *write(3, 0.7, 0.8, "info"))
    plots.draw(tmp_path / "plot.png", one.operations, one.annotations, title="register")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_index_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "available", lambda: False)
    assert "kvstore[bench]" in report(tmp_path, WRONG)
    assert not (tmp_path / "plots").exists()


@pytest.mark.parametrize(
    ("faults", "expected"),
    [
        ([], ()),
        (fault("kill", 2.0, 3.0), ("kill",)),
        (fault("pause", 0.0, 0.4), ("pause",)),  # over, but its consequences may not be
    ],
)
def test_outages_and_the_faults_of_their_time(faults: list[tuple[Any, ...]], expected: tuple[str, ...]) -> None:
    steps = [*write(1, 0.0, 0.5), *write(2, 0.6, 5.0, "info"), *write(3, 5.5, 6.0), *write(4, 6.0, 6.5), *faults]
    (outage,) = outages.find([history(*sorted(steps, key=lambda step: step[4]))])
    assert (outage.begin_ns / NS, outage.seconds, outage.faults) == (0.5, 5.5, expected)


def test_a_fault_long_past_explains_nothing() -> None:
    steps = [*write(1, 0.0, 0.1), *fault("kill", 0.2, 0.3), *write(2, 1.5, 1.6), *write(3, 3.0, 3.1), *write(4, 4.9, 5)]
    steps += [*write(5, 6.5, 6.6), *write(6, 9.0, 9.1)]
    (outage,) = outages.find([history(*steps)])
    assert not outage.explained


def test_faults_of_one_kind_have_one_colour() -> None:
    assert plots.colour_of("slow-fsync") == plots.colour_of("failed-fsync") == plots.colour_of("wipe")
    assert plots.colour_of("slow") == plots.colour_of("partition-one") != plots.colour_of("slow-fsync")
    assert plots.colour_of("kill-all") != plots.colour_of("transfer")
