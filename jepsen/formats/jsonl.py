"""The project's own history format: one JSON object a line. docs/testing.md describes it for writers in any language.

An event:  {"process": 3, "type": "invoke", "f": "cas", "key": "k1", "value": [1, 2], "time": 1234567}
A header (optional, the first line):  {"history": 1, "model": "register", "seed": 7, ...}

`type` is invoke, ok, fail (certainly not done) or info (unknown). A refusal that tells what was seen is a `fail` with
`"observed": value`, or `"error": "CONFLICT"` if only the disagreement is known: both are judged as observations.
Invariant: a line is complete when it ends in a newline. A last line without one that does not parse was cut off by a
           crash: it is left out, and History.truncated says so. Anything else that is malformed is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import IO

import orjson

from jepsen.history import Event, HistoryError, Value, freeze

VERSION = 1
TYPES = frozenset({"invoke", "ok", "fail", "info"})
CONFLICT = "CONFLICT"
LINE_BYTES_MAX = 16 << 20
"""Longer than any answer of the store (4 MiB, in base64 and with its key): more is another file, not a history."""


class HistoryWriter:
    """Writes events as they happen. A line is one write, so a killed process leaves at most one cut line."""

    def __init__(self, file: IO[bytes], **header: object) -> None:
        self._file = file
        self._file.write(orjson.dumps({"history": VERSION, **header}) + b"\n")

    def write(
        self,
        process: int | str,
        type: str,
        f: str,
        *,
        time: int,
        key: object = None,
        value: object = None,
        **more: object,
    ) -> None:
        """One event; `more` may be error and observed. Values are what JSON can say; the caller encodes bytes."""
        assert type in TYPES, type
        fields: dict[str, object] = {"process": process, "type": type, "f": f}
        if key is not None:
            fields["key"] = key
        fields |= {"value": value, "time": time, **more}
        self._file.write(orjson.dumps(fields) + b"\n")


class Reader:
    """Lines of bytes in, events out, one at a time; `meta` and `truncated` are filled on the way."""

    def __init__(self) -> None:
        self.meta: dict[str, object] = {}
        self.truncated = False

    def events(self, lines: Iterable[bytes]) -> Iterator[Event]:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            if len(line) > LINE_BYTES_MAX:
                raise HistoryError(number, f"a line of {len(line)} bytes; at most {LINE_BYTES_MAX}")
            try:
                fields = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                if line.endswith(b"\n"):
                    raise HistoryError(number, f"no JSON: {error}") from error
                self.truncated = True
                return
            if not isinstance(fields, dict):
                raise HistoryError(number, f"a line is one JSON object, not {fields!r:.80}")
            if number == 1 and "history" in fields and "type" not in fields:
                self._header(fields)
            else:
                yield _event(fields, number)

    def _header(self, fields: dict[str, object]) -> None:
        if fields["history"] != VERSION:
            raise HistoryError(1, f"version {fields['history']!r} of the format; this reader knows {VERSION}")
        self.meta = {name: value for name, value in fields.items() if name != "history"}


def _event(fields: dict[str, object], line: int) -> Event:
    process, kind, f = fields.get("process"), fields.get("type"), fields.get("f")
    if isinstance(process, bool) or not isinstance(process, int | str):
        raise HistoryError(line, f"process is an integer (a client) or a string (a nemesis), not {process!r}")
    if kind not in TYPES:
        raise HistoryError(line, f"type is one of {', '.join(sorted(TYPES))}, not {kind!r}")
    if not isinstance(f, str) or not f:
        raise HistoryError(line, f"f is the name of the operation, not {f!r}")
    time = fields.get("time")
    if time is not None and (isinstance(time, bool) or not isinstance(time, int)):
        raise HistoryError(line, f"time is in integer nanoseconds, not {time!r}")
    error = fields.get("error")
    return Event(
        line=line,
        process=process,
        type=str(kind),
        f=f,
        key=freeze(fields.get("key")),
        value=freeze(fields.get("value")),
        time=time,
        error=None if error is None else str(error),
        observed=_observed(fields, kind, error),
    )


def _observed(fields: dict[str, object], kind: object, error: object) -> tuple[Value, ...] | None:
    if kind != "fail":
        return None
    if "observed" in fields:
        return (freeze(fields["observed"]),)
    return () if error == CONFLICT else None
