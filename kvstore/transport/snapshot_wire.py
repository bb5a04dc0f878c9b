"""What goes over a snapshot's connection, after the hello.

    sender                                    receiver
      Begin(header)                     ->
                                        <-    Resume(at, window), or Refused
      Chunk(number, crc, data) ...      ->
                                        <-    Taken(next) ...          each time a chunk has been taken in
      End(count)                        ->
                                        <-    Installed, or Refused

Messages are MessagePack arrays that begin with their tag; large ones travel in parts (see frames).

Invariant: `read_*` give a message or raise StreamBroken, whatever the peer sends.
"""

from __future__ import annotations

import zlib
from typing import Annotated

import aiohttp
import msgspec
from aiohttp import WSMsgType

from kvstore.transport.frames import PART_BYTES_MAX, Assembler, FrameError, cut
from kvstore.transport.hello import WebSocket, fault_of

HEADER_BYTES_MAX = PART_BYTES_MAX
_REASON_CHARS_MAX = 500

_Number = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class StreamBroken(ConnectionError):
    """The connection ended, or carried what it must not. The stream may be resumed on another one."""


class Begin(msgspec.Struct, array_like=True, tag=1, gc=False):
    header: Annotated[bytes, msgspec.Meta(max_length=HEADER_BYTES_MAX)]


class Chunk(msgspec.Struct, array_like=True, tag=2, gc=False):
    number: _Number
    crc: int  # crc32 of data
    data: bytes


class End(msgspec.Struct, array_like=True, tag=3, gc=False):
    count: _Number  # of all chunks = the number that the next one would have


class Resume(msgspec.Struct, array_like=True, tag=1, gc=False):
    at: _Number
    window: Annotated[int, msgspec.Meta(ge=1, le=64)]  # chunks that may be on the way and not taken


class Taken(msgspec.Struct, array_like=True, tag=2, gc=False):
    next: _Number  # everything before it was taken in


class Installed(msgspec.Struct, array_like=True, tag=3, gc=False):
    pass


class Refused(msgspec.Struct, array_like=True, tag=4, gc=False):
    reason: str


FromSender = Begin | Chunk | End
FromReceiver = Resume | Taken | Installed | Refused

_encode = msgspec.msgpack.Encoder().encode
_from_sender = msgspec.msgpack.Decoder(FromSender)
_from_receiver = msgspec.msgpack.Decoder(FromReceiver)


def chunk(number: int, data: bytes) -> Chunk:
    return Chunk(number, zlib.crc32(data), data)


def refused(reason: str) -> Refused:
    return Refused(reason[:_REASON_CHARS_MAX])


class SnapshotSocket:
    """One end of a snapshot's connection."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._assembler = Assembler()

    async def send(self, message: FromSender | FromReceiver) -> None:
        """Raises StreamBroken."""
        try:
            for part in cut(_encode(message)):
                await self._websocket.send_bytes(part)
        except (ConnectionError, aiohttp.ClientError) as error:
            raise StreamBroken(f"the connection broke: {error}") from error

    async def read_from_sender(self) -> FromSender:
        data = await self._read()
        try:
            message: FromSender = _from_sender.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StreamBroken(f"malformed snapshot message: {error}") from None
        if type(message) is Chunk and zlib.crc32(message.data) != message.crc:
            raise StreamBroken(f"chunk {message.number} is damaged")
        return message

    async def read_from_receiver(self) -> FromReceiver:
        data = await self._read()
        try:
            message: FromReceiver = _from_receiver.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StreamBroken(f"malformed snapshot message: {error}") from None
        return message

    async def _read(self) -> bytes:
        while True:
            message = await self._websocket.receive()
            if message.type is not WSMsgType.BINARY:
                raise StreamBroken(str(fault_of(message) or "the peer closed the connection"))
            try:
                whole = self._assembler.feed(message.data)
            except FrameError as error:
                raise StreamBroken(str(error)) from None
            if whole is not None:
                return whole
