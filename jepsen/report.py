"""One page of HTML that shows a judged history: time lines, the order that was found or where it ends, faults.

Invariant: the page is self-contained: styles, scripts and data are in it, and it asks no host for anything.
Invariant: what operations say is data. It is embedded as JSON in which no `<` is left, and shown as text only.

The page's parts lie in page/. Data goes by columns and long values are cut, so that 10,000 operations are about 1 MB.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import orjson

from jepsen.counterexample import Counterexample, states_of
from jepsen.history import NEVER, History, Operation, Outcome
from jepsen.linearizability import Part, Verdict
from jepsen.model import Model
from jepsen.narration import operation_text, value_text
from jepsen.search import Answer

ORDERS_MAX = 60
"""Partial orders that are kept of an illegal part, the longest first: each may be as long as the part."""
STATE_TEXT_MAX = 160
MARK = re.compile(r"\{\{(\w+)\}\}")
SCRIPTS = ("data.js", "lanes.js", "draw.js", "panel.js", "page.js")
OUTCOMES = {Outcome.OK: 0, Outcome.UNKNOWN: 1, Outcome.FAILED: 2}
VERDICTS = {True: "valid", False: "invalid", None: "unknown"}
ANSWERS = {Answer.LEGAL: "valid", Answer.ILLEGAL: "invalid", Answer.UNKNOWN: "unknown"}


def write(
    path: Path, history: History, verdict: Verdict, examples: Sequence[Counterexample], *, title: str = ""
) -> None:
    """Writes the page. `examples` explain illegal parts of the verdict, as many as there was time for."""
    path.write_text(page(history, verdict, examples, title=title), encoding="utf-8")


def page(history: History, verdict: Verdict, examples: Sequence[Counterexample], *, title: str = "") -> str:
    data = _data(history, verdict, examples, title or "History")
    text = _asset("page.html")
    fields = {
        "STYLE": _asset("page.css"),
        "SCRIPT": "\n".join(_asset(name) for name in SCRIPTS),
        "DATA": embedded(data),
    }
    pieces = MARK.split(text)  # text, mark, text, mark, ..., text: what is filled in is not searched again
    return "".join(fields[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def embedded(data: object) -> str:
    """JSON that may stand in a <script>: nothing in it can end the element or begin a comment."""
    return orjson.dumps(data).decode().replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _asset(name: str) -> str:
    return resources.files("jepsen").joinpath("page", name).read_text(encoding="utf-8")


def _data(history: History, verdict: Verdict, examples: Sequence[Counterexample], title: str) -> dict[str, object]:
    explained = {id(example.part): example for example in examples}
    operations = history.operations
    return {
        "title": title,
        "verdict": VERDICTS[verdict.valid],
        "why": verdict.why,
        "model": verdict.model.name,
        "promise": verdict.model.promise,
        "seconds": verdict.seconds,
        "truncated": history.truncated,
        "end": history.events,
        "meta": {name: str(value) for name, value in history.meta.items() if value is not None},
        "ops": {
            "process": [one.process for one in operations],
            "f": [one.f for one in operations],
            "text": [operation_text(one) for one in operations],
            "outcome": [OUTCOMES[one.outcome] for one in operations],
            "call": [one.call for one in operations],
            "ret": [_shown_end(one) for one in operations],
            "begin": [one.call_ns for one in operations],
            "end": [one.ret_ns for one in operations],
            "line": [one.line for one in operations],
            "error": [one.error for one in operations],
        },
        "parts": [_part(verdict.model, part, explained.get(id(part))) for part in verdict.parts],
        "marks": [
            [mark.process, mark.f, value_text(mark.value), mark.begin, mark.end, mark.begin_ns, mark.end_ns]
            for mark in history.annotations
        ],
    }


def _shown_end(one: Operation) -> int:
    """Where the bar of an operation ends: -1 if nothing more was heard of it."""
    end = one.heard if one.ret == NEVER else one.ret
    return end if end < NEVER else -1


def _part(model: Model, part: Part, example: Counterexample | None) -> dict[str, object]:
    result = part.result
    found: dict[str, object] = {
        "name": "" if part.key is None else value_text(part.key),
        "answer": ANSWERS[part.answer] if result is not None else "skipped",
        "why": result.why if result is not None else "not looked at: another part had settled the verdict",
        "configurations": result.configurations if result is not None else 0,
        "ops": [one.index for one in part.operations],
        "start": _state_text(model, model.initial()),
        "orders": [],
    }
    if result is not None and result.order:
        found["orders"] = [_order(model, result.order)]
    if example is not None:
        found |= _example(model, example)
    return found


def _order(model: Model, order: Sequence[Operation]) -> dict[str, object]:
    """`states` are texts, each once, and `state` says which one holds after each operation."""
    texts: dict[str, int] = {}
    numbers = [texts.setdefault(_state_text(model, state), len(texts)) for state in states_of(model, order)]
    return {"ops": [one.index for one in order], "states": list(texts), "state": numbers}


def _state_text(model: Model, state: object) -> str:
    text = model.describe(state)
    half = STATE_TEXT_MAX // 2
    return text if len(text) <= STATE_TEXT_MAX else f"{text[:half]} … {text[-half:]}"


def _example(model: Model, example: Counterexample) -> dict[str, object]:
    """The orders, the longest first, and for each operation which one is the longest that has it."""
    orders: dict[int, list[Operation]] = {}
    for order in [example.best, *sorted(example.longest.values(), key=len, reverse=True)]:
        if order and len(orders) < ORDERS_MAX:
            orders.setdefault(id(order), order)
    numbers = {key: number for number, key in enumerate(orders)}
    return {
        "orders": [_order(model, order) for order in orders.values()],
        "order_of": {str(op): numbers[id(order)] for op, order in example.longest.items() if id(order) in numbers},
        "core": [one.index for one in example.core],
        "smallest": example.smallest,
        "edges": example.edges,
        "begin": example.begin,
        "cut": example.cut if example.cut < NEVER else -1,
        "stuck": [one.index for one in example.stuck],
        "state": _state_text(model, example.state),
    }
