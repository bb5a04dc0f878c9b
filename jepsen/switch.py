"""The network between real nodes, without root: everything they send each other passes through here.

A node listens at one loopback address and is known to the others by another one, at which the switch listens. A TCP
connection to it comes from whichever process owns its other end (Linux tells), a datagram from the address
that its sender listens at; so each is put on the link (from, to), and a link can be cut, one way too, made slow, lossy.
Clients are the source CLIENT, and can be cut off as well.

Invariant: while a node's process does not run, its address refuses connections, as a dead process's does.
Invariant: what a cut holds back of a TCP connection is delivered when the link is healed, as TCP itself would do; a
    datagram on a cut link is gone.
Invariant: each connection and each link holds back a bounded number of bytes; past it the sender is not read from.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import struct
from collections import deque
from dataclasses import dataclass, field
from typing import cast

CLIENT = "client"
"""The name of the source that is none of the nodes."""

READ_BYTES = 64 * 1024
HELD_BYTES_MAX = 1 << 20
DATAGRAMS_HELD_MAX = 4_096
RESEND_SECONDS = 0.2
"""What a lost segment costs a TCP connection: its sender's smallest time-out."""


@dataclass(slots=True)
class Link:
    """One direction between two nodes. Times are in seconds."""

    cut: bool = False
    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0  # share of datagrams dropped, and of TCP segments that have to be sent again

    @property
    def plain(self) -> bool:
        return not self.cut and self.delay == 0 and self.jitter == 0 and self.loss == 0


@dataclass(slots=True)
class Port:
    """Where a node is. `pid` is None while it does not run."""

    name: str
    listens: tuple[str, int]
    known_as: tuple[str, int]
    pid: int | None = None
    server: asyncio.Server | None = None
    datagrams: asyncio.DatagramTransport | None = None


@dataclass(slots=True)
class _Flow:
    """One direction of a connection. `changed` wakes both its ends: there is more, or there is room."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    source: str
    target: str
    held: deque[tuple[float, bytes]] = field(default_factory=deque)  # (loop time at which it is due, bytes)
    held_bytes: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Switch:
    """Add nodes, `open` them when their process runs, change `link(a, b)` while they do."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._ports: dict[str, Port] = {}
        self._by_listener: dict[tuple[str, int], str] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._sockets = _Sockets()
        self._datagrams_held = 0
        self.datagrams_dropped = 0

    # -- links

    def link(self, source: str, target: str) -> Link:
        return self._links.setdefault((source, target), Link())

    def changed(self) -> None:
        """To be called after links were changed."""
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    def heal(self) -> None:
        self._links.clear()
        self.changed()

    # -- nodes

    async def add(self, name: str, *, listens: tuple[str, int], known_as: tuple[str, int]) -> None:
        port = Port(name, listens, known_as)
        self._ports[name] = port
        self._by_listener[listens] = name
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(self, port), local_addr=known_as)
        port.datagrams = transport

    async def open(self, name: str, pid: int) -> None:
        """The node's process has been started."""
        port = self._ports[name]
        assert port.server is None, f"{name} is open already"
        port.pid = pid
        host, number = port.known_as
        port.server = await asyncio.start_server(lambda r, w: self._accept(port, r, w), host, number, backlog=1_024)

    def shut(self, name: str) -> None:
        """The node's process has ended: connections to it are reset and refused."""
        port = self._ports[name]
        port.pid = None
        if port.server is not None:
            port.server.close()
            port.server = None

    async def close(self) -> None:
        for name, port in self._ports.items():
            self.shut(name)
            if port.datagrams is not None:
                port.datagrams.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._sockets.close()

    # -- TCP

    async def _accept(self, port: Port, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._tasks.add(task)
        _prepare(writer)
        try:
            source = self._owner(writer.get_extra_info("peername"), port.known_as)
            far_reader, far_writer = await asyncio.open_connection(*port.listens)
            _prepare(far_writer)
            try:
                await self._carry(
                    _Flow(reader, far_writer, source, port.name), _Flow(far_reader, writer, port.name, source)
                )
            finally:
                far_writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass  # one side is gone, or the switch is closing: either way both ends are cut
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _carry(self, *flows: _Flow) -> None:
        """Until one of the directions ends: nobody here half-closes."""
        tasks = [asyncio.create_task(work) for flow in flows for work in (self._receive(flow), self._deliver(flow))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, BaseException) and not isinstance(result, OSError | asyncio.CancelledError):
                    raise result

    def _owner(self, peer: tuple[str, int], here: tuple[str, int]) -> str:
        """The node whose process is at the other end of a connection from `peer` to `here`."""
        inode = self._sockets.inode(peer, here)
        for name, port in self._ports.items():
            if inode is not None and port.pid is not None and _holds(port.pid, inode):
                return name
        return CLIENT

    async def _receive(self, flow: _Flow) -> None:
        loop = asyncio.get_running_loop()
        while data := await flow.reader.read(READ_BYTES):
            due = loop.time() + self._seconds_on(self.link(flow.source, flow.target))
            flow.held.append((max(due, flow.held[-1][0]) if flow.held else due, data))
            flow.held_bytes += len(data)
            flow.changed.set()
            while flow.held_bytes > HELD_BYTES_MAX:
                flow.changed.clear()
                await flow.changed.wait()

    async def _deliver(self, flow: _Flow) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not flow.held:
                flow.changed.clear()
                await flow.changed.wait()
            due = flow.held[0][0]
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            while self.link(flow.source, flow.target).cut:
                await self._changed.wait()
            _, data = flow.held.popleft()
            flow.held_bytes -= len(data)
            flow.changed.set()
            if flow.writer.is_closing():
                return
            flow.writer.write(data)
            await flow.writer.drain()

    def _seconds_on(self, link: Link) -> float:
        seconds = link.delay + link.jitter * self._rng.uniform(-1, 1)
        while link.loss and self._rng.random() < link.loss:
            seconds += RESEND_SECONDS
        return max(seconds, 0.0)

    # -- UDP

    def datagram(self, port: Port, data: bytes, sender: tuple[str, int]) -> None:
        """From the node that listens at `sender` to the one that is known as `port`."""
        source = self._by_listener.get(sender)
        if source is None:
            return
        link = self.link(source, port.name)
        if link.cut or (link.loss and self._rng.random() < link.loss) or self._datagrams_held >= DATAGRAMS_HELD_MAX:
            self.datagrams_dropped += 1
            return
        seconds = link.delay + link.jitter * self._rng.uniform(-1, 1)
        if seconds <= 0:
            self._send(source, port, data)
            return
        self._datagrams_held += 1
        asyncio.get_running_loop().call_later(seconds, self._send_held, source, port, data)

    def _send_held(self, source: str, port: Port, data: bytes) -> None:
        self._datagrams_held -= 1
        self._send(source, port, data)

    def _send(self, source: str, port: Port, data: bytes) -> None:
        """From the address by which the receiver knows the sender, so that answers come back through here."""
        transport = self._ports[source].datagrams
        if transport is not None and not transport.is_closing():
            transport.sendto(data, port.listens)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, switch: Switch, port: Port) -> None:
        self._switch = switch
        self._port = port

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._switch.datagram(self._port, data, addr)

    def error_received(self, exc: Exception) -> None:
        """A node's socket is closed: its process does not run."""


