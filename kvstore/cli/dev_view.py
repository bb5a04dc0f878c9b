"""What `kvstore dev` shows: a live table in a terminal, lines of text elsewhere, and what to try next.

Invariant: where stdout is no terminal, only whole lines are printed, each flushed at once.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kvstore.cli.dev_processes import NodeProcess, describe_exit
from kvstore.cli.picture import NodeView, shard_views
from kvstore.cli.render import duration_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

SHARDS_SHOWN_MAX = 12


class View(Protocol):
    def say(self, line: str) -> None:
        """Something happened; the line stays."""

    def tell(self, lines: Sequence[str]) -> None:
        """A text to be copied from; it stays too."""

    def show(self, views: Sequence[NodeView]) -> None:
        """The newest picture."""

    def close(self) -> None: ...


class PlainView:
    """For pipes and files."""

    def say(self, line: str) -> None:
        print(line, flush=True)

    def tell(self, lines: Sequence[str]) -> None:
        print(*lines, sep="\n", flush=True)

    def show(self, views: Sequence[NodeView]) -> None:
        pass

    def close(self) -> None:
        pass


class LiveView:
    """For terminals: lines above, tables below, redrawn in place."""

    def __init__(self, console: Console, nodes: Sequence[NodeProcess], *, title: str) -> None:
        from rich.live import Live

        self._console = console
        self._nodes = nodes
        self._title = title
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def say(self, line: str) -> None:
        from rich.text import Text

        self._live.console.print(Text(f"{time.strftime('%H:%M:%S')}  {line}"), soft_wrap=True)

    def tell(self, lines: Sequence[str]) -> None:
        from rich.text import Text

        self._live.console.print(Text("\n".join(lines)), soft_wrap=True)

    def show(self, views: Sequence[NodeView]) -> None:
        self._live.update(render(self._title, self._nodes, views), refresh=True)

    def close(self) -> None:
        self._live.stop()


def render(title: str, nodes: Sequence[NodeProcess], views: Sequence[NodeView]) -> RenderableType:
    """The tables of nodes and shards."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(""), Text(title, style="bold"), Text(""), _node_table(nodes, views)]
    if shard_views(views):
        parts += [Text(""), _shard_table(views)]
    parts += [Text(""), Text("Ctrl-C stops all", style="dim")]
    return Group(*parts)


def _new_table(*headings: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def _node_table(nodes: Sequence[NodeProcess], views: Sequence[NodeView]) -> Table:
    from rich.text import Text

    table = _new_table("NODE", "STATE", "PID", "ADDRESS", "LEADS", "UP FOR")
    for node, view in zip(nodes, views, strict=True):
        if not node.running and not view.up:
            ended = describe_exit(node.exit_code) if node.exit_code is not None else "not started"
            table.add_row(node.name, Text(f"down, {ended}", style="bold red"), "-", node.url, "-", "-")
            continue
        up = "up" if node.running else "up, started by hand"
        state = Text(up, style="green") if view.up else Text(view.note or "starting", style="yellow")
        leads = ", ".join(str(shard) for shard in view.leads[:SHARDS_SHOWN_MAX]) or "-"
        pid = str(node.pid) if node.running else "-"
        table.add_row(node.name, state, pid, node.url, leads, duration_text(view.uptime_seconds))
    return table


def _shard_table(views: Sequence[NodeView]) -> Table:
    from rich.text import Text

    shards = shard_views(views)
    table = _new_table("SHARD", "LEADER", "TERM", *(view.name for view in views))
    for shard in shards[:SHARDS_SHOWN_MAX]:
        cells = []
        for view in views:
            replica = view.replicas.get(shard.id) if view.up else None
            leading = replica is not None and replica.role == "leader"
            text = f"{replica.role}, applied {replica.applied:,}" if replica else "-"
            cells.append(Text(text, style="green" if leading else ""))
        leader = Text(shard.leader, style="green") if shard.leader else Text("none", style="bold red")
        name = f"{shard.id} (meta)" if shard.id == 1 else str(shard.id)
        table.add_row(name, leader, str(shard.term), *cells)
    if len(shards) > SHARDS_SHOWN_MAX:
        table.add_row(f"+ {len(shards) - SHARDS_SHOWN_MAX}", "", "", *("" for _ in views))
    return table


def kvctl_path() -> str:
    """How the person may call kvctl: by name where it is on the PATH, else beside this interpreter."""
    beside = Path(sys.executable).parent / "kvctl"
    found = shutil.which("kvctl")
    if found and Path(found).resolve() == beside.resolve():
        return "kvctl"
    try:
        return str(beside.relative_to(Path.cwd()))
    except ValueError:
        return str(beside)


def what_to_try(nodes: Sequence[NodeProcess]) -> list[str]:
    """Commands that work as they are printed, in another terminal."""
    kvctl = kvctl_path()
    first, last = nodes[0], nodes[-1]
    standard = first.port == 7001
    return [
        "",
        "The cluster is up. In another terminal, try:",
        "",
        f"  curl -X PUT --data-binary hello {first.url}/v1/kv/default/greeting",
        f"  curl {last.url}/v1/kv/default/greeting",
        *([] if standard else [f"  export KVCTL_ENDPOINTS={','.join(node.url for node in nodes)}"]),
        f"  {kvctl} put fruit apple",
        f"  {kvctl} get fruit",
        f"  {kvctl} status",
        f"  {kvctl} bench --workload mixed --duration 5",
        f"  kill -9 {first.pid}    # {first.name}: the others carry on, nothing that was acknowledged is lost",
        "",
        "From Python:",
        "",
        "  from kvstore.client import SyncClient",
        f'  with SyncClient(["{first.url}"]) as kv:',
        '      kv.put(b"fruit", b"pear")',
        '      print(kv.get(b"fruit"))',
        "",
        f"Logs     {first.log.parent}/*.log",
        f"OpenAPI  {first.url}/openapi.json",
        f"Metrics  {first.url}/metrics",
        "",
    ]
