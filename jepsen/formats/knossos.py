"""Histories of Jepsen's knossos: one EDN vector or list of maps.

Meaning of a completion: `:fail` did not happen, a compare-and-set that failed included; `:info` is unknown;
`:ok :read nil` carries no information and is always legal. Processes that are no integers are the nemesis.
"""

from __future__ import annotations

from collections.abc import Iterator

from jepsen.formats import edn
from jepsen.history import Event, HistoryError, freeze

TYPES = {"invoke", "ok", "fail", "info"}


def events(text: str) -> Iterator[Event]:
    for value, line in edn.read_elements(text):
        if not isinstance(value, dict):
            raise HistoryError(line, f"a history is a list of maps, not of {value!r:.60}")
        yield _event(value, line)


def _event(fields: dict[object, object], line: int) -> Event:
    missing = [name for name in ("process", "type", "f") if name not in fields]
    if missing:
        raise HistoryError(line, f"{fields!r} lacks :{', :'.join(missing)}")
    kind, f = str(fields["type"]), str(fields["f"])
    if kind not in TYPES:
        raise HistoryError(line, f"{fields!r}: type is one of {', '.join(sorted(TYPES))}")
    process = fields["process"]
    time = fields.get("time")
    error = fields.get("error")
    value = freeze(fields.get("value"))
    return Event(
        line=line,
        process=process if isinstance(process, int) else str(process),
        type=kind,
        f=f,
        key=freeze(fields.get("key")),
        value=value,
        time=time if isinstance(time, int) else None,
        error=None if error is None else str(error),
        silent=kind == "ok" and f == "read" and value is None,
    )
