"""Reading and writing histories: what each format means, and that broken text is named with its line.

Method: short texts in every format, the events of one of them cut at every byte.
"""

from __future__ import annotations

import io
from pathlib import Path

import orjson
import pytest

from jepsen import formats
from jepsen.formats import edn
from jepsen.formats.jsonl import HistoryWriter, Reader
from jepsen.history import NEVER, Event, HistoryError, Outcome, pair
from jepsen.linearizability import check
from jepsen.models import model_named

ETCD = """INFO  jepsen.util - 4\t:invoke\t:write\t3
INFO  jepsen.util - 0   :invoke :cas    [3 4]
INFO  jepsen.util - 4\t:ok\t:write\t3
INFO  jepsen.util - 0   :fail   :cas    [3 4]
INFO  jepsen.util - 1\t:invoke\t:read\tnil
INFO  jepsen.util - 1\t:fail\t:read\t:timed-out
INFO  jepsen.util - 2\t:invoke\t:cas\t[1 2]
INFO  jepsen.util - 2\t:info\t:cas\t:timed-out
INFO  jepsen.util - 3\t:invoke\t:read\tnil
INFO  jepsen.util - 3\t:ok\t:read\tnil
INFO  jepsen.util - 5\t:invoke\t:write\t7
"""
KNOSSOS = """; a comment
[{:process 1, :type :invoke, :f :write, :value 3 :time 10 :index 0}
 {:f :write :process 1 :value 3 :type :fail, :error [:temporarily-unavailable nil]}
 #_ {:process 9}
 {:process :nemesis, :type :info, :f :start, :value "isolated {n1 #{n2}}"}
 {:process 2, :type :invoke, :f :cas, :value [0 1]}
 {:process 2, :type :info, :f :cas, :value [0 1]}
 {:process 3, :type :invoke, :f :read, :value nil}
 {:process 3, :type :ok, :f :read, :value nil}
 {:process 3, :type :invoke, :f :read, :value nil}
 {:process 3, :type :ok, :f :read, :value 1}]
"""
KV = """{:process 0, :type :invoke, :f :append, :key "9", :value "x 0 \\"y"}
{:process 0, :type :ok, :f :append, :key "9", :value "x 0 \\"y"}
{:process 1, :type :invoke, :f :get, :key "9", :value nil}
{:process 1, :type :ok, :f :get, :key "9", :value "x 0 \\"y"}
"""


