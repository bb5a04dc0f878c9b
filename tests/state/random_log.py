"""A random log of entries from a seed, as bytes, and a replica of it in a process of its own.

    python -m tests.state.random_log SEED ENTRIES FLUSH_EVERY RELOAD

prints a digest of every byte of the state after the log. FLUSH_EVERY is in entries; RELOAD = 1 also starts anew from
what each flush left, as after a restart, and with 2 from a copy, as after an installed snapshot. The log is a function
of SEED and ENTRIES alone; the state must be one of the log alone.
"""

from __future__ import annotations

import hashlib
import random
import sys

from kvstore.base.operations import Batch, Cas, Delete, DeleteRange, Get, Mutation, Put
from kvstore.state.command import encode_payload
from kvstore.state.shard_meta import StateLimits
from tests.state.machine import STAMP, Machine, descriptor, write

LIMITS = StateLimits(window_ms=60_000, answers_max=90, answer_bytes_max=8_000, result_bytes_max=1_500)


def random_mutation(rng: random.Random, seq: int) -> Mutation:
    key = b"k%02d" % rng.randrange(60)
    value = b"v" * rng.choice((0, 1, 30, 300))
    kind = rng.randrange(10)
    if kind < 4:
        return Put(seq, key, value)
    if kind == 4:
        return Delete(seq, key)
    if kind == 5:
        return DeleteRange(seq, key, b"", limit=rng.randrange(1, 9))
    if kind == 6:
        inner: list[Put | Delete | Cas | Get] = [
            Put(0, key, value),
            Get(0, key),
            Delete(0, b"k%02d" % rng.randrange(60)),
        ]
        rng.shuffle(inner)
        return Batch(seq, inner)
    if kind == 7:
        return Cas(seq, key, value, None, b"v")
    return Cas(seq, key, rng.choice((value, None)), rng.choice((0, rng.randrange(900))))


def random_log(seed: int, entries: int) -> list[bytes]:
    rng = random.Random(seed)
    sessions = [rng.randbytes(16) for _ in range(40)]
    stamp = STAMP
    log = []
    for _ in range(entries):
        stamp += rng.choice((0, 1, 50, 300, 300, 4_000))
        writes = []
        for _ in range(rng.randrange(1, 5)):
            session = rng.choice((*sessions, b""))
            base = rng.randrange(50)
            operations = [random_mutation(rng, base + rng.randrange(8)) for _ in range(rng.randrange(1, 6))]
            issued_at = stamp - rng.choice((-6_000, -3_000, 0, 0, 1, 700, 30_000, 61_000))
            low = max(0, base - rng.randrange(12))
            writes.append(
                write(*operations, session=session, low=low, issued_at=issued_at, version=1 + (rng.random() < 0.03))
            )
        log.append(encode_payload(stamp, writes))
    return log


def replay(log: list[bytes], *, flush_every: int, reload: int) -> Machine:
    machine = Machine(LIMITS, shard=descriptor(b"k05", b"k55"))
    for number, data in enumerate(log, 1):
        machine.entry_of(data)
        if number % flush_every == 0:
            if reload == 2:
                machine.flush()
                machine.store = machine.store.copy()
            if reload:
                machine.reload()
            else:
                machine.flush()
    return machine


def digest(machine: Machine) -> str:
    return hashlib.sha256(machine.dump()).hexdigest()


if __name__ == "__main__":
    _seed, _entries, _flush_every, _reload = map(int, sys.argv[1:])
    print(digest(replay(random_log(_seed, _entries), flush_every=_flush_every, reload=_reload)))
