"""What can be broken under the nodes on this machine: a disk of their own each, a library in their processes.

Invariant: both are made before the nodes start, and only if a fault of the run needs them.
"""

from __future__ import annotations

import subprocess

from jepsen.cluster import Cluster
from jepsen.disk import Disk
from jepsen.preload import Preload


class Machine:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.disks: dict[str, Disk] = {}
        self._preload: Preload | None = None

    @property
    def preload(self) -> Preload:
        assert self._preload is not None, "the nemesis has not prepared itself"
        return self._preload

    def want_disks(self) -> str | None:
        """Why it can't be; else each founding node's data lies on a disk of its own from now on."""
        folder = self._cluster.folder
        for name, node in self._cluster.nodes.items():
            if name not in self.disks:
                try:
                    self.disks[name] = Disk(folder / f"{name}.disk", folder / "disks" / name)
                except (OSError, subprocess.SubprocessError) as error:
                    return f"no disk of its own can be mounted here: {error}"
                node.data = self.disks[name].path / "data"
        return None

    def want_preload(self) -> str | None:
        """Why it can't be; else each founding node has the library from now on."""
        try:
            self._preload = self._preload or Preload(self._cluster.folder / "preload")
        except (OSError, subprocess.SubprocessError) as error:
            return f"preload.c can't be built: {error}"
        for name, node in self._cluster.nodes.items():
            node.environment |= self._preload.environment(name)
        return None

    def close(self) -> None:
        for disk in self.disks.values():
            disk.close()
        if self._preload is not None:
            self._preload.close()
