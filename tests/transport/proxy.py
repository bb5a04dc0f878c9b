"""A TCP proxy that a test can cut or stall: the network between two nodes.

`cut` closes both halves at once, `stall` stops carrying bytes while all connections stay open (a half-open peer).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Proxy:
    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self.port = 0
        self.accepted = 0
        self.forwarded = 0  # bytes towards the target
        self.on_forward: Callable[[], None] | None = None  # after each piece
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    def stall(self) -> None:
        self._flowing.clear()

    def flow(self) -> None:
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        target: asyncio.StreamWriter | None = None
        try:
            target_reader, target = await asyncio.open_connection("127.0.0.1", self.target_port)
            self._writers.add(target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._carry(reader, target, towards_target=True))
                group.create_task(self._carry(target_reader, writer, towards_target=False))
        except* OSError:
            pass
        finally:
            self._tasks.discard(task)
            for one in (writer, target):
                if one is not None:
                    self._writers.discard(one)
                    one.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, towards_target: bool) -> None:
        while data := await reader.read(65_536):
            await self._flowing.wait()
            writer.write(data)
            await writer.drain()
            if towards_target:
                self.forwarded += len(data)
                if self.on_forward is not None:
                    self.on_forward()
        raise ConnectionResetError  # one half closed: close the other
