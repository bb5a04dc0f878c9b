"""The processes of `kvstore dev`: one `kvstore serve` per node, each in a process group of its own.

Invariant: when the parent ends, in whatever way, its nodes end too: it stops them itself, and the kernel kills them
           should the parent die without having done so (PR_SET_PDEATHSIG).
Invariant: a temporary data folder is removed at the end; one left by a parent that was killed is removed by the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvstore.base.errors import StartRefused

HOST = "127.0.0.1"
STOP_SECONDS = 10.0  # a graceful stop hands leadership over and flushes; after that the node is killed
TEMPORARY_PREFIX = "kvstore-dev-"
STALE_SECONDS = 60.0  # younger folders may belong to a parent that has not locked its folder yet
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class NodeProcess:
    """One node. `exit_code` is None while it runs, negative for a signal."""

    name: str
    port: int
    data: Path
    log: Path
    command: tuple[str, ...]
    process: asyncio.subprocess.Process | None = None
    exit_code: int | None = None

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    @property
    def running(self) -> bool:
        return self.process is not None and self.exit_code is None

    def signal(self, number: signal.Signals) -> None:
        """To the whole group; one that has ended is left alone."""
        if self.running:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def last_words(self) -> str:
        """The last line of the log."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - 8_192))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def describe_exit(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"


def plan_nodes(*, nodes: int, port: int, data: Path, log_level: str) -> list[NodeProcess]:
    """n1.. on port.., with the commands that start them."""
    names = [f"n{number}" for number in range(1, nodes + 1)]
    founders = ",".join(f"{name}={HOST}:{port + place}" for place, name in enumerate(names))
    planned = []
    for place, name in enumerate(names):
        listen = f"{HOST}:{port + place}"
        command = (
            sys.executable,
            "-m",
            "kvstore.cli",
            "serve",
            "--name",
            name,
            "--data",
            str(data / name),
            "--listen",
            listen,
            "--initial-cluster",
            founders,
            "--log-level",
            log_level,
            "--reserve-bytes",
            "0",  # three times 256 MiB of a laptop's disk for nothing
        )
        planned.append(NodeProcess(name, port + place, data / name, data / f"{name}.log", command))
    return planned


def refuse_busy_ports(nodes: list[NodeProcess]) -> None:
    """Said before anything is started. Raises StartRefused."""
    for node in nodes:
        with socket.socket() as probe, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, node.port))
                datagrams.bind((HOST, node.port))
            except OSError as error:
                raise StartRefused(
                    f"port {node.port} is not free ({error.strerror}): is a cluster running already? "
                    "Choose other ports with --port"
                ) from None


def tie_to_parent() -> Callable[[], None]:
    """What the child does between fork and exec: ask to be killed when the parent's main thread ends."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up before the fork: nothing may be loaded in the child
    parent = os.getpid()

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the request took effect
            os._exit(1)

    return in_child


def environment(base: Mapping[str, str]) -> dict[str, str]:
    """The nodes' surroundings: the parent's, without settings that would overrule the command line's defaults."""
    kept = {name: value for name, value in base.items() if not name.startswith("KVSTORE_") and name != "PYTHONOPTIMIZE"}
    return kept | {"PYTHONUNBUFFERED": "1"}


class Nodes:
    """Starts the planned nodes, watches them, stops them."""

    def __init__(self, planned: list[NodeProcess], *, on_exit: Callable[[NodeProcess], None]) -> None:
        self.all = planned
        self._on_exit = on_exit
        self._watchers: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        for node in self.all:
            node.log.parent.mkdir(parents=True, exist_ok=True)
            with node.log.open("ab") as log:
                node.process = await asyncio.create_subprocess_exec(
                    *node.command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment(os.environ),
                    start_new_session=True,
                    preexec_fn=tie_to_parent(),
                )
            self._watchers.append(asyncio.create_task(self._watch(node, node.process)))

    async def _watch(self, node: NodeProcess, process: asyncio.subprocess.Process) -> None:
        node.exit_code = await process.wait()
        self._on_exit(node)

    async def stop(self, hard: asyncio.Event) -> None:
        """SIGTERM to all at once, SIGKILL to who is left when time is up or `hard` is set. Ends when all have ended."""
        for node in self.all:
            node.signal(signal.SIGTERM)
        if self._watchers:
            kill_now = asyncio.create_task(hard.wait())
            ended: asyncio.Future[Any] = asyncio.gather(*self._watchers)
            await asyncio.wait([ended, kill_now], timeout=STOP_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            kill_now.cancel()
        for node in self.all:
            node.signal(signal.SIGKILL)
        await asyncio.gather(*self._watchers)


@contextlib.contextmanager
def temporary_data() -> Iterator[Path]:
    """A folder that is gone afterwards. Locked while in use, so that a later run can tell a stale one."""
    _remove_stale(Path(tempfile.gettempdir()))
    folder = Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX))
    lock = os.open(folder / ".in-use", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove_stale(parent: Path) -> None:
    for folder in parent.glob(f"{TEMPORARY_PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            if time.time() - folder.stat().st_mtime < STALE_SECONDS:
                continue
            lock = os.open(folder / ".in-use", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
