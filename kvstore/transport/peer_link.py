"""The node's connections to all its peers, over WebSockets: `PeerTransport` as the node uses it.

There is one connection for Raft traffic per pair of nodes. Of two that know each other the one with the lower id dials
it; a node that the other one does not know (it was removed, or the other has not heard of it yet) dials whatever its
id. A keeper task per peer redials and looks for evidence: whenever there is no connection, *both* sides try a fresh TCP
connect, at once and then with growing pauses, and report the peer gone when it is refused. So a killed process is
noticed within milliseconds, and a cut network is not mistaken for it.

Invariant: at most one connection per peer counts. A new one from the same node replaces the old one, as the peer
    dials only when it has lost it (or is a new process, told by its boot id).
Invariant: nothing of the handler is called before `start` or after `close`.
Called by: kvstore/node.py, which mounts `routes()`, names the node with `identify`, and passes it to the host.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import aiohttp
from aiohttp import web

from kvstore.transport.backoff import Backoff
from kvstore.transport.connection import LinkStats, PeerConnection
from kvstore.transport.dial import PATHS, Dialed, dial, set_socket_options
from kvstore.transport.evidence import Reach, probe
from kvstore.transport.frames import WEBSOCKET_BYTES_MAX
from kvstore.transport.hello import Fault, HelloError, Identity, Purpose, WebSocket, greet_as_listener, refuse
from kvstore.transport.protocol import GroupMessage, PeerHandler, PeerHello
from kvstore.transport.quiet_log import QuietLog
from kvstore.transport.settings import TransportSettings
from kvstore.transport.snapshot_stream import SnapshotReceiver, SnapshotSender
from kvstore.transport.upgrade import GONE_STATUS, upgrade

log = logging.getLogger(__name__)

_WAITS_BEFORE_DIAL = 3
"""So many pauses the node with the higher id gives the other one to dial; then that one may not know it."""


class _Peer:
    """What is known of one other node."""

    __slots__ = ("address", "backoff", "boot", "changed", "connection", "keeper", "node", "stats")

    def __init__(self, node: str, backoff: Backoff) -> None:
        self.node = node
        self.address: str | None = None  # None = a node that connected and that nobody told us of
        self.boot = ""  # of its last hello
        self.connection: PeerConnection | None = None
        self.keeper: asyncio.Task[None] | None = None
        self.backoff = backoff
        self.changed = asyncio.Event()  # address or connection
        self.stats = LinkStats()


class WebSocketTransport:
    """See protocol.PeerTransport. `rng` spreads the pauses; it decides nothing else."""

    def __init__(
        self,
        *,
        secrets: Sequence[bytes] = (),
        rng: random.Random | None = None,
        settings: TransportSettings | None = None,
        identity: Identity | None = None,
    ) -> None:
        self._secrets = tuple(secrets)
        self._rng = rng or random.Random()
        self._settings = settings or TransportSettings()
        self._identity = identity
        self._handler: PeerHandler | None = None
        self._addresses: dict[str, str] = {}
        self._peers: dict[str, _Peer] = {}
        self._greetings: dict[asyncio.Task[Any], web.Request] = {}  # those that have not proved yet who they are
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._quiet = QuietLog(log)
        self._snapshot_sender = SnapshotSender(self._settings, self._dial_for_snapshot)
        self._snapshot_receiver = SnapshotReceiver(self._settings)

    # -- setting up

    def routes(self) -> list[web.RouteDef]:
        """To be added to the node's application before it starts. Until `start` they answer 503."""
        return [
            web.get(PATHS[Purpose.RAFT], self._serve_raft),
            web.get(PATHS[Purpose.SNAPSHOT], self._serve_snapshot),
        ]

    def identify(self, identity: Identity) -> None:
        """Say who this node is; needed before `start`, once the cluster is known."""
        assert self._handler is None
        self._identity = identity

    def set_secrets(self, secrets: Sequence[bytes]) -> None:
        """The secrets accepted from now on, the first one is used to prove. Open connections stay."""
        self._secrets = tuple(secrets)

    async def start(self, handler: PeerHandler) -> None:
        assert self._handler is None
        assert not self._closed
        assert self._identity is not None
        self._handler = handler
        self._spawn(self._beat(), "peer-beats")
        self.set_peers(self._addresses)

    def set_peers(self, addresses: Mapping[str, str]) -> None:
        own = self._identity.node if self._identity else ""
        self._addresses = {node: address for node, address in addresses.items() if node != own}
        if self._handler is None or self._closed:
            return
        for peer in [peer for peer in self._peers.values() if peer.address and peer.node not in self._addresses]:
            self._forget(peer)
        for node, address in self._addresses.items():
            peer = self._peer(node)
            if peer.address == address:
                continue
            peer.address = address
            peer.backoff.reset()
            peer.changed.set()
            if peer.keeper is None:
                peer.keeper = self._spawn(self._keep(peer), f"peer-keeper {node[:8]}")

    # -- use

    def send(self, node: str, messages: list[GroupMessage]) -> bool:
        peer = self._peers.get(node)
        if peer is None:
            return False
        if peer.connection is None:
            peer.stats.messages_dropped += len(messages)
            return False
        return peer.connection.send(messages)

    def send_removed(self, node: str, group: int, replica_id: int) -> None:
        peer = self._peers.get(node)
        if peer is not None and peer.connection is not None:
            peer.connection.send_removed(group, replica_id)

    def connected(self, node: str) -> bool:
        peer = self._peers.get(node)
        return peer is not None and peer.connection is not None and peer.connection.open

    def heard(self, node: str) -> int:
        peer = self._peers.get(node)
        return 0 if peer is None else peer.stats.heard

    def stats(self) -> dict[str, LinkStats]:
        """Per node id; live objects, for reading only."""
        return {node: peer.stats for node, peer in self._peers.items()}

    def queued_bytes(self, node: str) -> int:
        """What waits to be sent to the node."""
        peer = self._peers.get(node)
        return peer.connection.queued_bytes if peer is not None and peer.connection is not None else 0

    async def send_snapshot(
        self, node: str, header: bytes, read_chunk: Callable[[int], Awaitable[bytes | None]]
    ) -> None:
        await self._snapshot_sender.send(node, header, read_chunk)

    async def close(self) -> None:
        """Say goodbye to all peers and end every task; call it before the HTTP server is stopped."""
        if self._closed:
            return
        self._closed = True
        connections = [peer.connection for peer in self._peers.values() if peer.connection is not None]
        for connection in connections:
            connection.stop(Fault.LEAVING, "the node stops")
        for request in self._greetings.values():
            _abort(request)
        await self._snapshot_sender.close()
        await self._snapshot_receiver.close()
        for connection in connections:
            await connection.wait_ended()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- peers

    def _peer(self, node: str) -> _Peer:
        peer = self._peers.get(node)
        if peer is None:
            settings = self._settings
            backoff = Backoff(
                seconds_min=settings.backoff_seconds_min, seconds_max=settings.backoff_seconds_max, rng=self._rng
            )
            peer = self._peers[node] = _Peer(node, backoff)
        return peer

    def _forget(self, peer: _Peer) -> None:
        del self._peers[peer.node]
        if peer.connection is not None:
            peer.connection.stop(Fault.LEAVING, "this node no longer counts the peer as one")
        elif peer.keeper is not None:
            peer.keeper.cancel()
        peer.address = None

    async def _keep(self, peer: _Peer) -> None:
        """Redial, or wait for the peer to dial, and look for evidence meanwhile; ends when the peer is forgotten."""
        assert self._handler is not None and self._identity is not None
        settings, lower = self._settings, self._identity.node < peer.node
        pause = linger = 0.0
        waited = 0  # how often somebody was there and did not dial us
        while peer.address is not None and not self._closed:
            peer.changed.clear()
            if peer.connection is not None:
                pause, linger, waited = await self._until_down(peer), settings.probe_linger_seconds, 0
                continue
            reach = await probe(peer.address, seconds_max=settings.probe_seconds_max, linger=linger)
            linger = 0.0
            if peer.connection is not None or self._closed:
                continue
            if reach is Reach.REFUSED:
                self._tell_gone(peer)
            elif not lower and waited < _WAITS_BEFORE_DIAL:
                waited += reach is Reach.OPEN
            else:
                waited = 0
                if pause:
                    await self._pause(peer, pause)
                lived = await self._dial(peer)
                if lived is not None:
                    pause, linger = self._pause_after(peer, lived), settings.probe_linger_seconds
                    continue
            await self._pause(peer, peer.backoff.next())
            pause = 0.0

    async def _until_down(self, peer: _Peer) -> float:
        loop = asyncio.get_running_loop()
        began = loop.time()
        while peer.connection is not None:
            peer.changed.clear()
            await peer.changed.wait()
        return self._pause_after(peer, loop.time() - began)

    def _pause_after(self, peer: _Peer, lived: float) -> float:
        """Seconds to wait before dialling a peer whose connection lived so long: none, unless it flaps."""
        if lived >= self._settings.steady_seconds:
            peer.backoff.reset()
            return 0.0
        return peer.backoff.next()

    async def _pause(self, peer: _Peer, seconds: float) -> None:
        """Until the time is over, the address changes or the peer connects."""
        try:
            async with asyncio.timeout(seconds):
                await peer.changed.wait()
        except TimeoutError:
            pass

    async def _dial(self, peer: _Peer) -> float | None:
        """Connect and carry until it ends. Gives the seconds that the connection lived, None if there was none."""
        address, loop = peer.address, asyncio.get_running_loop()
        if address is None or peer.connection is not None or self._closed:
            return None
        assert self._identity is not None
        try:
            async with dial(
                address,
                node=peer.node,
                purpose=Purpose.RAFT,
                identity=self._identity,
                secrets=self._secrets,
                settings=self._settings,
            ) as dialed:
                if peer.address != address or peer.connection is not None or self._closed:
                    return None
                began = loop.time()
                await self._carry(dialed.websocket, dialed.hello, dialed.cut)
                return loop.time() - began
        except HelloError as error:
            self._log_refusal(error, f"node {peer.node[:8]} at {address}")
            if error.fault is not Fault.WRONG_DIALER:
                peer.backoff.slow_down()
        except ConnectionError as error:
            log.debug("no connection to node %s: %s", peer.node[:8], error)
        return None

    def _dial_for_snapshot(self, node: str) -> AbstractAsyncContextManager[Dialed]:
        assert self._identity is not None
        address = self._addresses.get(node)
        if address is None:
            raise ConnectionError(f"the address of node {node[:8]} is not known")
        return dial(
            address,
            node=node,
            purpose=Purpose.SNAPSHOT,
            identity=self._identity,
            secrets=self._secrets,
            settings=self._settings,
            heartbeat=self._settings.snapshot_heartbeat_seconds,
        )

    # -- connections

    async def _serve_raft(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, Purpose.RAFT)

    async def _serve_snapshot(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, Purpose.SNAPSHOT)

    async def _serve(self, request: web.Request, purpose: Purpose) -> web.StreamResponse:
        settings, handler = self._settings, self._handler
        if handler is None or self._closed or len(self._greetings) >= settings.greetings_max:
            raise web.HTTPServiceUnavailable(text="the node does not take connections of peers now")
        websocket = web.WebSocketResponse(
            compress=False,
            max_msg_size=WEBSOCKET_BYTES_MAX,
            timeout=settings.farewell_seconds_max,
            heartbeat=settings.snapshot_heartbeat_seconds if purpose is Purpose.SNAPSHOT else None,
        )
        if not await upgrade(websocket, request):
            return web.Response(status=GONE_STATUS)
        try:
            set_socket_options(websocket)
            hello = await self._greet(websocket, purpose, request)
            if hello is not None and purpose is Purpose.RAFT:
                await self._carry(websocket, hello, lambda: _abort(request))
            elif hello is not None:
                await self._snapshot_receiver.serve(websocket, hello.node, handler)
        except AssertionError as error:
            _report_bug("a snapshot could not be handled", error)
        finally:
            _abort(request)
        return websocket

    async def _greet(
        self, websocket: web.WebSocketResponse, purpose: Purpose, request: web.Request
    ) -> PeerHello | None:
        """The hello of whoever connected, None if it was refused."""
        assert self._identity is not None
        task = asyncio.current_task()
        assert task is not None
        self._greetings[task] = request
        try:
            async with asyncio.timeout(self._settings.hello_seconds_max):
                return await greet_as_listener(
                    websocket, self._identity, self._secrets, purpose=purpose, admit=partial(self._admit, purpose)
                )
        except TimeoutError:
            refusal = HelloError(Fault.TOO_SLOW, "the hello took too long")
        except HelloError as error:
            refusal = error
        except (ConnectionError, aiohttp.ClientError):
            return None
        finally:
            del self._greetings[task]
        self._log_refusal(refusal, f"a connection from {request.remote}")
        if not refusal.remote:
            await refuse(websocket, refusal.fault, refusal.text, seconds_max=self._settings.farewell_seconds_max)
        return None

    def _admit(self, purpose: Purpose, hello: PeerHello) -> None:
        """The last check of a node that has proved who it is. Raises HelloError."""
        assert self._identity is not None
        if self._closed:
            raise HelloError(Fault.LEAVING, "the node stops")
        if purpose is Purpose.RAFT and hello.node > self._identity.node and hello.node in self._addresses:
            raise HelloError(Fault.WRONG_DIALER, "this node has the lower id and opens the connection")
        stranger = purpose is Purpose.RAFT and hello.node not in self._peers
        if stranger and len(self._peers) >= self._settings.peers_max:
            raise HelloError(Fault.BUSY, "too many peers")

    async def _carry(self, websocket: WebSocket, hello: PeerHello, cut: Callable[[], None]) -> None:
        """Let the connection count, and run it to its end."""
        assert self._handler is not None
        peer = self._peer(hello.node)
        connection = PeerConnection(websocket, hello, cut, self._settings, peer.stats)
        if peer.connection is not None:
            peer.connection.stop(Fault.REPLACED, "the node has connected anew")
        peer.connection = connection
        peer.boot = hello.boot
        peer.stats.connects += 1
        peer.changed.set()
        self._quiet.forget(peer.node)
        log.info("connected with %s (node %s, boot %s)", hello.name, hello.node[:8], hello.boot[:8])
        try:
            self._handler.on_peer_up(hello.node, hello.boot)
            await connection.run(self._handler)
        except Exception as error:
            _report_bug("a peer's message could not be handled", error)
        finally:
            if peer.connection is connection:
                peer.connection = None
                peer.changed.set()
            if peer.address is None and peer.connection is None and self._peers.get(peer.node) is peer:
                del self._peers[peer.node]
        self._log_end(connection)

    def _tell_gone(self, peer: _Peer) -> None:
        assert self._handler is not None
        try:
            self._handler.on_peer_gone(peer.node)
        except Exception as error:
            _report_bug("a peer's end could not be handled", error)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._settings.beat_seconds)
            for peer in list(self._peers.values()):
                if peer.connection is not None:
                    peer.connection.beat()

    def _log_end(self, connection: PeerConnection) -> None:
        ending, name = connection.ending, connection.hello.name
        if ending is None:
            log.info("the connection with %s closed", name)
        elif ending.fault is Fault.LEAVING:
            log.info("the connection with %s closed: %s", name, ending)
        else:
            who = "the peer" if ending.remote else "this node"
            self._warn(connection.hello.node, f"the connection with {name} was closed by {who}: {ending}")

    def _log_refusal(self, error: HelloError, whom: str) -> None:
        if error.fault is Fault.WRONG_DIALER:
            log.debug("%s: %s", whom, error)  # nothing is wrong: the dial of the other side comes
        elif error.remote:
            self._warn(f"{whom} {error.fault}", f"{whom} refused this node: {error}")
        else:
            self._warn(f"{whom} {error.fault}", f"this node refused {whom}: {error}")

    def _warn(self, key: str, text: str) -> None:
        self._quiet.warn(key, text, now=asyncio.get_running_loop().time())

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _report_bug(f"task {task.get_name()} failed", error)


def _report_bug(text: str, error: BaseException) -> None:
    """Nothing that a peer sends may raise here, so this is the handler's bug or ours: the loop's exception handler,
    which is the node's, decides whether the process may go on."""
    asyncio.get_running_loop().call_exception_handler({"message": text, "exception": error})


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
