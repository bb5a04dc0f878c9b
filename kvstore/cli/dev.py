"""`kvstore dev`: a real cluster on this machine, one process a node, shown live; Ctrl-C stops all and tidies up.

It restarts nothing: whoever kills a node wants to see what happens. An exit is shown with the reason and the command
that would start the node again.

Invariant: when it ends, every node has ended, and a temporary data folder is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import click

from kvstore.base.errors import StartRefused
from kvstore.cli.dev_processes import NodeProcess, Nodes, describe_exit, plan_nodes, refuse_busy_ports, temporary_data
from kvstore.cli.dev_view import LiveView, PlainView, View, what_to_try
from kvstore.cli.failure import CommandFailed
from kvstore.cli.picture import NodeView, changes, node_view, shard_views
from kvstore.cli.rest import NotReached, Rest

POLL_SECONDS = 0.5
STATUS_SECONDS = 1.0


@click.command(
    epilog="\b\nExamples:\n"
    "  kvstore dev                          three nodes on ports 7001 to 7003, data thrown away at the end\n"
    "  kvstore dev --nodes 1 --port 8001    a single node\n"
    "  kvstore dev --data ./data            keep the data; the same command goes on with it",
)
@click.option("--nodes", type=click.IntRange(1, 9), default=3, show_default=True, help="How many.")
@click.option("--port", type=click.IntRange(1, 65_526), default=7001, show_default=True, help="Of n1; n2 has the next.")
@click.option(
    "--data", type=click.Path(file_okay=False, path_type=Path), help="Keep the data here. [a temporary folder]"
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="Of the nodes, which log to files in the data folder.",
)
def dev(nodes: int, port: int, data: Path | None, log_level: str) -> None:
    """Run a cluster on this machine and watch it."""
    try:
        with temporary_data() if data is None else contextlib.nullcontext(data.resolve()) as folder:
            planned = plan_nodes(nodes=nodes, port=port, data=folder, log_level=log_level)
            refuse_busy_ports(planned)
            kept = "" if data is None else ", kept"
            code = asyncio.run(Dev(planned, title=f"kvstore dev: {nodes} nodes, data in {folder}{kept}").run())
    except StartRefused as refusal:
        click.echo(f"kvstore dev: {refusal}", err=True)
        code = 2
    sys.exit(code)


class Dev:
    """One run. Exit code: 0 stopped as told, 1 every node ended by itself."""

    def __init__(self, planned: list[NodeProcess], *, title: str) -> None:
        self.nodes = Nodes(planned, on_exit=self._on_exit)
        self.title = title
        self.told = asyncio.Event()  # to stop
        self.hard = asyncio.Event()  # to stop at once
        self.stopping = False
        self.view: View = PlainView()
        self.pictures = [NodeView(node.name, node.address, up=False) for node in planned]

    async def run(self) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_signal)
        self.view = self._make_view()
        try:
            self.view.say(f"starting {self.title}")
            await self.nodes.start()
            await self._watch()
        finally:
            self.stopping = True
            self.view.say("stopping (Ctrl-C again: at once)")
            await self.nodes.stop(self.hard)
            self.view.close()
            print("stopped", flush=True)
        return 0 if self.told.is_set() else 1

    def _make_view(self) -> View:
        if not sys.stdout.isatty():
            return PlainView()
        from rich.console import Console

        return LiveView(Console(), self.nodes.all, title=self.title)

    def _on_signal(self) -> None:
        if self.told.is_set():
            self.hard.set()
        self.told.set()

    def _on_exit(self, node: NodeProcess) -> None:
        assert node.exit_code is not None
        if self.stopping or self.told.is_set():
            return
        self.pictures = [  # so that it is not told twice
            NodeView(view.name, view.address, up=False) if view.name == node.name else view for view in self.pictures
        ]
        self.view.say(f"{node.name} is down: {describe_exit(node.exit_code)}")
        if node.exit_code > 0 and node.last_words():
            self.view.say(f"  its last words: {node.last_words()}")
        self.view.say(f"  to start it again: {shlex.join(node.command)}")

    async def _watch(self) -> None:
        """Until told to stop, or nothing is left to watch."""
        told_what_to_try = False
        async for pictures in self._poll():
            for line in changes(self.pictures, pictures):
                self.view.say(line)
            self.pictures = pictures
            self.view.show(pictures)
            if not told_what_to_try and all(node.up for node in pictures) and _led(pictures):
                told_what_to_try = True
                self.view.tell(what_to_try(self.nodes.all))
            if not any(node.running for node in self.nodes.all) and not any(node.up for node in pictures):
                self.view.say("every node has ended")
                return

    async def _poll(self) -> AsyncIterator[list[NodeView]]:
        async with Rest((), timeout=STATUS_SECONDS) as rest:
            while not self.told.is_set():
                yield list(await asyncio.gather(*(self._ask(rest, node) for node in self.nodes.all)))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.told.wait(), POLL_SECONDS)

    async def _ask(self, rest: Rest, node: NodeProcess) -> NodeView:
        try:
            status = await rest.get_from(node.url, "/v1/status")
        except (CommandFailed, NotReached):
            known = next(view for view in self.pictures if view.name == node.name)
            return NodeView(node.name, node.address, up=False, note="no answer" if known.up or known.note else "")
        return node_view(status if isinstance(status, dict) else {}, name=node.name, address=node.address)


def _led(pictures: list[NodeView]) -> bool:
    """Every shard that any node knows has a leader, and there is one."""
    shards = shard_views(pictures)
    return bool(shards) and all(shard.leader for shard in shards)
