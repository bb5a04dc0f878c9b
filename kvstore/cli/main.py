"""The entry points of the two programs: `kvstore` runs nodes, `kvctl` uses and looks after a cluster."""

from __future__ import annotations

import functools

import click

from kvstore import __version__
from kvstore.cli.bench import bench
from kvstore.cli.bulk import export_command, import_command
from kvstore.cli.cluster import members, node, replicas, routes, shards, status
from kvstore.cli.data import cas, delete, delete_range, get, put, scan
from kvstore.cli.dev import dev
from kvstore.cli.placement import drain, operators, settings, undrain
from kvstore.cli.serve import serve
from kvstore.cli.target import target_options

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=CONTEXT)
@click.version_option(__version__, prog_name="kvstore")
def kvstore() -> None:
    """A sharded, strongly consistent, Raft-replicated key-value store.

    `kvstore dev` tries it on this machine, `kvstore serve` runs a node for real, `kvctl` talks to a cluster.
    """


kvstore.add_command(serve)
kvstore.add_command(dev)


class OrderedGroup(click.Group):
    """Commands are listed in the order in which they were added: data first, then the cluster."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=OrderedGroup,
    context_settings=CONTEXT,
    epilog="Exit codes: 0 done, 1 refused or failed without effect, 2 wrong usage, 3 not found, 4 conflict (the "
    "condition did not hold), 5 unknown outcome (it may have happened), 130 interrupted.\n\n"
    "\b\nExamples:\n"
    "  kvctl put fruit apple\n"
    "  kvctl get fruit\n"
    "  kvctl cas fruit pear --expect apple\n"
    "  kvctl scan --prefix user/ --limit 20\n"
    "  kvctl status -o json\n"
    "  kvctl --endpoints 10.0.0.1:7001,10.0.0.2:7001 members",
)
@click.version_option(__version__, prog_name="kvctl")
@functools.partial(target_options, outermost=True)
def kvctl() -> None:
    """Read, write and look after a kvstore cluster.

    -o, --endpoints, --keyspace and --timeout may stand before or after the command.
    """


for command in (put, get, delete, cas, scan, delete_range, import_command, export_command):
    kvctl.add_command(command)
for command in (status, members, shards, routes, operators, node, replicas, settings, bench):
    kvctl.add_command(command)
for command in (drain, undrain):
    node.add_command(command)
