"""What storage tells the composition root beyond `kvstore.base.errors`."""

from __future__ import annotations

from kvstore.base.errors import StartRefused


class DirectoryLost(StartRefused):
    """The directory has lost a hard state or a whole environment.

    Its replicas may have voted or acknowledged what is no longer known here, so it never serves under its old ids:
    the node sets the directory aside and joins as a new node (`DataDirectory.set_aside`).
    """


class SnapshotLost(Exception):
    """A snapshot's read transaction had to be given up (the map grew, or it was closed); begin a new snapshot."""