def _file(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "history"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_etcd_log(tmp_path: Path) -> None:
    path = _file(tmp_path, ETCD)
    assert formats.guess(path) == "porcupine-etcd"
    write, cas, lost_read, lost_cas, read, unanswered = formats.read(path).operations
    assert (write.input, write.outcome, write.call, write.ret) == (3, Outcome.OK, 0, 2)
    assert (cas.input, cas.refused, cas.known) == ((3, 4), (), True)
    assert lost_read.outcome is Outcome.FAILED
    assert (lost_cas.outcome, lost_cas.ret, lost_cas.error) == (Outcome.UNKNOWN, NEVER, "timed-out")
    assert (read.output, read.known, read.silent) == (None, True, False)
    assert (unanswered.outcome, unanswered.ret) == (Outcome.UNKNOWN, NEVER)


def test_knossos_edn(tmp_path: Path) -> None:
    path = _file(tmp_path, KNOSSOS)
    assert formats.guess(path) == "knossos"
    history = formats.read(path)
    write, cas, silent, read = history.operations
    assert (write.outcome, write.error, write.line, write.call_ns) == (
        Outcome.FAILED,
        "('temporarily-unavailable', None)",
        2,
        10,
    )
    assert cas.outcome is Outcome.UNKNOWN
    assert (silent.silent, silent.output) == (True, None)
    assert (read.silent, read.output, read.line) == (False, 1, 10)
    assert [mark.f for mark in history.annotations] == ["start"]
    assert history.meta["initial"] == 0
    assert check(history, model_named("register", 0)).valid is True


def test_append_store_maps(tmp_path: Path) -> None:
    path = _file(tmp_path, KV)
    assert formats.guess(path) == "porcupine-kv"
    append, get = formats.read(path).operations
    assert (append.key, append.input) == ("9", 'x 0 "y')
    assert (get.output, get.f) == ('x 0 "y', "get")


@pytest.mark.parametrize("suffix", [".log", ".txt", ".edn", ".jsonl", ""])
def test_an_empty_file_is_an_empty_history(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"empty{suffix}"
    path.write_text("")
    assert formats.read(path).operations == []


def test_text_of_no_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match="cannot be guessed"):
        formats.read(_file(tmp_path, "<html>"))


@pytest.mark.parametrize(
    ("name", "text", "line", "why"),
    [
        ("porcupine-etcd", "INFO  jepsen.util - 1 :invoke :read nil\nWARN what\n", 2, "not a line of an etcd log"),
        ("porcupine-etcd", "INFO  jepsen.util - 1 :start :read nil\n", 1, "type is one of"),
        ("porcupine-etcd", "INFO  jepsen.util - 1 :invoke :cas [1 2\n", 1, "ends inside"),
        ("porcupine-etcd", "INFO  jepsen.util - 1 :ok :read 1\n", 1, "never invoked"),
        ("porcupine-kv", KV + '{:process 1, :type :info, :f :get, :key "9"}\n', 5, "only :invoke and :ok"),
        ("porcupine-kv", KV + "{:process 1, :type :ok\n", 5, "ends inside"),
        ("knossos", "[{:process 1, :type :invoke}\n]", 1, "lacks :f"),
        ("knossos", "[\n{:process 1, :type :invoke, :f :read} 7]", 2, "list of maps"),
        ("knossos", "[\n{:process 1, :type :invoke, :f :read}", 1, "ends inside"),
        ("knossos", '[{:process 1, :type :invoke, :f "re', 1, "a string without an end"),
        ("knossos", "[{:process 1 :type}]", 1, "a key and no value"),
        ("knossos", "[)]", 1, "unexpected"),
        ("knossos", b"[\n\xff\xfe]", 2, "not UTF-8"),
        ("jsonl", '{"process": 1}\n', 1, "type is one of"),
        ("jsonl", '{"process": 1.5, "type": "invoke", "f": "read"}\n', 1, "process is"),
        ("jsonl", '{"process": true, "type": "invoke", "f": "read"}\n', 1, "process is"),
        ("jsonl", '{"process": 1, "type": "invoke", "f": ""}\n', 1, "f is the name"),
        ("jsonl", '{"process": 1, "type": "invoke", "f": "read", "time": "now"}\n', 1, "nanoseconds"),
        ("jsonl", "\n[1]\n", 2, "one JSON object"),
        ("jsonl", '{"process": 1, "type": "in\n{}\n', 1, "no JSON"),
        ("jsonl", '{"history": 2}\n', 1, "version 2"),
    ],
)
def test_malformed_text_is_named_with_its_line(
    tmp_path: Path, name: str, text: str | bytes, line: int, why: str
) -> None:
    with pytest.raises(HistoryError, match=why) as caught:
        formats.read(_file(tmp_path, text), name)
    assert caught.value.line == line


def test_deep_nesting_is_refused_and_not_a_crash() -> None:
    with pytest.raises(HistoryError, match="nested deeper"):
        list(edn.read("[" * 100_000))
    with pytest.raises(HistoryError, match="nested deeper"):
        list(edn.read_elements("[" * 100_000))


def test_edn_values() -> None:
    text = r'nil true -3 4N 2.5 "a\n\"b\"" sym :key #{1} {:a [1 (2)]} #inst "2026" \c'
    assert [value for value, _ in edn.read(text)] == [
        *(None, True, -3, 4, 2.5, 'a\n"b"', "sym", "key", frozenset({1}), {"a": (1, (2,))}, "2026", r"\c"),
    ]


@pytest.mark.parametrize(
    ("kinds", "why"),
    [
        ([(1, "invoke", "read"), (1, "invoke", "read")], "while its last operation is open"),
        ([(1, "invoke", "read"), (1, "info", "read"), (1, "invoke", "read")], "after an unknown outcome"),
        ([(1, "invoke", "read"), (1, "ok", "write")], "invoked read and completes write"),
        ([(1, "info", "read")], "never invoked"),
    ],
)
def test_a_process_that_contradicts_itself_is_refused(kinds: list[tuple[int, str, str]], why: str) -> None:
    events = [Event(line, process, kind, f) for line, (process, kind, f) in enumerate(kinds, start=1)]
    with pytest.raises(HistoryError, match=why) as caught:
        pair(events)
    assert caught.value.line == len(kinds)


def _written() -> bytes:
    file = io.BytesIO()
    writer = HistoryWriter(file, model="register", seed=7)
    writer.write(0, "invoke", "cas", key="k", value=[1, {"a": [2]}], time=5)
    writer.write("nemesis", "invoke", "partition", value=["n1", "n2"], time=6)
    writer.write(0, "fail", "cas", key="k", value=[1, 2], time=7, error="CONFLICT", observed=3)
    writer.write(1, "invoke", "cas", key="k", value=[1, 2], time=8)
    writer.write(1, "fail", "cas", key="k", value=[1, 2], time=9, error="CONFLICT")
    writer.write("nemesis", "ok", "partition", time=10)
    writer.write(1, "invoke", "write", key="k", value="ü", time=11)
    writer.write(1, "info", "write", key="k", value="ü", time=12, error="TIMEOUT")
    writer.write(2, "invoke", "write", key="k", value=1, time=13)
    writer.write(2, "fail", "write", key="k", value=1, time=14, error="NOT_LEADER")
    writer.write("nemesis", "info", "kill", value="n1", time=15)
    return file.getvalue()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = _file(tmp_path, _written())
    assert formats.guess(path) == "jsonl"
    history = formats.read(path)
    assert history.meta == {"format": "jsonl", "model": "register", "seed": 7}
    seen, refused, unknown, failed = history.operations
    assert (seen.input, seen.refused, seen.known, seen.ret_ns) == ((1, (("a", (2,)),)), (3,), True, 7)
    assert (refused.refused, refused.known) == ((), True)
    assert (unknown.outcome, unknown.ret_ns, unknown.error) == (Outcome.UNKNOWN, 12, "TIMEOUT")
    assert failed.outcome is Outcome.FAILED
    partition, kill = history.annotations
    assert (partition.begin_ns, partition.end_ns, partition.value) == (6, 10, ("n1", "n2"))
    assert (kill.begin, kill.end) == (10, 10)


def test_a_history_cut_at_any_byte_is_read_up_to_there() -> None:
    """A crash cuts the last line. What was complete before counts, and what was open then has an unknown outcome."""
    whole = _written()
    for size in range(len(whole)):
        reader = Reader()
        history = pair(reader.events(io.BytesIO(whole[:size])))
        lines = whole[:size].count(b"\n")
        complete = size == 0 or whole[:size].endswith(b"\n") or whole[size : size + 1] == b"\n"
        assert reader.truncated is not complete
        assert history.events == max(0, lines - 1 + (complete and not whole[:size].endswith(b"\n") and lines > 0))


def test_a_fault_that_is_never_healed_lasts_to_the_end() -> None:
    events = [
        Event(1, "nemesis", "invoke", "pause", value="n2"),
        Event(2, 0, "invoke", "read"),
        Event(3, 0, "ok", "read"),
    ]
    (mark,) = pair(events).annotations
    assert (mark.begin, mark.end, mark.end_ns) == (0, 3, None)


def test_a_million_bytes_a_line_stream_through(tmp_path: Path) -> None:
    """Lines are read one at a time; a value of a megabyte is fine."""
    path = tmp_path / "long"
    event = {"process": 0, "type": "invoke", "f": "write", "value": "x" * 1_000_000}
    path.write_bytes(orjson.dumps(event) + b"\n" + orjson.dumps({**event, "type": "ok"}) + b"\n")
    (one,) = formats.read(path).operations
    assert one.known
