"""A node's transport alone in a process, to be killed: python -m tests.transport.peer_process NAME PORT PEER_ADDRESS.

It answers each message with the same one, and prints "ready" once it is connected with n1 or n3.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

from kvstore.transport.protocol import GroupMessage
from tests.transport.rig import IDS, Node, Recorder


class Echo(Recorder):
    def __init__(self, own: Node) -> None:
        super().__init__()
        self.own = own

    def on_messages(self, node: str, messages: list[GroupMessage]) -> None:
        self.own.transport.send(node, messages)


async def serve(name: str, port: int, peer: str, peer_address: str) -> None:
    node = Node(name, port=port)

    node.handler = Echo(node)
    await node.start({IDS[peer]: peer_address})
    await node.handler.until(lambda: node.transport.connected(IDS[peer]), 30)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]))
