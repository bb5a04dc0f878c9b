"""kvctl's commands on the cluster: status, members, shards, routes, node, replicas.

Invariant: the JSON of `members`, `shards` and `routes` has the REST API's fields; other tools rely on them
           (docs/operations.md).
"""

from __future__ import annotations

import asyncio
import sys
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import click

from kvstore.base.ids import META_SHARD
from kvstore.cli.failure import CommandFailed
from kvstore.cli.picture import NodeView, node_view, shard_views
from kvstore.cli.records import readable
from kvstore.cli.render import bytes_text, columns, duration_text, note, print_json, print_table, round_trip_text
from kvstore.cli.rest import NotReached, Rest
from kvstore.cli.target import Target, kvctl_command, run, target_of, target_options

CHANGE_SECONDS = 70.0  # a node itself gives up a change after 60: a replica may have a whole shard to copy
ID_DIGITS = 8  # as the log shows them
MEMBERS_WIDE = (">HEARD", "ID")  # columns of `members` that a narrow terminal has no room for
MEMBERS_COLUMNS = 115
STATUS_SECONDS = 2.0  # a paused node must not hold up the picture of the others


def _list(content: Any, name: str) -> list[dict[str, Any]]:
    """The API answers a list, or an object that holds one under `name`."""
    rows = content.get(name) if isinstance(content, dict) else content
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _key_text(row: Mapping[str, Any], name: str, *, empty: str) -> str:
    """A bound of a range; binary ones come as base64."""
    if f"{name}_base64" in row:
        return f"@base64:{row[f'{name}_base64']}"
    value = row.get(name)
    return readable(str(value).encode("utf-8", "surrogateescape")) if value else empty


# ---------------------------------------------------------------------------------------------------------- status


@click.command()
@kvctl_command
async def status(target: Target) -> None:
    """Show the nodes and who leads each shard."""
    async with target.rest(seconds=STATUS_SECONDS) as rest:
        members = await _members_of(rest)
        views = await asyncio.gather(*(_view_of(rest, member) for member in members))
    shards = shard_views(views)
    healthy = all(view.up for view in views) and bool(shards) and all(shard.leader for shard in shards)
    if target.json:
        print_json(
            {
                "healthy": healthy,
                "cluster": next((view.raw["cluster_id"] for view in views if "cluster_id" in view.raw), None),
                "nodes": [_node_json(view, member) for view, member in zip(views, members, strict=True)],
                "shards": [{"id": shard.id, "leader": shard.leader, "term": shard.term} for shard in shards],
            }
        )
        return
    print_table(
        ("NODE", "STATE", "ADDRESS", "LEADS", ">SHARDS", "UP FOR", ">LOG", ">DATA", "VERSION"),
        [_node_row(view, member) for view, member in zip(views, members, strict=True)],
    )
    missing = [view.name for view in views if not view.up]
    orphans = [str(shard.id) for shard in shards if not shard.leader]
    if missing:
        note(f"not answering: {', '.join(missing)}")
    if orphans:
        note(f"without a leader: shard {', '.join(orphans)}")
    if healthy:
        note(f"{_count(len(views), 'node')}, {_count(len(shards), 'shard')}, all well")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


async def _members_of(rest: Rest) -> list[dict[str, Any]]:
    """All members; when nobody can name them (no quorum, say), the endpoints that answer at all."""
    try:
        members = _list(await rest.get("/v1/members"), "members")
    except CommandFailed as failed:
        if failed.code == "UNREACHABLE":
            raise
        members = []
    return members or [
        {"name": endpoint, "address": endpoint.partition("://")[2], "state": "unknown"} for endpoint in rest.endpoints
    ]


async def _view_of(rest: Rest, member: Mapping[str, Any]) -> NodeView:
    name, address = str(member.get("name", "?")), str(member.get("address", ""))
    try:
        answer = await rest.get_from(f"http://{address}", "/v1/status")
    except NotReached as error:
        return NodeView(name, address, up=False, note=str(error))
    except CommandFailed as failed:
        return NodeView(name, address, up=False, note=failed.message)
    return node_view(answer if isinstance(answer, dict) else {}, name=name, address=address)


