"""Goal: a log line can be read by people and by machines, whatever is logged. Method: records in, lines out."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from kvstore.cli import logs


class Sink:
    def __init__(self, form: str) -> None:
        self.stream = io.StringIO()
        self.handler = logs.configure(node="n1", form=form, level="info", stream=self.stream)

    def lines(self) -> list[str]:
        return self.stream.getvalue().splitlines()


@pytest.fixture(params=["text", "json"])
def sink(request: pytest.FixtureRequest) -> Iterator[Sink]:
    root = logging.getLogger()
    level = root.level
    made = Sink(request.param)
    yield made
    root.removeHandler(made.handler)
    root.setLevel(level)


log = logging.getLogger("kvstore.replica.host")


def test_level_node_logger_and_fields_are_on_the_line(sink: Sink) -> None:
    log.debug("not asked for")
    log.warning("became %s", "leader", extra={"shard": 2, "term": 3, "key": b"\xff", "names": {"a": 1}})
    (line,) = sink.lines()
    if isinstance(sink.handler.formatter, logs.JsonFormatter):
        parsed: dict[str, Any] = orjson.loads(line)
        assert parsed.pop("time").endswith("Z")
        assert parsed == {
            "level": "warning", "node": "n1", "logger": "kvstore.replica.host", "message": "became leader",
            "shard": 2, "term": 3, "key": "\\xff", "names": {"a": 1},
        }  # fmt: skip
    else:
        stamp, _, rest = line.partition(" ")
        assert stamp.endswith("Z")
        assert rest == "WARNING n1 replica.host: became leader shard=2 term=3 key=b'\\xff' names={'a': 1}"


def test_a_message_can_not_forge_a_second_line(sink: Sink) -> None:
    log.error("one\n2026-01-01T00:00:00Z ERROR n2 two", extra={"from": "a\nb"})
    assert len(sink.lines()) == 1


def test_a_traceback_stays_with_its_line(sink: Sink) -> None:
    try:
        raise ValueError("deep")
    except ValueError:
        log.exception("it failed")
    first, *others = sink.lines()
    assert "it failed" in first
    if isinstance(sink.handler.formatter, logs.JsonFormatter):
        assert others == []
        assert "ValueError: deep" in orjson.loads(first)["exception"]
    else:
        assert all(line.startswith("    ") for line in others)
        assert others[-1].endswith("ValueError: deep")


def test_fields_never_overwrite_the_standard_ones(sink: Sink) -> None:
    log.info("hello", extra={"node": "n9", "level": "none"})
    (line,) = sink.lines()
    if isinstance(sink.handler.formatter, logs.JsonFormatter):
        assert orjson.loads(line)["node"] == "n1"
        assert orjson.loads(line)["level"] == "info"
