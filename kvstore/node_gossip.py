"""What gossip means to a node: whom it knows, where they are, which of them are gone, and what it tells of itself.

    members      ->  environment.addresses
    a dead one   ->  evidence for the Raft groups, as a refused connection is
    shards led here, once the no-op is applied  ->  leader hints, to everybody

Invariant: all of it is a hint. A wrong address costs a connection, a wrong death at most an election, and no leader
           that was promised a lease (raft/follower.on_leader_gone).
Invariant: a death is evidence only at the moment at which it is believed, and not while a connection with the node is
           open: who is back by then, or was never gone, is not harmed by late news.
Called by: kvstore/node.py.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from aiohttp import web

from kvstore import __version__
from kvstore.base.config import NodeConfig
from kvstore.base.errors import Invalid, StartRefused
from kvstore.base.shards import ShardDescriptor
from kvstore.gossip.driver import GossipDriver
from kvstore.gossip.endpoint import Endpoint
from kvstore.gossip.events import Event, Forgotten, MemberChanged
from kvstore.gossip.hint import Hint, make_hint
from kvstore.gossip.leader_hints import LeaderHints
from kvstore.gossip.member import INCARNATIONS_PER_BOOT, Member, MemberState
from kvstore.gossip.push_pull import MakePushPull, PushPull
from kvstore.gossip.settings import GossipSettings
from kvstore.replica.environment import Environment, NodeAddress
from kvstore.replica.host_driver import HostDriver
from kvstore.storage.protocol import NodeIdentity
from kvstore.transport.protocol import PeerTransport

logger = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 0.01  # what a turn of many elections changes is told once
LEAVE_SECONDS_MAX = 0.5


class NodeGossip:
    """One node's gossip. `start` once the groups run, `leave` after the leaderships were handed over."""

    def __init__(
        self,
        identity: NodeIdentity,
        environment: Environment,
        host: HostDriver,
        transport: PeerTransport,
        endpoint: Endpoint,
        rng: random.Random,
        push_pull: MakePushPull = PushPull,
    ) -> None:
        """Raises StartRefused."""
        config = environment.config
        self._identity = identity
        self._environment = environment
        self._host = host
        self._transport = transport
        self._announcing: asyncio.TimerHandle | None = None
        self._announced: dict[int, tuple[int, ShardDescriptor, Hint]] = {}  # by group; with the term
        settings = settings_of(config)
        self.hints = LeaderHints(identity.node, settings=settings)
        self.on_members: Callable[[], None] = lambda: None  # `alive` would give something else
        self.on_address: Callable[[], None] = lambda: None  # environment.addresses has another one
        me = Member(
            node=identity.node,
            name=config.name,
            address=config.advertise_address,
            incarnation=identity.boots * INCARNATIONS_PER_BOOT,
            labels=dict(config.labels),
            version=__version__,
        )
        try:
            self.driver = GossipDriver(
                me=me,
                cluster=identity.cluster,
                boot=environment.boot,
                boots=identity.boots,
                endpoint=endpoint,
                secrets=config.cluster_secrets,
                seeds=self._seeds,
                cargo=self.hints,
                rng=rng,
                settings=settings,
                on_event=self._on_event,
                push_pull=push_pull,
            )
        except Invalid as error:
            raise StartRefused(f"gossip can't tell of this node: {error.message}; see --name, --labels") from None

    def routes(self) -> list[web.RouteDef]:
        return self.driver.routes()

    def start(self) -> None:
        self.driver.add_gauges(self._environment.metrics)
        self._environment.metrics.add_gauge("kvstore_gossip_hints", self.hints.counts)
        self.driver.start()
        self._host.on_leads_anew = self._on_leads_anew
        self._on_leads_anew()

    async def leave(self) -> None:
        await self.driver.leave(LEAVE_SECONDS_MAX)

    async def close(self) -> None:
        self._host.on_leads_anew = lambda: None
        if self._announcing is not None:
            self._announcing.cancel()
        await self.driver.close()

    def set_secrets(self, secrets: Sequence[bytes]) -> None:
        self.driver.set_secrets(secrets)

    # -- what is told ----------------------------------------------------------------------------------------------

    def _on_leads_anew(self) -> None:
        if self._announcing is None:
            loop = asyncio.get_running_loop()
            self._announcing = loop.call_later(ANNOUNCE_SECONDS, self._announce)

    def _announce(self) -> None:
        """Thousands of shards may be led here, of which one has changed: what has not is not made anew."""
        self._announcing = None
        before, self._announced = self._announced, {}
        for group, replica in self._host.core.replicas.items():
            descriptor, term = replica.leads, replica.raw.term
            if descriptor is None:
                continue
            known = before.get(group)
            if known is None or known[0] != term or known[1] is not descriptor:
                known = (term, descriptor, make_hint(descriptor, term=term, leader=self._identity.node))
            self._announced[group] = known
        self.hints.announce([hint for *_, hint in self._announced.values()])
        self.driver.wake()

    # -- what is heard ---------------------------------------------------------------------------------------------

    def _seeds(self) -> list[str]:
        config = self._environment.config
        founders = [address for _, _, address in self._identity.founders]
        known = [place.address for place in self._environment.addresses.values()]
        return [*config.join, *config.initial_cluster.values(), *founders, *known]

    def alive(self) -> list[NodeAddress]:
        """The members that take part, as far as is known, this node included."""
        return [
            NodeAddress(one.member.name, one.member.address) for one in self.driver.members() if not one.member.is_gone
        ]

    def _on_event(self, event: Event) -> None:
        if isinstance(event, Forgotten):
            self._forget(event.node)
        if not isinstance(event, MemberChanged):
            return
        old, new = event.old, event.new
        if old is None or old.is_gone != new.is_gone or old.address != new.address:
            self.on_members()
        if old is None or old.state != new.state or _starts(old) != _starts(new):
            logger.info(
                "member %s (node %s at %s, incarnation %d) is %s",
                new.name,
                new.node[:8],
                new.address,
                new.incarnation,
                new.state.name.lower(),
            )
        if not new.is_gone:
            self._learn(new)
        elif new.state == MemberState.DEAD and self.driver.member(new.node) == new:
            self._take_for_dead(new)

    def _learn(self, member: Member) -> None:
        """Its name and address, which change only with a higher incarnation."""
        addresses = self._environment.addresses
        place = NodeAddress(member.name, member.address)
        if addresses.get(member.node) != place:
            addresses[member.node] = place
            self.on_address()

    def _forget(self, node: str) -> None:
        """It has been dead or gone for a day. Where there is a record of it, that brings its address back."""
        if not self._transport.connected(node):
            self._environment.addresses.pop(node, None)

    def _take_for_dead(self, member: Member) -> None:
        if self._transport.connected(member.node):
            logger.warning("gossip holds %s dead, though there is a connection with it", member.name)
        else:
            self._host.on_peer_gone(member.node)


def _starts(member: Member) -> int:
    return member.incarnation // INCARNATIONS_PER_BOOT


def settings_of(config: NodeConfig) -> GossipSettings:
    """All times in their usual relation to `gossip_ms`."""
    scale = config.gossip_ms / 1_000
    usual = GossipSettings()
    return GossipSettings(
        probe_seconds=usual.probe_seconds * scale,
        probe_timeout_seconds=usual.probe_timeout_seconds * scale,
        ping_again_seconds=usual.ping_again_seconds * scale,
        gossip_seconds=usual.gossip_seconds * scale,
        gossip_to_dead_seconds=usual.gossip_to_dead_seconds * scale,
        reconnect_seconds=usual.reconnect_seconds * scale,
        push_pull_seconds=usual.push_pull_seconds * scale,
        late_seconds=max(0.1, usual.late_seconds * scale),
    )
