"""kvctl's commands on placement: operators, settings, node drain and undrain.

Invariant: the JSON has the REST API's fields.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click
import orjson

from kvstore.cli import failure
from kvstore.cli.failure import CommandFailed
from kvstore.cli.render import bytes_text, duration_text, note, print_json, print_table
from kvstore.cli.rest import Rest
from kvstore.cli.target import Target, kvctl_command, run, target_of, target_options

LOOK_SECONDS = 1.0
CHANGE_SECONDS = 15.0

# ------------------------------------------------------------------------------------------------------- operators


@target_options
@click.group(invoke_without_command=True)
@click.pass_context
def operators(context: click.Context) -> None:
    """List what the cluster does about its shards, now and lately, and why; or end one."""
    if context.invoked_subcommand is None:
        target = target_of(context)
        run(target, lambda: _list_operators(target))


async def _list_operators(target: Target) -> None:
    async with target.rest() as rest:
        rows = await rest.get("/v1/operators")
    if target.json:
        print_json(rows)
        return
    print_table(
        ("ID", "KIND", "SHARD", "STATE", ">AGE", ">TOOK", "STEPS", "REASON"),
        [
            (
                str(row.get("id", "")),
                row.get("kind"),
                str(row.get("shard", "")),
                row.get("state"),
                duration_text(row.get("age_seconds")),
                duration_text(row.get("seconds")),
                " > ".join(map(_step_text, row.get("steps", ()))),
                ": ".join(filter(None, (str(row.get("reason", "")), str(row.get("error", ""))))),
            )
            for row in rows
        ],
        empty="no operators, now or lately",
    )


def _step_text(step: Mapping[str, Any]) -> str:
    other = f" for {step['other']}" if step.get("other") else ""
    done = " (done)" if step.get("done") else ""
    return f"{step.get('kind')} {step.get('node', '')}".rstrip() + other + done


@operators.command(epilog="\b\nExample:\n  kvctl operators cancel 3000017")
@click.argument("operator", metavar="ID", type=click.IntRange(min=1))
@kvctl_command
async def cancel(target: Target, operator: int) -> None:
    """End an operator. What it has done stays; a replica without a vote that nobody needs is taken back."""
    async with target.rest(seconds=CHANGE_SECONDS) as rest:
        answer = await rest.change("DELETE", f"/v1/operators/{operator}")
    if target.json:
        print_json(answer)
    else:
        click.echo(f"cancelled operator {operator}")


# -------------------------------------------------------------------------------------------------------- settings


@click.group()
def settings() -> None:
    """Show or change what placement goes by: thresholds, limits, replication factors."""


@settings.command("get")
@click.argument("name", required=False)
@kvctl_command
async def settings_get(target: Target, name: str | None) -> None:
    """Show all settings, or the value of one."""
    async with target.rest() as rest:
        content = await rest.get("/v1/settings")
    rows = content["settings"]
    if name is not None:
        rows = [row for row in rows if row["name"] == name]
        if not rows:
            hint = "kvctl settings get lists them"
            raise CommandFailed("NOT_FOUND", f"there is no setting {name}", hint=hint, exit_code=failure.NOT_FOUND)
    _show_settings(target, rows, single=name is not None)


@settings.command(
    "set",
    epilog="\b\nExamples:\n  kvctl settings set dead_after_seconds=600\n"
    "  kvctl settings set replication_factor/default=5 split_bytes=134217728\n"
    "  kvctl settings set dead_after_seconds=default",
)
@click.argument("changes", metavar="NAME=VALUE...", nargs=-1, required=True)
@kvctl_command
async def settings_set(target: Target, changes: tuple[str, ...]) -> None:
    """Change settings, all or none. The value `default` goes back to the default."""
    body: dict[str, Any] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{change!r} is not NAME=VALUE")
        body[name] = None if value == "default" else _value_of(value)
    async with target.rest(seconds=CHANGE_SECONDS) as rest:
        content = await rest.change("PATCH", "/v1/settings", body)
    _show_settings(target, [row for row in content["settings"] if row["name"] in body], single=False)


def _value_of(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise click.UsageError(f"{text!r} is neither a number, true, false nor default") from None


def _show_settings(target: Target, rows: list[dict[str, Any]], *, single: bool) -> None:
    if target.json:
        print_json(rows[0] if single else rows)
    elif single:
        click.echo(_value_text(rows[0]["value"]))
    else:
        print_table(
            ("SETTING", ">VALUE", ">DEFAULT", "CHANGED"),
            [(row["name"], _value_text(row["value"]), _value_text(row["default"]), row["changed"]) for row in rows],
        )


def _value_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


# ----------------------------------------------------------------------------------------------------------- drain


@click.command(epilog="\b\nExample:\n  kvctl node drain n2 --wait")
@click.argument("name")
@click.option("--wait", is_flag=True, help="Until the node is empty, telling how far it is.")
@kvctl_command
async def drain(target: Target, name: str, wait: bool) -> None:
    """Move everything off a node: first what it leads, then its replicas.

    It serves on and is not removed; it gets nothing until `kvctl node undrain`. Callers see no error.
    """
    path = f"/v1/members/{quote(name, safe='')}/drain"
    async with target.rest(seconds=CHANGE_SECONDS) as rest:
        progress = await rest.change("POST", path)
        if wait:
            progress = await _watch(target, rest, path, progress)
    if target.json:
        print_json(progress)
    elif progress.get("done"):
        click.echo(f"{name} is empty")
    else:
        click.echo(f"{name} is being drained; kvctl node drain {name} --wait tells how far it is")


async def _watch(target: Target, rest: Rest, path: str, progress: dict[str, Any]) -> dict[str, Any]:
    """Until it is done. A driver that has just begun, or is looked for, is waited for."""
    told = ""
    while not progress.get("done"):
        text = _progress_text(progress)
        if text != told and not target.json:
            note(text)
            told = text
        await asyncio.sleep(LOOK_SECONDS)
        try:
            progress = await rest.get(path)
        except CommandFailed as failed:
            if failed.code not in ("UNAVAILABLE", "NOT_LEADER", "TIMEOUT", "UNREACHABLE"):
                raise
            continue
        if not progress.get("draining"):
            raise CommandFailed("CONFLICT", "somebody has ended the drain", hint="kvctl node drain NAME begins it anew")
    return progress


def _progress_text(progress: Mapping[str, Any]) -> str:
    """One line: what is left, for how long, and what is in the way."""
    if not progress.get("ready"):
        return "the placement driver has just begun and hears the nodes first"
    text = (
        f"{progress['leaders']} leaderships and {progress['replicas']} replicas "
        f"({bytes_text(progress['bytes'])}) left, {progress['moving']} moving"
    )
    left = progress.get("seconds_left")
    if left:
        text += f", about {duration_text(left)}"
    for one in progress.get("blocked", ())[:3]:
        text += f"\n  shard {one['shard']}: {one['reason']}"
    return text


@click.command(epilog="\b\nExample:\n  kvctl node undrain n2")
@click.argument("name")
@kvctl_command
async def undrain(target: Target, name: str) -> None:
    """Let a node that was drained take part again."""
    async with target.rest(seconds=CHANGE_SECONDS) as rest:
        answer = await rest.change("DELETE", f"/v1/members/{quote(name, safe='')}/drain")
    if target.json:
        print_json(answer)
    else:
        click.echo(f"{name} takes part again")
