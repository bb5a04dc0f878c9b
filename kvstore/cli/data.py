"""kvctl's commands on keys: put, get, delete, cas, scan, delete-range.

Invariant: `get --raw` writes exactly the value's bytes; what people see otherwise is escaped, so that a value can't
           play tricks on a terminal.
"""

from __future__ import annotations

import base64
import binascii
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from kvstore.base.errors import Conflict, KVError
from kvstore.base.operations import Found, Mismatch
from kvstore.cli import failure
from kvstore.cli.failure import CommandFailed
from kvstore.cli.records import field, readable, record, shortened
from kvstore.cli.render import columns, note, print_json, print_table
from kvstore.cli.target import Target, kvctl_command


class Bytes(click.ParamType[bytes]):
    """An argument as the bytes that the shell passed. `@base64:...` gives what no shell can pass; with `stdin`, `-`
    reads standard input."""

    name = "text"

    def __init__(self, *, stdin: bool = False) -> None:
        self._stdin = stdin

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        if isinstance(value, bytes):
            return value
        if self._stdin and value == "-":
            return sys.stdin.buffer.read()
        if value.startswith("@base64:"):
            try:
                return base64.b64decode(value.removeprefix("@base64:"), validate=True)
            except binascii.Error as error:
                self.fail(f"not base64: {error}", param, ctx)
        return os.fsencode(value)


KEY = Bytes()
VALUE = Bytes(stdin=True)
BYTES_HELP = "A key or value that is no text is given as @base64:AAEC (its base64)."


def range_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """--prefix, or --start and --end."""
    for decorate in (
        click.option("--end", type=KEY, metavar="KEY", help="Up to this key, exclusive."),
        click.option("--start", type=KEY, metavar="KEY", help="From this key on."),
        click.option("--prefix", type=KEY, metavar="TEXT", help="Only keys that begin so."),
    ):
        function = decorate(function)
    return function


def check_range(*, prefix: bytes | None, start: bytes | None, end: bytes | None) -> None:
    """Raises click.UsageError."""
    if prefix is not None and (start is not None or end is not None):
        raise click.UsageError("--prefix excludes --start and --end")


@click.command(epilog=BYTES_HELP + "\n\n\b\nExamples:\n  kvctl put fruit apple\n  kvctl put config/app - < app.toml")
@click.argument("key", type=KEY)
@click.argument("value", type=VALUE)
@kvctl_command
async def put(target: Target, key: bytes, value: bytes) -> None:
    """Store VALUE under KEY. VALUE - is read from standard input."""
    async with target.client() as client:
        revision = await client.put(key, value)
    if target.json:
        print_json({**field("key", key), "revision": revision})
    else:
        click.echo(f"ok, revision {revision}")


@click.command(epilog=BYTES_HELP + "\n\n\b\nExamples:\n  kvctl get fruit\n  kvctl get config/app --raw > app.toml")
@click.argument("key", type=KEY)
@click.option("--raw", is_flag=True, help="The value's bytes and nothing else.")
@kvctl_command
async def get(target: Target, key: bytes, raw: bool) -> None:
    """Print the value of KEY. Exit code 3 when there is none."""
    async with target.client() as client:
        found = await reading(client.get_record(key))
    if found is None:
        raise CommandFailed("NOT_FOUND", f"there is no key {readable(key)}", exit_code=failure.NOT_FOUND)
    if raw:
        sys.stdout.buffer.write(found.value)
        sys.stdout.buffer.flush()
    elif target.json:
        print_json(record(key, found))
    else:
        click.echo(readable(found.value))


async def reading(awaitable: Any) -> Any:
    """A read has no outcome that could be unknown: its time-out is a plain failure."""
    try:
        return await awaitable
    except KVError as error:
        raise failure.from_error(error, reading=True) from None


@click.command(epilog=BYTES_HELP)
@click.argument("key", type=KEY)
@kvctl_command
async def delete(target: Target, key: bytes) -> None:
    """Delete KEY. Deleting what is not there is no error."""
    async with target.client() as client:
        deleted = await client.delete(key)
    if target.json:
        print_json({**field("key", key), "deleted": deleted})
    else:
        click.echo("deleted" if deleted else "nothing to delete")


