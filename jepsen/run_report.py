"""The folder of a run: verdict.json, a page for each workload, plots, and an index that leads to all of it.

Invariant: the pages are self-contained but for the plots and logs beside them, and what they show is data: every text
    is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from pathlib import Path

import orjson

from jepsen import plots, report
from jepsen.history import History
from jepsen.outcome import VERDICT_FILE, Options, Outcome
from jepsen.workloads.base import Judgement

INDEX_FILE = "index.html"
PLOTS_FOLDER = "plots"
OVERALL = "all"
LINES_MAX = 12
WORDS = {True: "valid", False: "invalid", None: "unknown"}


def write(options: Options, outcome: Outcome, histories: Mapping[str, History]) -> None:
    folder = options.out
    (folder / VERDICT_FILE).write_bytes(orjson.dumps(outcome.document(options), option=orjson.OPT_INDENT_2))
    for name, history in histories.items():
        judgement = outcome.judgements[name]
        if judgement.verdict is not None:
            judgement.explain()
            title = f"{name}, seed {options.seed}"
            report.write(folder / f"{name}.html", history, judgement.verdict, judgement.examples, title=title)
    if plots.available():
        _draw(folder / PLOTS_FOLDER, options, histories)
    (folder / INDEX_FILE).write_text(_index(options, outcome), encoding="utf-8")


def _draw(folder: Path, options: Options, histories: Mapping[str, History]) -> None:
    folder.mkdir(exist_ok=True)
    for name, history in histories.items():
        plots.draw(folder / f"{name}.png", history.operations, history.annotations, title=name)
    every = [one for history in histories.values() for one in history.operations]
    faults = next((history.annotations for history in histories.values()), [])
    title = f"all workloads: {options.nodes} nodes, seed {options.seed}"
    plots.draw(folder / f"{OVERALL}.png", every, faults, title=title)


def _index(options: Options, outcome: Outcome) -> str:
    word = WORDS[outcome.valid]
    body = [
        f'<header><span class="badge {word}">{word}</span><h1>Seed {options.seed}</h1><dl>',
        *(f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd></div>" for what, value in _facts(options, outcome)),
        "</dl></header><main>",
        *_section("Problems", _list(outcome.problems, "bad")),
        *_section("Workloads", _workloads(outcome)),
        *_section("What happened", [_plot(OVERALL) if plots.available() else _paragraph(plots.LACKING)]),
        *_section("Faults", _faults(outcome)),
        *_section("Nobody was answered", _outages(outcome)),
        *_section("Nodes", _nodes(options.out, outcome)),
        *_section("Again", [f"<pre>{escape(options.command())}</pre>", _paragraph("judges the answers anew:")]),
        f"<pre>{escape(_check_command(outcome))}</pre></main>",
    ]
    style = resources.files("jepsen").joinpath("page", "index.css").read_text(encoding="utf-8")
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark"><link rel="icon" href="data:,"><title>{word}: seed {options.seed}</title><style>{style}</style>'  # noqa: E501
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def _facts(options: Options, outcome: Outcome) -> Iterable[tuple[str, str]]:
    yield "nodes", str(options.nodes)
    yield "attacked for", f"{options.seconds:g} s"
    yield "operations", f"{outcome.operations:,}"
    yield "faults", str(sum(outcome.faults.values()))
    yield "recovered", "no" if outcome.recovery_seconds is None else f"in {outcome.recovery_seconds:.1f} s"
    if outcome.outages:
        yield "longest without an answer", f"{outcome.outages[0].seconds:.1f} s"


def _section(title: str, lines: Iterable[str]) -> list[str]:
    found = list(lines)
    return [f"<section><h2>{escape(title)}</h2>", *found, "</section>"] if found else []


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _list(lines: Iterable[str], kind: str) -> list[str]:
    found = [f"<li>{escape(line)}</li>" for line in lines]
    return [f'<ul class="{kind}">', *found, "</ul>"] if found else []


def _workloads(outcome: Outcome) -> Iterable[str]:
    yield "<table><tr><th>workload<th>verdict<th>answered<th>refused<th>unknown<th>found<th></tr>"
    for name, judgement in outcome.judgements.items():
        counts = outcome.counts.get(name, {})
        word = WORDS[judgement.valid]
        numbers = (_sum(counts, kind) for kind in ("ok", "fail", "info"))
        yield f'<tr><td><a href="{name}.html">{name}</a><td><span class="badge {word}">{word}</span>'
        yield "".join(f'<td class="number">{number:,}' for number in numbers)
        yield f"<td>{_found(judgement)}<td>{_links(name)}</tr>"
    yield "</table>"


def _sum(counts: Mapping[str, int], kind: str) -> int:
    return sum(count for what, count in counts.items() if what.endswith(f" {kind}"))


def _found(judgement: Judgement) -> str:
    lines = [escape(line) for line in judgement.lines[:LINES_MAX]]
    if len(judgement.lines) > LINES_MAX:
        lines.append(f"and {len(judgement.lines) - LINES_MAX} more")
    if lines:
        return f'<span class="bad">{"<br>".join(lines)}</span>'
    return escape(", ".join(f"{what.replace('_', ' ')} {number}" for what, number in judgement.numbers.items()))


def _links(name: str) -> str:
    links = [f'<a href="{name}.html">page</a>', f'<a href="{name}.jsonl">history</a>']
    if plots.available():
        links.insert(1, f'<a href="{PLOTS_FOLDER}/{name}.png">plot</a>')
    return " · ".join(links)


def _plot(name: str) -> str:
    return f'<a href="{PLOTS_FOLDER}/{name}.png"><img src="{PLOTS_FOLDER}/{name}.png" alt="Latency and throughput"></a>'


def _faults(outcome: Outcome) -> Iterable[str]:
    if outcome.faults:
        yield '<ul class="chips">'
        for name, count in sorted(outcome.faults.items(), key=lambda item: (-item[1], item[0])):
            yield f'<li style="--dot: {plots.colour_of(name)}">{escape(name)} <b>{count}</b></li>'
        yield "</ul>"
    yield from _list((f"{name} was left out: {why}" for name, why in outcome.skipped.items()), "open")


def _outages(outcome: Outcome) -> Iterable[str]:
    lines = (
        f"{one.seconds:.1f} s from second {one.begin_ns / 1e9:.1f} on: {', '.join(one.faults) or 'WITHOUT A FAULT'}"
        for one in outcome.outages[:LINES_MAX]
    )
    return _list(lines, "open")


def _nodes(folder: Path, outcome: Outcome) -> Iterable[str]:
    yield "<ul>"
    for log in sorted(folder.glob("*.log")):
        errors = outcome.errors.get(log.stem, [])
        more = f", {len(errors)} lines tell of errors" if errors else ""
        yield f'<li><a href="{log.name}">{escape(log.name)}</a> {log.stat().st_size // 1024:,} KiB{more}</li>'
    yield f'<li><a href="{VERDICT_FILE}">{VERDICT_FILE}</a></li></ul>'
    for name, lines in outcome.errors.items():
        if lines:
            yield f"<details><summary>{escape(name)}</summary><pre>{escape(chr(10).join(lines[:LINES_MAX]))}</pre>"
            yield "</details>"


def _check_command(outcome: Outcome) -> str:
    name = next(iter(outcome.judgements), "register")
    return f"python -m jepsen check {name}.jsonl"