def _node_json(view: NodeView, member: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": view.name,
        "address": view.address,
        "up": view.up,
        "state": member.get("state"),
        **({"status": dict(view.raw)} if view.up else {"note": view.note}),
    }


def _node_row(view: NodeView, member: Mapping[str, Any]) -> tuple[Any, ...]:
    state = "up" if view.up else "down"
    if not view.up and member.get("state") in ("suspect", "dead", "left"):
        state = str(member["state"])
    leads = ", ".join(str(shard) for shard in view.leads[:8]) + (" …" if len(view.leads) > 8 else "")
    return (
        view.name,
        state,
        view.address,
        leads,
        str(len(view.replicas)) if view.up else "",
        duration_text(view.uptime_seconds),
        bytes_text(_number(view.raw.get("log"), "used_bytes")),
        bytes_text(_number(view.raw.get("state"), "used_bytes")),
        view.version,
    )


def _number(values: Any, name: str) -> int | None:
    number = values.get(name) if isinstance(values, Mapping) else None
    return number if isinstance(number, int) else None


# --------------------------------------------------------------------------------------------- members


@click.command()
@kvctl_command
async def members(target: Target) -> None:
    """List the nodes of the cluster, and how each is.

    As the node that is asked believes: FOR is how long in that state, RTT the round trip of its probes, HEARD when it
    had an answer last; INCARNATION rises with each start and each denial. A narrow terminal shows less, -o json all.
    """
    async with target.rest() as rest:
        content = await rest.get("/v1/members")
    if target.json:
        print_json(content)
        return
    headings = ("NODE", "STATE", ">FOR", "ADDRESS", ">RTT", ">INCARNATION", "VERSION", ">HEARD", "ID", "LABELS")
    shown = [heading for heading in headings if heading not in MEMBERS_WIDE or columns() >= MEMBERS_COLUMNS]
    rows = [dict(zip(headings, _member_row(row), strict=True)) for row in _list(content, "members")]
    print_table(shown, [[row[heading] for heading in shown] for row in rows], empty="no members", folds="LABELS")


def _member_row(row: Mapping[str, Any]) -> tuple[Any, ...]:
    labels = row.get("labels") or {}
    incarnation = row.get("incarnation")
    heard = _seconds(row.get("heard_age_ms"))
    return (
        row.get("name"),
        row.get("state"),
        duration_text(_seconds(row.get("state_age_ms"))),
        row.get("address"),
        round_trip_text(row.get("round_trip_ms")),
        None if incarnation is None else str(incarnation),
        row.get("version"),
        "-" if heard is None else f"{duration_text(heard)} ago",
        str(row.get("node_id", ""))[:ID_DIGITS],
        ", ".join(f"{name}={value}" for name, value in sorted(labels.items())),
    )


def _seconds(milliseconds: Any) -> float | None:
    return milliseconds / 1_000 if isinstance(milliseconds, int | float) else None


# ---------------------------------------------------------------------------------------------------------- shards


@target_options
@click.group(invoke_without_command=True)
@click.pass_context
def shards(context: click.Context) -> None:
    """List the shards, or change one."""
    if context.invoked_subcommand is None:
        target = target_of(context)
        run(target, lambda: _list_shards(target))


async def _list_shards(target: Target) -> None:
    async with target.rest() as rest:
        rows = await _all_shards(rest)
    if target.json:
        print_json(rows)
        return
    print_table(
        ("SHARD", "KEYSPACE", "START", "END", "EPOCH", "LEADER", "REPLICAS", ">SIZE", ">LOAD"),
        [
            (
                f"{row.get('id')} (meta)" if row.get("id") == META_SHARD else str(row.get("id")),
                row.get("keyspace"),
                _key_text(row, "start", empty="(first)"),
                _key_text(row, "end", empty="(last)"),
                _epoch(row.get("epoch")),
                row.get("leader"),
                _replicas_text(row.get("replicas")),
                bytes_text(_number(row, "approximate_bytes")) + (" (one group)" if row.get("indivisible") else ""),
                f"{(_number(row, 'reads_per_second') or 0) + (_number(row, 'writes_per_second') or 0):,}/s",
            )
            for row in rows
        ],
        empty="no shards",
    )


