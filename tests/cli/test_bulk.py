"""Goal: import and export lose nothing, and say where an import stopped. Method: round trips through a real cluster,
a table of bad files, and a client that fails at a chosen frame."""

from __future__ import annotations

import io
import random
from pathlib import Path

import orjson
import pytest

from kvstore.base.errors import KVError, Timeout
from kvstore.cli import bulk
from kvstore.cli.bulk import Import, Reader
from kvstore.cli.failure import CommandFailed
from kvstore.cli.progress import Progress
from kvstore.cli.records import encode_line
from tests.cli.conftest import Kvctl


def test_a_round_trip_of_any_bytes(ctl: Kvctl, tmp_path: Path) -> None:
    rng = random.Random(4)
    pairs = {rng.randbytes(rng.randint(1, 480)): rng.randbytes(rng.randint(0, 300)) for _ in range(3_000)}
    pairs |= {f"text/{number}".encode(): f"zäh {number}".encode() for number in range(500)}
    before, after = tmp_path / "before.ndjson", tmp_path / "after.ndjson"
    lines = [encode_line(key, value) for key, value in pairs.items()]
    before.write_bytes(b"".join(lines))
    assert ctl("import", str(before)).stdout.startswith("imported 3,500 keys in ")
    told = ctl.json("export", str(after))
    assert (told["exported"], told["file"]) == (3_500, str(after))
    assert after.read_bytes() == b"".join(encode_line(key, pairs[key]) for key in sorted(pairs))
    assert not list(tmp_path.glob("*.part"))


def test_standard_input_and_output_and_ranges(ctl: Kvctl) -> None:
    told = ctl.json("import", "-", stdin=b'{"key": "a", "value": "1"}\n\n{"key": "b", "value_base64": "/w=="}')
    assert (told["imported"], told["bad_lines"]) == (2, 0)
    assert ctl("export", "-").stdout_bytes == b'{"key":"a","value":"1"}\n{"key":"b","value_base64":"/w=="}\n'
    assert ctl("export", "-", "--prefix", "a").stdout_bytes == b'{"key":"a","value":"1"}\n'
    assert ctl("export", "--start", "b", "-").stderr.startswith("exported 1 keys")


def test_a_large_value_makes_a_frame_of_its_own(ctl: Kvctl) -> None:
    lines = b"".join(encode_line(b"big%d" % number, b"x" * 1_000_000) for number in range(10))
    assert ctl.json("import", "-", stdin=lines)["imported"] == 10
    assert ctl("export", "-").stdout_bytes == lines


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (b"nonsense", "malformed"),
        (b'{"key": "x"}', "exactly one of 'value' and 'value_base64'"),
        (b'{"key": "", "value": "1"}', "the key has 0 bytes"),
        (b'{"key": "' + b"k" * 481 + b'", "value": "1"}', "the key has 481 bytes"),
    ],
)
def test_a_bad_line_is_named_and_what_stood_before_it_is_in(ctl: Kvctl, bad: bytes, says: str) -> None:
    good = [b'{"key": "k%04d", "value": "1"}' % number for number in range(2_500)]
    content = b"\n".join([*good[:2_200], bad, *good[2_200:]])
    stopped = ctl("import", "-", stdin=content, exit_code=1)
    assert stopped.stderr.startswith("kvctl: BAD_INPUT: stdin:2201: ")
    assert says in stopped.stderr
    assert "go on with --from-line 2201)" in stopped.stderr
    assert len(stopped.stderr.splitlines()) == 1
    assert len(ctl.json("scan", "--limit", "5000")["items"]) == 2_200
    fixed = content.replace(bad, b'{"key": "fixed", "value": "1"}')
    assert ctl.json("import", "-", "--from-line", "2201", stdin=fixed)["imported"] == 301
    assert len(ctl.json("scan", "--limit", "5000")["items"]) == 2_501


def test_bad_lines_may_be_skipped(ctl: Kvctl) -> None:
    content = b'{"key": "a", "value": "1"}\nbad\n{"key": "b", "value": "2"}\n{}\n'
    result = ctl("import", "-", "--skip-bad", stdin=content, exit_code=1)
    assert [line.partition(": ")[0] for line in result.stderr.splitlines()] == ["stdin:2", "stdin:4", "kvctl"]
    assert result.stdout.startswith("imported 2 keys")
    assert [item["key"] for item in ctl.json("scan")["items"]] == ["a", "b"]


def test_files_that_can_not_be_opened(ctl: Kvctl, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert ctl.error("import", str(missing), exit_code=1) == f"kvctl: BAD_INPUT: {missing}: No such file or directory"
    assert ctl.error("export", str(missing / "deeper"), exit_code=1).endswith("No such file or directory")


def test_a_failed_export_leaves_no_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("the old one")
    Kvctl("http://127.0.0.1:1").error("--timeout", "0.3", "export", str(out), exit_code=1)
    assert out.read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


class FailingClient:
    """Takes frames; the one with the key `trap` fails at its end, others overtake it."""

    def __init__(self, trap: bytes) -> None:
        self._trap = trap
        self.taken = 0

    async def put_many(self, pairs: list[tuple[bytes, bytes]]) -> list[int | KVError]:
        results: list[int | KVError] = [1] * len(pairs)
        for place, (key, _) in enumerate(pairs):
            if key == self._trap:
                results[place] = Timeout("no answer")
        self.taken += sum(result == 1 for result in results)
        return results


async def test_a_frame_that_fails_stops_the_import_at_its_first_line() -> None:
    """Everything before the named line is in; the outcome of the frame itself is unknown, and so is the exit code's."""
    content = b"".join(encode_line(b"k%05d" % number, b"") for number in range(20_000))
    client = FailingClient(b"k05500")
    reader = Reader(io.BytesIO(content), "f", 1, False)
    run = Import(client, Progress("importing"), from_line=1)  # type: ignore[arg-type]  # what it needs of a client
    with pytest.raises(CommandFailed) as caught:
        await run.run(reader)
    assert caught.value.exit_code == 5
    assert caught.value.fields["next_line"] == 5_001
    assert caught.value.fields["imported"] < client.taken <= (5 + bulk.FRAMES_MAX) * bulk.CHUNK_LINES


def test_chunks_are_bounded_by_lines_and_by_bytes() -> None:
    many = b"".join(encode_line(b"%d" % number, b"") for number in range(2_500))
    assert [len(chunk.pairs) for chunk in Reader(io.BytesIO(many), "f", 1, False).chunks()] == [1_000, 1_000, 500]
    large = b"".join(encode_line(b"%d" % number, b"x" * 300_000) for number in range(5))
    chunks = list(Reader(io.BytesIO(large), "f", 1, False).chunks())
    assert [len(chunk.pairs) for chunk in chunks] == [2, 2, 1]
    assert [(chunk.first, chunk.last) for chunk in chunks] == [(1, 2), (3, 4), (5, 5)]
    assert chunks[-1].end == len(large)


def test_a_line_without_an_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "LINE_BYTES_MAX", 1_000)
    endless = io.BytesIO(b'{"key": "a", "value": "' + b"x" * 5_000)
    with pytest.raises(CommandFailed, match="longer than 1000 bytes"):
        list(Reader(endless, "f", 1, False).chunks())


def test_failures_in_json_carry_the_line(ctl: Kvctl) -> None:
    failed = ctl("import", "-", "-o", "json", stdin=b'{"key": "a", "value": "1"}\nbad\n', exit_code=1)
    told = orjson.loads(failed.stderr)
    assert (told["error"], told["line"], told["imported"], told["next_line"]) == ("BAD_INPUT", 2, 1, 2)
