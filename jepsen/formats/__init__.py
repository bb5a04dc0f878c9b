"""History files: which format it is, and a History from it.

Invariant: what a format means (is a failed compare-and-set an observation? is a nil read a constraint?) is decided in
           its reader and nowhere else; models and checkers see operations only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from jepsen.formats import jsonl, knossos, porcupine
from jepsen.history import Event, History, HistoryError, pair

FORMATS = ("porcupine-etcd", "porcupine-kv", "knossos", "jsonl")
INITIAL = {"porcupine-etcd": None, "knossos": 0}
"""What a register holds before the first write, where the format says it."""
SUFFIXES = {".log": "porcupine-etcd", ".txt": "porcupine-kv", ".edn": "knossos"}
HEAD_BYTES = 4096


def guess(path: Path) -> str:
    """The format by the file's first bytes; an empty file by its name (it has no operation, so it does not matter)."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES).decode("utf-8", "replace")
    text = re.sub(r"\A(\s|;[^\n]*(\n|\Z))+", "", head)  # EDN may begin with comments
    if not text:
        return SUFFIXES.get(path.suffix, "jsonl")
    if text.startswith("INFO"):
        return "porcupine-etcd"
    if text[0] in "[(":
        return "knossos"
    if re.match(r"\{\s*:", text):
        return "porcupine-kv" if re.match(r"[^\n]*:key\b", text) else "knossos"
    if re.match(r'\{\s*"', text) or text.startswith("{}"):
        return "jsonl"
    raise HistoryError(1, f"the format cannot be guessed from {text[:40]!r}; name it with --format")


def read(path: Path, format: str | None = None) -> History:
    """The history in a file. Raises HistoryError (with a line number), and OSError where the file cannot be read."""
    name = format or guess(path)
    assert name in FORMATS, name
    reader = jsonl.Reader()
    with path.open("rb") as file:
        history = pair(_events(name, file, reader))
    history.meta = {"format": name, **reader.meta}
    history.truncated = reader.truncated
    if name in INITIAL:
        history.meta.setdefault("initial", INITIAL[name])
    return history


def _events(name: str, file: Iterable[bytes], reader: jsonl.Reader) -> Iterator[Event]:
    if name == "jsonl":
        return reader.events(file)
    if name == "knossos":
        return knossos.events("".join(_text(file)))
    lines = _text(file)
    return porcupine.etcd_events(lines) if name == "porcupine-etcd" else porcupine.kv_events(lines)


def _text(file: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise HistoryError(number, f"not UTF-8: {error}") from error
