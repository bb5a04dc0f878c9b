"""Writes down what clients and nemeses do, in the order in which it happens here.

Invariant: an invocation is written before anything is sent, a completion after everything has come back: so an
    operation took effect, if at all, between its two lines (or after the second, if that says `info`).
Invariant: a process whose last outcome is unknown never speaks again; its client goes on under a new number.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from jepsen.formats.jsonl import CONFLICT, HistoryWriter
from kvstore.base.errors import Conflict, KVError


@dataclass(slots=True)
class Op:
    """What a client is to do. Values are JSON."""

    f: str
    key: Any = None
    value: Any = None


@dataclass(slots=True)
class Refused:
    """An answer that says: not done, because the value was `observed` instead."""

    observed: Any


Answer = Any | Refused
Apply = Callable[[Op], Awaitable[Answer]]


class Recorder:
    def __init__(self, to: Path | IO[bytes], *, clock: Callable[[], int] = time.monotonic_ns, **header: object) -> None:
        """`clock`: ns that only rise."""
        self._file: IO[bytes] = to.open("wb", buffering=0) if isinstance(to, Path) else to
        self._clock = clock
        self._writer = HistoryWriter(self._file, **header)
        self._began = clock()
        self._processes = 0
        self.counts: Counter[tuple[str, str]] = Counter()  # (f, ok / fail / info)
        self.faults: Counter[str] = Counter()

    def now(self) -> int:
        """ns since the beginning."""
        return self._clock() - self._began

    def process(self) -> int:
        """A number for a client that begins anew."""
        self._processes += 1
        return self._processes - 1

    async def run(self, process: int, op: Op, apply: Apply) -> int:
        """Do it and write down both ends; the number under which the client goes on."""
        self._writer.write(process, "invoke", op.f, key=op.key, value=op.value, time=self.now())
        more: dict[str, Any] = {}
        value = op.value
        try:
            answer = await apply(op)
        except Conflict:
            kind, more["error"] = "fail", CONFLICT
        except KVError as error:
            kind, more["error"] = ("fail" if error.definite else "info"), f"{error.code.name}: {error.message}"
        else:
            kind = "ok"
            if isinstance(answer, Refused):
                kind, more["observed"] = "fail", answer.observed
            else:
                value = answer
        self._writer.write(process, kind, op.f, key=op.key, value=value, time=self.now(), **more)
        self.counts[op.f, kind] += 1
        return self.process() if kind == "info" else process

    def fault(self, nemesis: str, f: str, *, begin: bool, value: object = None) -> None:
        """A fault begins, or is over."""
        self._writer.write(nemesis, "invoke" if begin else "info", f, value=value, time=self.now())
        if begin:
            self.faults[f] += 1

    def close(self) -> None:
        self._file.close()