@click.command(
    epilog=BYTES_HELP + "\n\n\b\nExamples:\n"
    "  kvctl cas lock me --absent            take it if nobody has it\n"
    "  kvctl cas fruit pear --expect apple   from apple to pear\n"
    "  kvctl cas fruit plum --revision 12    unless it changed since revision 12",
)
@click.argument("key", type=KEY)
@click.argument("new", type=VALUE)
@click.option("--expect", "expected", type=KEY, metavar="OLD", help="Only if the value is OLD.")
@click.option("--absent", is_flag=True, help="Only if there is no such key.")
@click.option("--revision", type=click.IntRange(min=1), metavar="N", help="Only if it was last changed at revision N.")
@kvctl_command
async def cas(
    target: Target, key: bytes, new: bytes, expected: bytes | None, absent: bool, revision: int | None
) -> None:
    """Compare and set.

    Stores NEW under KEY if the condition holds; exit code 4 when it does not.
    """
    if (expected is not None) + absent + (revision is not None) != 1:
        raise click.UsageError("give exactly one of --expect, --absent and --revision")
    condition: dict[str, Any] = {"expected": expected} if expected is not None else {"revision": revision}
    if absent:
        condition = {"absent": True}
    async with target.client() as client:
        try:
            changed = await client.cas(key, new, **condition)
        except Conflict as conflict:
            raise _conflict(key, conflict) from None
    if target.json:
        print_json({**field("key", key), "revision": changed})
    else:
        click.echo(f"ok, revision {changed}")


def _conflict(key: bytes, conflict: Conflict) -> CommandFailed:
    current = conflict.detail.current if isinstance(conflict.detail, Mismatch) else conflict.detail
    if isinstance(current, Found):
        message = f"the value is {shortened(current.value, 60)} at revision {current.mod_revision}"
    else:
        message = "there is no such key"
    return CommandFailed(
        "CONFLICT",
        message,
        hint=conflict.info.hint,
        exit_code=failure.CONFLICT,
        fields={"current": record(key, current) if isinstance(current, Found) else None},
    )


@click.command(
    epilog=BYTES_HELP + "\n\n\b\nExamples:\n  kvctl scan\n  kvctl scan --prefix user/ --limit 10\n"
    "  kvctl scan --start a --end b --reverse -o json"
)
@range_options
@click.option(
    "--limit", type=click.IntRange(1, 1_000_000), default=100, show_default=True, help="At most so many keys."
)
@click.option("--reverse", is_flag=True, help="From the end backwards.")
@kvctl_command
async def scan(
    target: Target, prefix: bytes | None, start: bytes | None, end: bytes | None, limit: int, reverse: bool
) -> None:
    """List keys with their values.

    They come in bytewise order. kvctl export is the way to get all of a large range.
    """
    check_range(prefix=prefix, start=start, end=end)
    async with target.client() as client:
        try:
            found = client.scan(prefix=prefix, start=start, end=end, limit=limit + 1, reverse=reverse)
            items = [item async for item in found]
        except KVError as error:
            raise failure.from_error(error, reading=True) from None
    more = len(items) > limit
    del items[limit:]
    if target.json:
        print_json({"items": [record(item.key, item) for item in items], "more": more})
        return
    rows = [(readable(item.key), item.value, str(item.mod_revision), str(item.version)) for item in items]
    width = max(20, columns() - 24 - max((len(row[0]) for row in rows), default=0))
    print_table(
        ("KEY", "VALUE", ">REVISION", ">VERSION"),
        [(key, shortened(value, width), revision, version) for key, value, revision, version in rows],
        empty="no keys there",
    )
    if more:
        last = readable(items[-1].key)
        way = f"--end {last}" if reverse else f"the keys after {last}"
        note(f"more follow ({way}); raise --limit, or use kvctl export")


@click.command("delete-range", epilog="\b\nExample:\n  kvctl delete-range --prefix tmp/ --yes")
@range_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@kvctl_command
async def delete_range(target: Target, prefix: bytes | None, start: bytes | None, end: bytes | None, yes: bool) -> None:
    """Delete all keys of a range.

    It goes on in steps of up to 1,000 keys; each step is atomic, the whole is not.
    """
    if prefix is None and start is None and end is None:
        raise click.UsageError("name a range: --prefix, or --start and --end")
    check_range(prefix=prefix, start=start, end=end)
    if not yes:
        click.confirm(f"Delete all keys {_which(prefix, start, end)}?", abort=True, err=True)
    async with target.client() as client:
        if prefix is not None:
            deleted = await client.delete_range(prefix=prefix)
        else:
            deleted = await client.delete_range(start or b"", end or b"")
    if target.json:
        print_json({"deleted": deleted})
    else:
        click.echo(f"deleted {deleted:,} keys")


def _which(prefix: bytes | None, start: bytes | None, end: bytes | None) -> str:
    if prefix is not None:
        return f"that begin with {readable(prefix)}"
    return f"from {readable(start or b'') or 'the first'} up to {readable(end or b'') or 'the last'}"
