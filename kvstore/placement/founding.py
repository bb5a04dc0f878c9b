"""How a cluster begins, and how a new node gets into one.

Founding: the nodes of --initial-cluster ask each other until all are heard. Where none has founded, the one with the
lowest name writes down the list of names and node ids, with a new cluster id; the others read it there and write it
down too. A node that finds its own id in the list of a founded one takes part; one that does not joins as a new node.

Invariant: `identity.cluster` is written last, after the first state and log of every founding replica, and no Raft
           group runs before that: a crash in between is repeated from the start, with the same list.
Invariant: all founders write the same list: only the lowest name ever makes one, and it makes it once.
Invariant: which founders get a replica follows from the list alone.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from typing import Protocol

import msgspec

from kvstore.base.config import NodeConfig
from kvstore.base.errors import DuplicateName, KVError, StartRefused, Unauthenticated, Unavailable
from kvstore.base.ids import DEFAULT_KEYSPACE, DEFAULT_SHARD, META_SHARD, SYSTEM_KEYSPACE, random_id
from kvstore.base.shards import Replica, ShardDescriptor, keyspace_range
from kvstore.placement.thresholds import DEFAULTS, meta_voters
from kvstore.storage.protocol import NodeIdentity
from raft import ConfState

logger = logging.getLogger(__name__)

ASK_SECONDS = 1.0
PAUSE_SECONDS = 0.1

Founders = tuple[tuple[str, str, str], ...]  # (name, node id, HOST:PORT), by name


class FoundingState(msgspec.Struct, frozen=True):
    """What a node tells others while the cluster begins."""

    name: str
    node: str
    cluster: str  # "" = not founded
    founders: Founders


class PeerApi(Protocol):
    """Small questions between nodes over HTTP. Raise Unavailable when there is no answer."""

    async def founding(self, address: str) -> FoundingState: ...
    async def join(self, address: str, *, name: str, node_id: str, own_address: str, labels: Mapping[str, str]) -> str:
        """The cluster's id."""


def founding_shards(founders: Founders) -> list[tuple[ShardDescriptor, ConfState]]:
    """The two shards that a cluster begins with, the same on every founder; not every founder has a replica.

    The second shard's replicas begin where those of the meta group end, so that no founder gets more than it must.
    """
    shards = []
    taken = 0  # replicas so far, over both shards: ids are not even equal between the two
    for shard, keyspace, count in (
        (META_SHARD, SYSTEM_KEYSPACE, meta_voters(len(founders))),
        (DEFAULT_SHARD, DEFAULT_KEYSPACE, min(DEFAULTS.replication_factor, len(founders))),
    ):
        places = range(taken, taken + count)
        taken += count
        replicas = tuple(Replica(founders[place % len(founders)][1], 1 + place) for place in places)
        start, end = keyspace_range(keyspace)
        descriptor = ShardDescriptor(
            id=shard, keyspace=keyspace, start=start, end=end, version=1, conf=1, replicas=replicas
        )
        shards.append((descriptor, ConfState(voters=tuple(replica.replica_id for replica in replicas))))
    return shards


class Founding:
    """Finds out for one node with an empty directory what it belongs to."""

    def __init__(self, config: NodeConfig, identity: NodeIdentity, api: PeerApi, rng: random.Random) -> None:
        self._config = config
        self._identity = identity
        self._api = api
        self._rng = rng

    async def run(self) -> NodeIdentity:
        """The identity to be written: with founders (take part), or with a cluster only (joined).

        Raises StartRefused after start_timeout_ms, or when the cluster does not want this node.
        """
        config = self._config
        if not config.initial_cluster and not config.join:
            return self._founded(((config.name, self._identity.node, config.advertise_address),), random_id(self._rng))
        missing = "no answer from the cluster"
        try:
            async with asyncio.timeout(config.start_timeout_ms / 1_000):
                while True:
                    try:
                        identity = await (self._join(config.join) if config.join else self._found())
                        if identity is not None:
                            return identity
                    except Unavailable as error:
                        if error.message != missing:
                            logger.info("waiting for the cluster: %s", error.message)
                        missing = error.message
                    await asyncio.sleep(PAUSE_SECONDS)
        except TimeoutError:
            raise StartRefused(
                f"no cluster within {config.start_timeout_ms // 1_000} s ({missing}); "
                "check that the other nodes run and the addresses are right, then start again"
            ) from None

    def _founded(self, founders: Founders, cluster: str) -> NodeIdentity:
        return msgspec.structs.replace(self._identity, cluster=cluster, founders=founders)

    async def _found(self) -> NodeIdentity | None:
        """One round of asking all founders; None = not everybody is ready yet."""
        config = self._config
        others = {name: address for name, address in config.initial_cluster.items() if name != config.name}
        answers = await asyncio.gather(
            *(self._api.founding(address) for address in others.values()), return_exceptions=True
        )
        heard: dict[str, FoundingState] = {}
        silent: dict[str, str] = {}  # why, by name
        for name, answer in zip(others, answers, strict=True):
            if isinstance(answer, FoundingState):
                if answer.name != name:
                    raise StartRefused(
                        f"at {others[name]} answers {answer.name!r}, not {name!r}: check --initial-cluster"
                    )
                heard[name] = answer
            elif isinstance(answer, KVError):
                silent[name] = answer.message if isinstance(answer, Unauthenticated) else ""
            else:
                raise answer
        for name, state in sorted(heard.items()):
            if state.cluster:
                return await self._follow(others[name], state)
        if silent:
            names = [f"{name} ({why})" if why else name for name, why in sorted(silent.items())]
            raise Unavailable(f"waiting for {', '.join(names)}")
        if config.name != min(config.initial_cluster):
            return None  # the lowest name makes the list; read it in the next round
        nodes = {name: state.node for name, state in heard.items()} | {config.name: self._identity.node}
        founders = tuple((name, nodes[name], config.initial_cluster[name]) for name in sorted(config.initial_cluster))
        return self._founded(founders, random_id(self._rng))

    async def _follow(self, address: str, state: FoundingState) -> NodeIdentity:
        """Somebody has founded: with this very node among the founders, or without it."""
        if any(node == self._identity.node for _, node, _ in state.founders):
            return self._founded(state.founders, state.cluster)
        return await self._join((address,))

    async def _join(self, addresses: tuple[str, ...]) -> NodeIdentity:
        config = self._config
        last = Unavailable("no address to join")
        for address in addresses:
            try:
                cluster = await self._api.join(
                    address,
                    name=config.name,
                    node_id=self._identity.node,
                    own_address=config.advertise_address,
                    labels=config.labels,
                )
            except DuplicateName as error:
                raise StartRefused(f"DUPLICATE_NAME: {error.message}") from None
            except KVError as error:
                last = Unavailable(f"{address}: {error.message}")
                continue
            return msgspec.structs.replace(self._identity, cluster=cluster)
        raise last
