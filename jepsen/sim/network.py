"""The simulated network: Raft's connections, gossip's datagrams, client streams, questions between nodes; and its cuts.

Invariant: all time is the loop's, all chance the given generator's.
Invariant: what arrives at a process runs as a part of it (loop.Process), so that it waits while the process is paused
    and is lost when it is dead.
Invariant: a stream delivers in order, whole or not at all, as TCP does: what is sent into a cut is held, and arrives if
    the cut ends before somebody gives the connection up; a dead process resets its connections.
Invariant: a cut is one way, and counted: it ends when everybody who made it has mended it.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from jepsen.sim.loop import Process, VirtualLoop
from kvstore.base.errors import KVError, Unavailable
from kvstore.transport.memory import MemoryNetwork, Weather
from kvstore.transport.settings import TransportSettings

CLIENTS = "clients"
"""The end of a link where all clients are."""
SYN_AGAIN_SECONDS = 0.2
SENT_AGAIN_SECONDS = 0.2
"""What TCP needs to notice a loss."""
DUPLICATE_CHANCE = 0.01
"""Of a datagram."""

CONTEXT_OF_NOBODY = contextvars.Context()

Pair = tuple[str, str]
Answer = Callable[[str, Any], Awaitable[Any]]


class Host:
    """A process on the network: what it listens with, once it does."""

    def __init__(self, node: str, address: str, process: Process) -> None:
        self.node = node
        self.address = address
        self.process = process
        self.accept: Callable[[Stream], Any] | None = None  # of client streams; what the server's side is
        self.answer: Answer | None = None  # of questions between nodes
        self.on_datagram: Callable[[bytes, str], None] | None = None
        self.streams: dict[Stream, None] = {}
        self.questions: dict[asyncio.Future[Any], None] = {}  # that it is answering


class Network:
    """What lies between all processes."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, *, weather: Weather, settings: TransportSettings) -> None:
        self.loop = loop
        self.rng = rng
        self.weather = weather
        self.raft = MemoryNetwork(rng, weather=weather, settings=settings)
        self._hosts: dict[str, Host] = {}  # by address
        self._cuts: Counter[Pair] = Counter()

    # -- processes

    def host(self, node: str, address: str, process: Process) -> Host:
        host = self._hosts[address] = Host(node, address, process)
        return host

    def at(self, address: str) -> Host | None:
        return self._hosts.get(address)

    def end(self, host: Host) -> None:
        """The process is dead: its machine resets its connections, and refuses new ones."""
        if self._hosts.get(host.address) is host:
            del self._hosts[host.address]
        for stream in list(host.streams):
            stream.reset_by_server()
        for question in list(host.questions):
            self._later(host.node, question, Unavailable("the connection was reset"))

    # -- cuts

    def cut(self, pairs: Iterable[Pair]) -> None:
        for source, target in pairs:
            self._cuts[source, target] += 1
            if self._cuts[source, target] == 1:
                self.raft.cut([source], [target])

    def mend(self, pairs: Iterable[Pair]) -> None:
        for source, target in pairs:
            self._cuts[source, target] -= 1
            if self._cuts[source, target] == 0:
                del self._cuts[source, target]
                self.raft.uncut(source, target)
        for host in self._hosts.values():
            for stream in list(host.streams):
                stream.release()

    def is_cut(self, source: str, target: str) -> bool:
        return (source, target) in self._cuts

    @property
    def whole(self) -> bool:
        return not self._cuts

    def latency(self) -> float:
        """Of something that is sent again when it is lost."""
        seconds = self.raft.latency()
        while self.raft.loses():
            seconds += SENT_AGAIN_SECONDS
        return seconds

    # -- datagrams

    def send_datagram(self, source: Host, address: str, datagram: bytes) -> None:
        """Lost, late, or twice."""
        target = self._hosts.get(address)
        if target is None or self.is_cut(source.node, target.node) or self.raft.loses():
            return
        for _ in range(2 if self.rng.random() < DUPLICATE_CHANCE else 1):
            self.loop.call_later(
                self.raft.latency(), self._deliver, source, target, datagram, context=target.process.context.copy()
            )

    def _deliver(self, source: Host, target: Host, datagram: bytes) -> None:
        if target.on_datagram is not None and not self.is_cut(source.node, target.node):
            target.on_datagram(datagram, source.address)

    # -- questions

    async def ask(self, source: str, address: str, path: str, body: Any, *, seconds: float) -> Any:
        """Raises Unavailable when there is no answer in time, and the KVError that the other side raises."""
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                target = await self.reach(source, address)
                answer: asyncio.Future[Any] = self.loop.create_future()
                target.questions[answer] = None
                try:
                    self.loop.call_later(
                        self.latency(),
                        self._begin_answer,
                        source,
                        target,
                        (path, body, answer),
                        context=target.process.context.copy(),
                    )
                    return await answer
                finally:
                    target.questions.pop(answer, None)
        except TimeoutError:
            raise Unavailable(f"no answer from {address} in time") from None

    async def reach(self, source: str, address: str) -> Host:
        """Once a connection is open: a SYN is sent again and again."""
        while True:
            await asyncio.sleep(2 * self.latency())
            target = self._hosts.get(address)
            node = address if target is None else target.node
            if self.is_cut(source, node) or self.is_cut(node, source):
                await asyncio.sleep(SYN_AGAIN_SECONDS)
                continue
            if target is None:
                raise Unavailable(f"{address} refuses connections")
            return target

    def _begin_answer(self, source: str, target: Host, question: tuple[str, Any, asyncio.Future[Any]]) -> None:
        self.loop.create_task(self._answer(source, target, *question))

    async def _answer(self, source: str, target: Host, path: str, body: Any, answer: asyncio.Future[Any]) -> None:
        """Lost if the way back is cut: whoever asks gives it up by its own time."""
        try:
            result = await target.answer(path, body) if target.answer is not None else Unavailable("it begins or stops")
        except KVError as error:
            result = error
        if not self.is_cut(target.node, source) and not self.is_cut(source, target.node):
            self._later(target.node, answer, result)

    def _later(self, node: str, answer: asyncio.Future[Any], result: Any) -> None:
        self.loop.call_later(self.latency(), _settle, answer, result, context=CONTEXT_OF_NOBODY.copy())


