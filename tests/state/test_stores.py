"""Goal: the state machine on the stores of a node ends at the same bytes as on the fake that the other tests use.

Method: one random log; flushes, crashes and restarts at random, each restart from what was flushed plus the log behind
it; then every record, the image and the sessions are compared. Runs on LMDB and on the memory store.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kvstore.state.command import DecodedWrite, decode_payload
from kvstore.state.shard import ShardState
from kvstore.storage.state_store import EnvStateStore
from tests.state.machine import GROUP, Machine, descriptor
from tests.state.random_log import LIMITS, random_log, replay
from tests.storage.backends import Backend, LmdbBackend, MemoryBackend, durable

FIRST = 6  # index of the first entry: Machine begins at 5


@pytest.fixture(params=["lmdb", "memory"])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    loop = asyncio.get_running_loop()
    found: Backend = LmdbBackend(loop, tmp_path) if request.param == "lmdb" else MemoryBackend(loop)
    yield found
    found.close()


def load(store: EnvStateStore) -> ShardState:
    return ShardState.load(GROUP, store.shards()[GROUP], store.sessions(GROUP), store)


async def flush(store: EnvStateStore, state: ShardState) -> None:
    store.freeze()
    changes = {GROUP: state.change()}
    await durable(lambda done: store.write_frozen(changes, done))


@pytest.mark.parametrize("seed", range(3))
async def test_the_stores_of_a_node_hold_what_the_fake_holds(backend: Backend, seed: int) -> None:
    rng = random.Random(seed)
    log = random_log(seed, 80)
    expected = replay(log, flush_every=1_000, reload=0)
    expected.flush()
    store: EnvStateStore = backend.state()
    founded = Machine(LIMITS, shard=descriptor(b"k05", b"k55")).store.images[GROUP]
    await durable(lambda done: store.create_shard(GROUP, founded, done))
    state = load(store)
    while state.applied_index - FIRST + 1 < len(log):
        payload = decode_payload(log[state.applied_index - FIRST + 1])
        writes = [DecodedWrite.decode(command) for command in payload.writes]
        state.apply_entry(state.applied_index + 1, 1, payload.stamp, writes)
        if rng.random() < 0.15:
            await flush(store, state)
        if rng.random() < 0.05:
            backend.crash(rng)
            store = backend.state()
            state = load(store)
    await flush(store, state)
    backend.close()
    store = backend.state()
    shard = state.descriptor
    pairs, more = store.scan(shard.start, shard.end, limit=1_000_000, bytes_max=1 << 40)
    assert not more
    assert dict(pairs) == expected.store.records
    assert store.shards()[GROUP] == expected.store.images[GROUP]
    assert dict(store.sessions(GROUP)) == dict(expected.store.sessions(GROUP))
    assert backend.fatal == []
