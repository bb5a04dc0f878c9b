"""`kvstore serve`: run one node until it is told to stop.

Invariant: what is wrong with the configuration or the data directory is said in one line on stderr, exit code 2.
Invariant: SIGHUP reads the secret's file again, and changes nothing if there is anything wrong with it.
Invariant: the first SIGTERM or SIGINT stops gracefully (leadership is handed over, what is under way is answered); the
           second ends the process at once, which is as safe as a crash.
Exit codes: 0 stopped as told, 1 a fatal error while running, 2 refused to start.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from kvstore.base.errors import StartRefused
from kvstore.cli import logs
from kvstore.cli.settings import SETTINGS, ServeSettings, read_secrets, resolve

if TYPE_CHECKING:
    from kvstore.node import Node

log = logging.getLogger("kvstore.serve")


def _settings_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """One flag for each row of SETTINGS. All are texts here; `resolve` parses them like those of the other sources."""
    for setting in reversed(SETTINGS):
        destination = setting.name.replace("-", "_")
        if setting.metavar:
            add = click.option(setting.flag, destination, metavar=setting.metavar, help=setting.help)
        else:
            add = click.option(setting.flag, destination, is_flag=True, default=None, help=setting.help)
        function = add(function)
    return function


@click.command(
    epilog="Every flag may also come from a variable (--max-value-bytes: KVSTORE_MAX_VALUE_BYTES) or from the --config "
    "file (max-value-bytes = 4096). A flag beats a variable, a variable beats the file.\n\n"
    "\b\nExamples:\n"
    "  a cluster of one\n"
    "    kvstore serve --name n1 --data ./n1\n"
    "  one of three founders (run the like on the other two)\n"
    "    kvstore serve --name n1 --data /var/lib/kvstore --listen 10.0.0.1:7001 \\\n"
    "      --cluster-secret-file /etc/kvstore/secret \\\n"
    "      --initial-cluster n1=10.0.0.1:7001,n2=10.0.0.2:7001,n3=10.0.0.3:7001\n"
    "  a later node\n"
    "    kvstore serve --name n4 --data /var/lib/kvstore --listen 10.0.0.4:7001 \\\n"
    "      --cluster-secret-file /etc/kvstore/secret --join 10.0.0.1:7001",
)
@click.option("--config", "config_file", metavar="FILE", type=click.Path(path_type=Path), help="TOML, same names.")
@_settings_options
def serve(config_file: Path | None, **flags: Any) -> None:
    """Run one node of the store."""
    try:
        if not __debug__:
            raise StartRefused("python -O (PYTHONOPTIMIZE) takes away the checks that guard the data: run without")
        settings = resolve(
            flags={name.replace("_", "-"): value for name, value in flags.items()},
            variables=os.environ,
            config_file=config_file,
        )
        logs.configure(node=settings.config.name, form=settings.log_format, level=settings.log_level)
        code = _run(settings)
    except StartRefused as refusal:
        click.echo(f"kvstore: {refusal}", err=True)
        code = 2
    sys.exit(code)


def _run(settings: ServeSettings) -> int:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run_node(settings))


async def run_node(settings: ServeSettings) -> int:
    """Start, serve, stop. Gives the exit code; raises StartRefused."""
    from kvstore.node import Node

    node = Node(settings.config)
    stop = asyncio.Event()
    _on_signals(stop)
    if settings.secret_file is not None:
        _on_hangup(node, settings.secret_file)
    told = asyncio.create_task(stop.wait(), name="told-to-stop")
    starting = asyncio.create_task(node.start(), name="start")
    try:
        await _first_of(starting, told, node.fatal)
        if node.fatal.done():
            await _die(node)
        if starting.done():
            starting.result()
            log.info("serving", extra={"address": settings.config.advertise_address})
            await _first_of(told, node.fatal)
            if node.fatal.done():
                await _die(node)
            await node.stop()
        else:
            starting.cancel()  # which undoes what it began
            await asyncio.wait([starting])
        log.info("stopped")
        return 0
    finally:
        told.cancel()


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


async def _die(node: Node) -> NoReturn:
    """A failed fsync or a broken invariant: end now, without a farewell that might write more.

    A node that its cluster does not want (any more) is no such case: that is said in one line.
    """
    error = node.fatal.result()
    if isinstance(error, StartRefused):
        await node.stop()
        raise error
    log.critical("fatal, the node ends now", exc_info=error)
    logging.shutdown()
    os._exit(1)


def _on_signals(stop: asyncio.Event) -> None:
    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            log.warning("second signal: ending at once", extra={"signal": number.name})
            logging.shutdown()
            os._exit(128 + number)
        log.info("stopping", extra={"signal": number.name})
        stop.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)


def _on_hangup(node: Node, secret_file: Path) -> None:
    def on_hangup() -> None:
        try:
            secrets = read_secrets(secret_file)
        except ValueError as error:
            log.error("the cluster's secret stays as it was: %s", error)
            return
        node.set_secrets(secrets)
        log.info("the cluster's secret was read again", extra={"file": str(secret_file), "accepted": len(secrets)})

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, on_hangup)
