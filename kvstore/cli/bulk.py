"""kvctl import and export: ndjson files in and out of a keyspace.

Import puts line by line, in frames of many keys, several frames under way. Lines of one key take effect in no
particular order, so a file should name a key once, as an export does.

Invariant: what is in memory is bounded: FRAMES_MAX frames of CHUNK_LINES lines or CHUNK_BYTES bytes.
Invariant: when an import stops early, every line before the line that it names is in the store; going on with
           `--from-line` there loses nothing and, puts being what they are, does no harm where it repeats.
Invariant: FILE of an export is either complete or not there: it is written beside and renamed at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

import click

from kvstore.base.errors import KVError
from kvstore.base.limits import KEY_BYTES_MAX, KIB
from kvstore.base.operations import Item
from kvstore.cli import failure
from kvstore.cli.data import check_range, range_options
from kvstore.cli.failure import CommandFailed
from kvstore.cli.progress import Progress
from kvstore.cli.records import BadLine, decode_line, encode_line, readable
from kvstore.cli.render import note, print_json
from kvstore.cli.target import Target, kvctl_command

if TYPE_CHECKING:
    from kvstore.client import Client

CHUNK_LINES = 1_000  # a frame that a node takes in a few milliseconds
CHUNK_BYTES = 512 * KIB  # of lines: large values make small frames
FRAMES_MAX = 8  # under way: covers the time of a commit several times, holds at most a few MiB
LINE_BYTES_MAX = 8 * 1024 * KIB  # above the largest value, escaped or in base64


@dataclass(slots=True)
class Chunk:
    """Consecutive lines; `first` and `last` are line numbers, `end` is the byte behind the last line."""

    first: int
    last: int = 0
    end: int = 0
    pairs: list[tuple[bytes, bytes]] = field(default_factory=list)


@dataclass(slots=True)
class Reader:
    """Lines to chunks. With `skip_bad`, bad lines are told and counted; else the first one raises CommandFailed."""

    source: IO[bytes]
    name: str
    from_line: int
    skip_bad: bool
    bad: int = 0

    def chunks(self) -> Iterator[Chunk]:
        chunk = Chunk(first=self.from_line)
        position = size = number = 0
        while line := self.source.readline(LINE_BYTES_MAX):
            number += 1
            position += len(line)
            if number < self.from_line or line.isspace():
                continue
            try:
                pair = self._pair(line)
            except BadLine as error:
                if not self.skip_bad:
                    if chunk.pairs:
                        yield chunk
                    raise self._refusal(number, error) from None
                self.bad += 1
                note(f"{self.name}:{number}: skipped: {error}")
                continue
            chunk.pairs.append(pair)
            chunk.last, chunk.end = number, position
            size += len(line)
            if len(chunk.pairs) >= CHUNK_LINES or size >= CHUNK_BYTES:
                yield chunk
                chunk, size = Chunk(first=number + 1), 0
        if chunk.pairs:
            yield chunk

    def _pair(self, line: bytes) -> tuple[bytes, bytes]:
        if len(line) >= LINE_BYTES_MAX:
            raise BadLine(f"longer than {LINE_BYTES_MAX} bytes")
        key, value = decode_line(line)
        if not 0 < len(key) <= KEY_BYTES_MAX:
            raise BadLine(f"the key has {len(key)} bytes; a key has 1 to {KEY_BYTES_MAX}")
        return key, value

    def _refusal(self, number: int, error: BadLine) -> CommandFailed:
        return CommandFailed(
            "BAD_INPUT",
            f"{self.name}:{number}: {error}",
            hint="correct the line, or use --skip-bad",
            fields={"line": number},
        )


async def put_all(client: Client, pairs: Sequence[tuple[bytes, bytes]]) -> None:
    """Raises the first error; the others have been tried then."""
    for result in await client.put_many(pairs):
        if isinstance(result, KVError):
            raise result


class Import:
    """One run: keeps FRAMES_MAX frames under way and knows up to where everything is in the store."""

    def __init__(self, client: Client, progress: Progress, *, from_line: int) -> None:
        self._client = client
        self._progress = progress
        self._unfinished: dict[asyncio.Task[None], Chunk] = {}  # in the order of the lines; failed ones stay
        self._last = from_line - 1  # last line handed out
        self.keys = 0

    @property
    def next_line(self) -> int:
        """Every line before it is in the store."""
        return next((chunk.first for chunk in self._unfinished.values()), self._last + 1)

    async def run(self, reader: Reader) -> None:
        """Raises CommandFailed that names the line to go on from."""
        try:
            for chunk in reader.chunks():
                self._unfinished[asyncio.create_task(put_all(self._client, chunk.pairs))] = chunk
                self._last = chunk.last
                if len(self._unfinished) >= FRAMES_MAX:
                    self._collect(await self._some())
            while self._unfinished:
                self._collect(await self._some())
        except KVError as error:
            raise await self._stopped(failure.from_error(error)) from None
        except CommandFailed as failed:
            raise await self._stopped(failed) from None
        except asyncio.CancelledError:  # Ctrl-C
            stopped = CommandFailed("INTERRUPTED", "stopped by Ctrl-C", exit_code=failure.INTERRUPTED)
            raise await self._stopped(stopped) from None

    async def _some(self) -> set[asyncio.Task[None]]:
        done, _ = await asyncio.wait(self._unfinished, return_when=asyncio.FIRST_COMPLETED)
        return done

    def _collect(self, done: set[asyncio.Task[None]]) -> None:
        """Raises what the first failed one raised, after the others have been counted."""
        failed = [task for task in self._unfinished if task in done and task.exception() is not None]
        for task in done.difference(failed):
            chunk = self._unfinished.pop(task)
            self.keys += len(chunk.pairs)
            self._progress.advance(keys=len(chunk.pairs), position=chunk.end)
        if failed:
            failed[0].result()

    async def _stopped(self, failed: CommandFailed) -> CommandFailed:
        """Let the frames that are under way end, then say where things stand."""
        if self._unfinished:
            done, _ = await asyncio.wait(self._unfinished)
            with contextlib.suppress(KVError):
                self._collect(done)
        standing = f"{self.keys:,} keys are in, with all lines before {self.next_line}"
        failed.message = f"{failed.message.rstrip('.')}; {standing}"
        go_on = f"go on with --from-line {self.next_line}"
        failed.hint = f"{failed.hint.rstrip('.')}; {go_on}" if failed.hint else go_on
        failed.fields |= {"imported": self.keys, "next_line": self.next_line}
        return failed


@contextlib.contextmanager
def _opened(file: str, mode: str) -> Iterator[IO[bytes]]:
    """FILE, or standard input / output for `-`. Raises CommandFailed."""
    if file == "-":
        yield sys.stdin.buffer if "r" in mode else sys.stdout.buffer
        return
    try:
        opened = open(file, mode, buffering=1024 * KIB)  # noqa: SIM115  # closed below
    except OSError as error:
        raise CommandFailed("BAD_INPUT", f"{file}: {error.strerror}") from None
    with opened:
        yield opened


@click.command(
    "import",
    epilog='One JSON object a line: {"key": "a", "value": "1"}, or key_base64 / value_base64 for what is not UTF-8.\n\n'
    "\b\nExamples:\n  kvctl import users.ndjson\n  zcat users.ndjson.gz | kvctl import -\n"
    "  kvctl import users.ndjson --from-line 120001     go on after an import that stopped",
)
@click.argument("file", metavar="FILE")
@click.option("--from-line", type=click.IntRange(min=1), default=1, metavar="N", help="Begin with line N. [1]")
@click.option("--skip-bad", is_flag=True, help="Tell bad lines and go on; exit code 1 if there was one.")
@kvctl_command
async def import_command(target: Target, file: str, from_line: int, skip_bad: bool) -> None:
    """Put every line of a file into the store.

    FILE is ndjson; - is standard input.
    """
    begun = time.monotonic()
    with _opened(file, "rb") as source:
        reader = Reader(source, "stdin" if file == "-" else file, from_line, skip_bad)
        total = None if file == "-" else os.fstat(source.fileno()).st_size
        async with target.client() as client:
            with Progress("importing", total_bytes=total) as progress:
                run = Import(client, progress, from_line=from_line)
                await run.run(reader)
    seconds = time.monotonic() - begun
    if target.json:
        print_json({"imported": run.keys, "bad_lines": reader.bad, "seconds": round(seconds, 3)})
    else:
        click.echo(f"imported {run.keys:,} keys in {seconds:.1f} s ({run.keys / max(seconds, 1e-9):,.0f} a second)")
    if reader.bad:
        raise CommandFailed("BAD_INPUT", f"{reader.bad:,} bad lines were skipped", fields={"bad_lines": reader.bad})


@click.command(
    "export",
    epilog="The lines are in key order and as kvctl import reads them. Pages are read one after the other: "
    "the whole is not one snapshot.\n\n"
    "\b\nExamples:\n  kvctl export all.ndjson\n  kvctl export --prefix user/ - | gzip > users.ndjson.gz",
)
@click.argument("file", metavar="FILE")
@range_options
@kvctl_command
async def export_command(
    target: Target, file: str, prefix: bytes | None, start: bytes | None, end: bytes | None
) -> None:
    """Write the store, or a range, to a file.

    FILE becomes ndjson; - is standard output.
    """
    begun = time.monotonic()
    check_range(prefix=prefix, start=start, end=end)
    part = file if file == "-" else f"{file}.part"
    try:
        with _opened(part, "wb") as sink:
            async with target.client() as client:
                keys = await _export(client.scan(prefix=prefix, start=start, end=end), sink)
            sink.flush()
            if file != "-":
                os.fsync(sink.fileno())
    except BaseException:
        if file != "-":
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
        raise
    seconds = time.monotonic() - begun
    if file != "-":
        os.replace(part, file)
        if target.json:
            print_json({"exported": keys, "file": file, "seconds": round(seconds, 3)})
            return
    note(f"exported {keys:,} keys in {seconds:.1f} s")


async def _export(items: AsyncIterator[Item], sink: IO[bytes]) -> int:
    keys = 0
    last = b""
    with Progress("exporting", total_bytes=None) as progress:
        try:
            async for item in items:
                sink.write(encode_line(item.key, item.value))
                keys += 1
                last = item.key
                if keys % CHUNK_LINES == 0:
                    progress.advance(keys=CHUNK_LINES, position=0)
        except KVError as error:
            failed = failure.from_error(error, reading=True)
            failed.message += f" (after {keys:,} keys, the last is {readable(last)})"
            raise failed from None
        progress.advance(keys=keys % CHUNK_LINES, position=0)
    return keys
