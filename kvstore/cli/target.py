"""What every kvctl command shares: which cluster and keyspace it means, how it prints, and how it ends.

`-o`, `--endpoints`, `--keyspace` and `--timeout` may stand before or after the subcommand; the later one counts.

Invariant: `Target` is complete before a command's body runs; bodies are coroutines run by `run`, which turns every
           error of the store or the network into one line and an exit code.
"""

from __future__ import annotations

import asyncio
import functools
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click
import orjson

from kvstore.base.errors import KVError
from kvstore.base.ids import DEFAULT_KEYSPACE_NAME
from kvstore.cli import failure
from kvstore.cli.failure import CommandFailed

if TYPE_CHECKING:
    from kvstore.cli.rest import Rest
    from kvstore.client import Client

R = TypeVar("R")
FC = TypeVar("FC", bound=Callable[..., Any] | click.Command)

OPERATION_SECONDS = 10.0
DEFAULT_ENDPOINTS = "http://127.0.0.1:7001,http://127.0.0.1:7002,http://127.0.0.1:7003"


@dataclass(slots=True)
class Target:
    """`timeout` is seconds, for each operation with all its retries; None = as long as suits the operation."""

    endpoints: tuple[str, ...] = ()
    keyspace: str = DEFAULT_KEYSPACE_NAME
    output: str = "table"
    timeout: float | None = None

    @property
    def json(self) -> bool:
        return self.output == "json"

    def client(self) -> Client:
        from kvstore.client import Client

        return Client(list(self.endpoints), keyspace=self.keyspace, timeout=self.timeout or OPERATION_SECONDS)

    def rest(self, *, seconds: float = OPERATION_SECONDS) -> Rest:
        from kvstore.cli.rest import Rest

        return Rest(self.endpoints, timeout=self.timeout or seconds)


def parse_endpoints(text: str) -> tuple[str, ...]:
    """`http://HOST:PORT` or just HOST:PORT, separated by commas. Raises click.BadParameter."""
    endpoints = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        url = part if "://" in part else f"http://{part}"
        try:
            split = urlsplit(url)
            usable = split.scheme in ("http", "https") and bool(split.hostname) and split.port is not None
        except ValueError:
            usable = False
        if not usable:
            raise click.BadParameter(f"{part!r} is not http://HOST:PORT")
        endpoints.append(f"{split.scheme}://{split.netloc}")
    if not endpoints:
        raise click.BadParameter("no endpoint given")
    return tuple(dict.fromkeys(endpoints))


def _set_endpoints(context: click.Context, _: click.Parameter, value: str | None) -> None:
    if value is not None:
        target_of(context).endpoints = parse_endpoints(value)


def _set(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def store(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value is not None:
            setattr(target_of(context), name, value)

    return store


def target_of(context: click.Context) -> Target:
    """The one Target of this run, made at the outermost command."""
    return context.ensure_object(Target)


def target_options(function: FC, *, outermost: bool = False) -> FC:
    """The shared options. Outermost they also come from the environment; on a subcommand they overrule that."""
    decorators = (
        click.option(
            "--endpoints",
            metavar="URL,...",
            envvar="KVCTL_ENDPOINTS" if outermost else None,
            default=DEFAULT_ENDPOINTS if outermost else None,
            show_default="KVCTL_ENDPOINTS, or the nodes of kvstore dev" if outermost else False,
            callback=_set_endpoints,
            expose_value=False,
            help="Any nodes of the cluster; the others are found from there.",
        ),
        click.option(
            "--keyspace",
            metavar="NAME",
            envvar="KVCTL_KEYSPACE" if outermost else None,
            callback=_set("keyspace"),
            expose_value=False,
            help="The keyspace that keys are of. [default: default]",
        ),
        click.option(
            "-o",
            "--output",
            type=click.Choice(["table", "json"]),
            callback=_set("output"),
            expose_value=False,
            help="Form of the result on stdout. [default: table]",
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(min=0.01, max=3600),
            metavar="SECONDS",
            callback=_set("timeout"),
            expose_value=False,
            help="For each operation, retries included. [default: 10, changes of the cluster 70]",
        ),
    )
    for decorate in reversed(decorators):
        function = decorate(function)
    return function


def kvctl_command(function: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Make a coroutine of (target, arguments...) the body of a click command with the shared options."""

    @functools.wraps(function)
    def body(**arguments: Any) -> None:
        target = target_of(click.get_current_context())
        run(target, lambda: function(target, **arguments))

    return target_options(body)


def run(target: Target, body: Callable[[], Awaitable[None]]) -> None:
    """Run the body in an event loop of its own and end the command as it ended."""
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_as_coroutine(body))
    except CommandFailed as failed:
        stop(target, failed)
    except KVError as error:
        stop(target, failure.from_error(error))
    except KeyboardInterrupt:
        stop(target, CommandFailed("INTERRUPTED", "stopped by Ctrl-C", exit_code=failure.INTERRUPTED))
    except BrokenPipeError:
        sys.stderr.close()  # the reader of a pipe has gone (kvctl scan | head): no complaint, also not at exit
        sys.exit(failure.FAILED)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    import uvloop

    return uvloop.new_event_loop


async def _as_coroutine(body: Callable[[], Awaitable[R]]) -> R:
    return await body()


def stop(target: Target, failed: CommandFailed) -> None:
    """Print the failure and exit."""
    line = orjson.dumps(failed.json(), default=str).decode() if target.json else failed.line()
    click.echo(line, err=True)
    sys.exit(failed.exit_code)
