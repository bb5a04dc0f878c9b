"""What `kvctl bench` asks of the store: mixes of operations on keys, given out in chunks.

    put      100 % writes                 ycsb-a  50 % read, 50 % update          session store
    get      100 % reads                  ycsb-b  95 % read,  5 % update          photo tagging
    mixed     80 % reads, 20 % writes     ycsb-c 100 % read                       user profile cache
                                          ycsb-d  95 % read of the latest, 5 % insert       status updates
                                          ycsb-e  95 % scan of 1 to 100 keys, 5 % insert    threaded conversations
                                          ycsb-f  50 % read, 50 % read-modify-write         user database
put, get and mixed are uniform unless told otherwise; ycsb-a to -f are zipfian (d: latest), as the paper has them:
B. Cooper et al., "Benchmarking cloud serving systems with YCSB", SoCC 2010.

Invariant: the sequence of a plan depends on the workload, the numbers and the seed only.
Invariant: reads name only keys of [0, loaded) or keys whose insert was given out before.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from kvstore.cli import zipf

KEY_PREFIX = b"kvctl-bench/"
CHUNK = 2_048  # operations planned at a time: amortises the generator without a pause that a percentile would show
SCAN_KEYS_MAX = 100


class Kind(IntEnum):
    READ = 0
    UPDATE = 1
    INSERT = 2
    SCAN = 3
    READ_MODIFY_WRITE = 4


KIND_NAMES = {kind: kind.name.lower() for kind in Kind}


@dataclass(frozen=True, slots=True)
class Workload:
    """Shares of the kinds, summing up to 1, and the distribution of the keys unless --distribution says otherwise."""

    name: str
    shares: tuple[tuple[Kind, float], ...]
    distribution: str  # uniform, zipfian, latest
    about: str

    @property
    def needs_data(self) -> bool:
        return any(kind not in (Kind.UPDATE, Kind.INSERT) for kind, _ in self.shares)


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("put", ((Kind.UPDATE, 1.0),), "uniform", "writes only"),
        Workload("get", ((Kind.READ, 1.0),), "uniform", "linearizable reads only"),
        Workload("mixed", ((Kind.READ, 0.8), (Kind.UPDATE, 0.2)), "uniform", "80 % reads, 20 % writes"),
        Workload("ycsb-a", ((Kind.READ, 0.5), (Kind.UPDATE, 0.5)), "zipfian", "50 % reads, 50 % updates"),
        Workload("ycsb-b", ((Kind.READ, 0.95), (Kind.UPDATE, 0.05)), "zipfian", "95 % reads, 5 % updates"),
        Workload("ycsb-c", ((Kind.READ, 1.0),), "zipfian", "reads only"),
        Workload("ycsb-d", ((Kind.READ, 0.95), (Kind.INSERT, 0.05)), "latest", "95 % reads of the newest, 5 % inserts"),
        Workload("ycsb-e", ((Kind.SCAN, 0.95), (Kind.INSERT, 0.05)), "zipfian", "95 % short scans, 5 % inserts"),
        Workload("ycsb-f", ((Kind.READ, 0.5), (Kind.READ_MODIFY_WRITE, 0.5)), "zipfian",
                 "50 % reads, 50 % read-modify-write"),
    )
}  # fmt: skip
assert all(abs(sum(share for _, share in workload.shares) - 1) < 1e-9 for workload in WORKLOADS.values())


def key_of(number: int) -> bytes:
    return b"%s%012d" % (KEY_PREFIX, number)


Operation = tuple[Kind, bytes, int]
"""What to do, the key, and the number of keys of a scan (else 0)."""


@dataclass(slots=True)
class Plan:
    """An endless sequence of operations. `loaded` keys exist at the start; inserts add the numbers after them."""

    workload: Workload
    loaded: int
    distribution: str
    rng: random.Random

    def operations(self) -> Iterator[Operation]:
        return itertools.chain.from_iterable(self._chunks())

    def _chunks(self) -> Iterator[list[Operation]]:
        kinds, shares = zip(*self.workload.shares, strict=True)
        newest = self.loaded - 1
        choose = self._chooser()
        pick = self.rng.random
        while True:
            chunk: list[Operation] = []
            for kind in self.rng.choices(kinds, shares, k=CHUNK):
                if kind is Kind.INSERT:
                    newest += 1
                    chunk.append((kind, key_of(newest), 0))
                else:
                    keys = 1 + int(pick() * SCAN_KEYS_MAX) if kind is Kind.SCAN else 0
                    chunk.append((kind, key_of(choose(newest)), keys))
            yield chunk

    def _chooser(self) -> Callable[[int], int]:
        """The argument is the number of the newest key, which only `latest` looks at."""
        if self.distribution == "latest":
            return zipf.latest(self.loaded, rng=self.rng)
        make = zipf.zipfian if self.distribution == "zipfian" else zipf.uniform
        choose = make(self.loaded, rng=self.rng)
        return lambda _: choose()