async def _all_shards(rest: Rest) -> list[dict[str, Any]]:
    """Every shard once, as its leader has it: a node knows of those only that it has a replica of."""
    members = await _members_of(rest)
    answers = await asyncio.gather(*(_shards_of(rest, str(member.get("address"))) for member in members))
    if all(answer is None for answer in answers):
        return _list(await rest.get("/v1/shards"), "shards")  # says what is wrong
    best: dict[int, tuple[tuple[int, int, int, bool], dict[str, Any]]] = {}
    for member, answer in zip(members, answers, strict=True):
        for row in answer or ():
            epoch = row.get("epoch", {})
            is_leader = row.get("leader") == member.get("name")
            rank = (int(row.get("term", 0)), epoch.get("version", 0), epoch.get("conf", 0), is_leader)
            if row["id"] not in best or rank > best[row["id"]][0]:
                best[row["id"]] = (rank, row)
    return [row for _, (_, row) in sorted(best.items())]


async def _shards_of(rest: Rest, address: str) -> list[dict[str, Any]] | None:
    try:
        return _list(await rest.get_from(f"http://{address}", "/v1/shards"), "shards")
    except (NotReached, CommandFailed):
        return None


def _epoch(epoch: Any) -> str:
    """version.conf."""
    return f"{epoch.get('version')}.{epoch.get('conf')}" if isinstance(epoch, dict) else str(epoch or "-")


def _replicas_text(replicas: Any) -> str:
    names = []
    for replica in replicas if isinstance(replicas, Sequence) else ():
        role = str(replica.get("role", "voter")).lower()
        names.append(str(replica.get("node")) + ("" if role == "voter" else f" ({role})"))
    return ", ".join(names)


@shards.command(epilog="\b\nExample:\n  kvctl shards transfer 2 n3")
@click.argument("shard", type=click.IntRange(min=1))
@click.argument("to_node", metavar="NODE")
@kvctl_command
async def transfer(target: Target, shard: int, to_node: str) -> None:
    """Let NODE lead SHARD. Writes go on; callers see no error."""
    async with target.rest(seconds=CHANGE_SECONDS) as rest:
        answer = await rest.change("POST", f"/v1/shards/{shard}/transfer", {"node": to_node})
    _done(target, answer, f"{to_node} leads shard {shard}")


@shards.command(epilog="\b\nExamples:\n  kvctl shards split --at m\n  kvctl shards split 2")
@click.argument("shard", type=click.IntRange(min=1), required=False)
@click.option("--at", "key", metavar="KEY", help="The first key of the right half. Default: the middle of the data.")
@kvctl_command
async def split(target: Target, shard: int | None, key: str | None) -> None:
    """Cut SHARD in two, or the shard that holds KEY.

    Nothing is copied and nobody is refused for longer than an election takes. Keys of one group, from their start
    through the first } after the first {, stay together.
    """
    if shard is None and key is None:
        raise click.UsageError("name a SHARD, or a KEY with --at")
    async with target.rest(seconds=CHANGE_SECONDS) as rest:
        if shard is None:
            assert key is not None
            shard = await _shard_of(rest, target.keyspace, key)
        raw = b"" if key is None else key.encode("utf-8", "surrogateescape")
        body = {} if key is None else {"at_base64": b64encode(raw).decode()}
        answer = await rest.change("POST", f"/v1/shards/{shard}/split", body)
    at = readable(b64decode(answer.get("at_base64", "")))
    child = answer.get("child")
    text = f"shard {shard} ends at {at} already"
    _done(target, answer, text if child is None else f"shard {shard} ends at {at} now; shard {child} begins there")


