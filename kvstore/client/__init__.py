"""The Python client of the store: `Client` for asyncio, `SyncClient` for threads, the same methods.

Read first: client (what can be asked), dispatcher (what becomes of each operation), batcher (how they travel together),
link (one connection), then the small ones: retry, session, routes, nodes, pending. connection.py is where a network is
plugged in. docs/client.md is for users, docs/protocol.md for other languages.

Invariant: imports nothing of the store but kvstore.base.
Invariant: nothing here makes a task or a timer per operation. Per-operation costs are the enemy: one future, one
           `Pending`, one operation, one step in each of a few loops.
If you change frames or codes, look at docs/protocol.md; a test compares it with the code.
"""

from kvstore.base.errors import (
    Conflict,
    DiskFull,
    Forbidden,
    Invalid,
    KVError,
    NotFound,
    Overloaded,
    SessionExpired,
    Timeout,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from kvstore.base.operations import BatchDone, Cas, Delete, Found, Get, Item, Page, Put
from kvstore.base.shards import Route
from kvstore.client.answers import StaleRead
from kvstore.client.batch import BatchBuilder, BatchConflict
from kvstore.client.client import Client, ReadMode
from kvstore.client.connection import Connection, ConnectionLost, Connector, WebSocketConnector
from kvstore.client.sync import SyncClient

__all__ = [
    "BatchBuilder",
    "BatchConflict",
    "BatchDone",
    "Cas",
    "Client",
    "Conflict",
    "Connection",
    "ConnectionLost",
    "Connector",
    "Delete",
    "DiskFull",
    "Forbidden",
    "Found",
    "Get",
    "Invalid",
    "Item",
    "KVError",
    "NotFound",
    "Overloaded",
    "Page",
    "Put",
    "ReadMode",
    "Route",
    "SessionExpired",
    "StaleRead",
    "SyncClient",
    "Timeout",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "WebSocketConnector",
]
