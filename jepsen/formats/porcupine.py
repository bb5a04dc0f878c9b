"""The two formats of porcupine's test data: Jepsen's log of an etcd register, and EDN maps of an append-only store.

etcd: `INFO  jepsen.util - 4 :invoke :cas [2 4]`, separated by any white space. `:ok :read nil` says that the key was
absent, a real constraint. `:fail :cas [a b]` says that the value was not a at its moment. `:fail :read :timed-out`
tells nothing; `:info` is unknown.   kv: one map a line, only `:invoke` and `:ok`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from jepsen.formats import edn, knossos
from jepsen.history import Event, HistoryError, Value, freeze

LINE = re.compile(r"INFO\s+jepsen\.util\s+-\s+(\S+)\s+:(\w+)\s+:(\w+)\s*(.*?)\s*$")


def etcd_events(lines: Iterable[str]) -> Iterator[Event]:
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        found = LINE.match(text)
        if found is None:
            raise HistoryError(number, f"not a line of an etcd log: {text.strip()[:80]!r}")
        process, kind, f, rest = found.groups()
        if kind not in knossos.TYPES:
            raise HistoryError(number, f"type is one of {', '.join(sorted(knossos.TYPES))}, not {kind!r}")
        value = _value(rest, number)
        yield Event(
            line=number,
            process=int(process) if process.isdecimal() else process.lstrip(":"),
            type=kind,
            f=f,
            value=None if value == "timed-out" else value,
            error="timed-out" if value == "timed-out" else None,
            observed=() if kind == "fail" and f == "cas" and value != "timed-out" else None,
        )


def _value(text: str, line: int) -> Value:
    values = [value for value, _ in edn.read(text)]
    if len(values) > 1:
        raise HistoryError(line, f"one value is expected, not {text!r}")
    return freeze(values[0]) if values else None


def kv_events(lines: Iterable[str]) -> Iterator[Event]:
    for number, text in enumerate(lines, start=1):
        try:
            for event in knossos.events(text):
                event.line = number
                if event.type not in ("invoke", "ok"):
                    raise HistoryError(number, "an append-only store's history has only :invoke and :ok")
                yield event
        except HistoryError as error:
            raise HistoryError(number, error.why) from error