async def _shard_of(rest: Rest, keyspace: str, key: str) -> int:
    """The shard that holds the key, or ends at it: cut there already."""
    content = await rest.get(f"/v1/routes?keyspace={quote(keyspace, safe='')}")
    wanted = key.encode("utf-8", "surrogateescape")
    rows = [(_key_bytes(row, "start"), _key_bytes(row, "end"), int(row["id"])) for row in _list(content, "shards")]
    for _, end, shard in rows:
        if end == wanted:
            return shard
    for start, end, shard in rows:
        if start <= wanted and (not end or wanted < end):
            return shard
    raise CommandFailed("UNAVAILABLE", "no shard is known that holds the key", hint="Try again in a moment.")


def _key_bytes(row: Mapping[str, Any], name: str) -> bytes:
    encoded = row.get(f"{name}_base64")
    return b64decode(encoded) if encoded is not None else str(row.get(name, "")).encode()


def _done(target: Target, answer: Any, text: str) -> None:
    if target.json:
        print_json(answer)
    else:
        click.echo(text)


# ---------------------------------------------------------------------------------------------------------- routes


@click.command()
@kvctl_command
async def routes(target: Target) -> None:
    """Show who leads which range of keys.

    This is what clients learn.
    """
    async with target.rest() as rest:
        content = await rest.get("/v1/routes")
    if target.json:
        print_json(content)
        return
    print_table(
        ("SHARD", "START", "END", "EPOCH", "LEADER", "ADDRESS"),
        [
            (
                str(row.get("id")),
                _key_text(row, "start", empty="(first)"),
                _key_text(row, "end", empty="(last)"),
                _epoch(row.get("epoch")),
                row.get("leader"),
                row.get("address"),
            )
            for row in _list(content, "shards")
        ],
        empty="no routes",
    )


# ------------------------------------------------------------------------------------------------ nodes and replicas


@click.group()
def node() -> None:
    """Look after one node."""


@node.command("remove", epilog="\b\nExample:\n  kvctl node remove n2")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@kvctl_command
async def node_remove(target: Target, name: str, yes: bool) -> None:
    """Take a node out of the cluster, for good.

    Its replicas are built on other members where there are any, and it may not come back as it is. A node that is only
    to be restarted needs nothing of the kind.
    """
    if not yes and sys.stdin.isatty():
        click.confirm(f"Remove {name} for good?", abort=True, err=True)
    async with target.rest(seconds=CHANGE_SECONDS) as rest:
        answer = await rest.change("DELETE", f"/v1/members/{quote(name, safe='')}")
    _done(target, answer, f"removed {name}")


@click.group()
def replicas() -> None:
    """Add or remove the replicas of a shard."""


@replicas.command("add", epilog="\b\nExample:\n  kvctl replicas add 2 n4")
@click.argument("shard", type=click.IntRange(min=1))
@click.argument("on_node", metavar="NODE")
@kvctl_command
async def replicas_add(target: Target, shard: int, on_node: str) -> None:
    """Put a replica of SHARD on NODE.

    It learns first and votes when it has caught up. Where a shard then has more than three, the cluster takes one off.
    """
    async with target.rest(seconds=CHANGE_SECONDS) as rest:
        answer = await rest.change("POST", f"/v1/shards/{shard}/replicas", {"node": on_node})
    _done(target, answer, f"shard {shard} has a replica on {on_node}")


@replicas.command("remove", epilog="\b\nExample:\n  kvctl replicas remove 2 n1")
@click.argument("shard", type=click.IntRange(min=1))
@click.argument("on_node", metavar="NODE")
@kvctl_command
async def replicas_remove(target: Target, shard: int, on_node: str) -> None:
    """Take the replica of SHARD off NODE.

    Where less than three are left, the cluster puts one on another member, if there is one.
    """
    async with target.rest(seconds=CHANGE_SECONDS) as rest:
        answer = await rest.change("DELETE", f"/v1/shards/{shard}/replicas/{quote(on_node, safe='')}")
    _done(target, answer, f"shard {shard} has no replica on {on_node} any more")
