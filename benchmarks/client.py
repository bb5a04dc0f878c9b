"""What an operation costs the client's own process, in microseconds of CPU, with many concurrent callers.

The server is another process and only a stand-in: it decodes each frame and answers it at once, so that what is
measured is the client. The callers are plain tasks that each wait for one operation at a time; their own loop is part
of the figure, as it is in every program.

    python -m benchmarks.client [--callers 256] [--seconds 3] [--shards 1]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from multiprocessing.connection import Connection

import msgspec
import uvloop
from aiohttp import WSMsgType, web

from kvstore.base.limits import MIB, Limits
from kvstore.base.operations import Found
from kvstore.base.shards import Route
from kvstore.base.stream import (
    GetRoutes,
    Hello,
    Mutate,
    Pong,
    Read,
    Reply,
    Request,
    Results,
    Routes,
    Welcome,
    decode_requests,
    encode,
)
from kvstore.client import Client

VALUE = b"v" * 100


def stamp() -> int:
    return time.time_ns() // 1_000_000


def answer(frame: Request, routes: list[Route]) -> Reply:
    if isinstance(frame, Mutate):
        return Results(frame.id, stamp(), [7] * len(msgspec.msgpack.decode(frame.operations)))
    if isinstance(frame, Read):
        return Results(frame.id, stamp(), [Found(VALUE, 7, 7, 1)] * len(msgspec.msgpack.decode(frame.operations)))
    if isinstance(frame, Hello):
        limits = Limits()
        return Welcome(1, "n1", "c", stamp(), {name: getattr(limits, name) for name in Limits.__dataclass_fields__})
    if isinstance(frame, GetRoutes):
        return Routes(frame.id, 1, {"default": 1}, routes)
    return Pong(frame.id, stamp())


async def serve(pipe: Connection, shards: int) -> None:
    routes: list[Route] = []

    async def stream(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=8 * MIB, compress=False)
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.BINARY:
                await socket.send_bytes(encode([answer(frame, routes) for frame in decode_requests(message.data)]))
        return socket

    application = web.Application()
    application.router.add_get("/v1/stream", stream)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = f"127.0.0.1:{runner.addresses[0][1]}"
    bounds = [b"", *(b"key%06d" % (i * 1000 // shards) for i in range(1, shards)), b""]
    routes += [
        Route(2 + i, 1, bounds[i], bounds[i + 1], 1, 1, 1, "n1", address, (("n1", address, 1),)) for i in range(shards)
    ]
    pipe.send(address)
    await asyncio.Event().wait()


def run_server(pipe: Connection, shards: int) -> None:
    uvloop.run(serve(pipe, shards))


async def measure(kv: Client, kind: str, callers: int, seconds: float) -> dict[str, float]:
    done = 0
    end = time.perf_counter() + seconds

    async def caller(number: int) -> None:
        nonlocal done
        key = b"key%06d" % (number % 1000)
        while time.perf_counter() < end:
            if kind == "put":
                await kv.put(key, VALUE)
            else:
                await kv.get(key)
            done += 1

    await kv.get("warm")
    started, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(caller(number) for number in range(callers)))
    elapsed, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"ops_per_second": round(done / elapsed), "client_cpu_us_per_op": round(cpu / done * 1e6, 2)}


async def drive(address: str, callers: int, seconds: float) -> None:
    async with Client(address) as kv:
        for kind in ("put", "get"):
            print(json.dumps({"operation": kind, "callers": callers, **await measure(kv, kind, callers, seconds)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--shards", type=int, default=1)
    arguments = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=run_server, args=(theirs, arguments.shards), daemon=True
    )
    server.start()
    try:
        uvloop.run(drive(ours.recv(), arguments.callers, arguments.seconds))
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