class Pipe:
    """One direction of a stream."""

    def __init__(self, network: Network, source: str, target: str, context: contextvars.Context) -> None:
        self._network = network
        self._pair = source, target
        self._context = context
        self._last = 0.0
        self._held: deque[Callable[[], None]] = deque()

    def push(self, on_arrival: Callable[[], None]) -> None:
        network = self._network
        if self._held or network.is_cut(*self._pair):
            self._held.append(on_arrival)
            return
        self._last = max(self._last, network.loop.time() + network.latency())
        network.loop.call_at(self._last, on_arrival, context=self._context.copy())

    def release(self) -> None:
        if not self._network.is_cut(*self._pair):
            held, self._held = self._held, deque()
            for on_arrival in held:
                self.push(on_arrival)


class Stream:
    """A client's connection with a node: messages both ways. Either side may end it; then nothing more arrives."""

    def __init__(self, network: Network, host: Host) -> None:
        self._host = host
        self._up = Pipe(network, CLIENTS, host.node, host.process.context)
        self._down = Pipe(network, host.node, CLIENTS, CONTEXT_OF_NOBODY)
        self.on_message_at_server: Callable[[bytes], None] = lambda message: None
        self.on_end_at_server: Callable[[], None] = lambda: None
        self.on_message_at_client: Callable[[bytes], None] = lambda message: None
        self.on_end_at_client: Callable[[], None] = lambda: None
        self._ended = False
        host.streams[self] = None

    def send_up(self, message: bytes) -> None:
        self._up.push(lambda: self.on_message_at_server(message))

    def send_down(self, message: bytes) -> None:
        self._down.push(lambda: self.on_message_at_client(message))

    def end_by_client(self) -> None:
        self._up.push(self._end_at_server)

    def end_by_server(self) -> None:
        self._down.push(lambda: self.on_end_at_client())

    def reset_by_server(self) -> None:
        """Its process is dead; what it has sent still arrives."""
        self._host.streams.pop(self, None)
        self.end_by_server()

    def release(self) -> None:
        self._up.release()
        self._down.release()

    def _end_at_server(self) -> None:
        self._host.streams.pop(self, None)
        self.on_end_at_server()


def _settle(answer: asyncio.Future[Any], result: Any) -> None:
    if answer.done():
        return
    if isinstance(result, BaseException):
        answer.set_exception(result)
    else:
        answer.set_result(result)
