"""A port of 127.0.0.1 for a node that is to be started, or started again, and that nobody else takes meanwhile."""

from __future__ import annotations

import random
import socket

PORTS = range(20_000, 32_000)
"""Below the range of ports that the kernel gives to outgoing connections: one of them might take a stopped node's."""


def free_port() -> int:
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                datagrams.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