def _prepare(writer: asyncio.StreamWriter) -> None:
    """No delay; and an abort is a reset: a dead peer's connection does not end politely."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


class _Sockets:
    """Asks the kernel which socket is at the other end of a local connection (netlink, sock_diag(7)): in one step,
    where /proc/net/tcp would have to be read as a whole, with thousands of closed connections in it."""

    _REQUEST = struct.Struct("=IHHII BBBxI HH16s16sI8s")
    _ANY = b"\xff" * 8
    _INODE_AT = 16 + 68  # behind the netlink header, in struct inet_diag_msg
    _BY_FAMILY = 20
    _NETLINK_SOCK_DIAG = 4
    _ALL_STATES = 0xFFFF_FFFF

    def __init__(self) -> None:
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, self._NETLINK_SOCK_DIAG)
        self._netlink.settimeout(1.0)

    def inode(self, source: tuple[str, int], target: tuple[str, int]) -> int | None:
        """Of the socket that is bound at `source` and connected with `target`; None if there is none any more."""
        source_port, target_port = (socket.htons(port) for port in (source[1], target[1]))
        request = self._REQUEST.pack(
            self._REQUEST.size, self._BY_FAMILY, 1, 0, 0,  # length, type, NLM_F_REQUEST, sequence, to the kernel
            socket.AF_INET, socket.IPPROTO_TCP, 0, self._ALL_STATES,
            source_port, target_port, socket.inet_aton(source[0]), socket.inet_aton(target[0]), 0, self._ANY,
        )  # fmt: skip
        self._netlink.send(request)
        answer = self._netlink.recv(4_096)
        if struct.unpack_from("=H", answer, 4)[0] != self._BY_FAMILY:
            return None
        found: int = struct.unpack_from("=I", answer, self._INODE_AT)[0]
        return found or None

    def close(self) -> None:
        self._netlink.close()


def _holds(pid: int, inode: int) -> bool:
    """Whether the process has the socket open."""
    wanted = f"socket:[{inode}]"
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                if os.readlink(f"{folder}/{name}") == wanted:
                    return True
    return False
