"""The placement driver's office on a node: every node reports to it, and where the meta group is led it is open.

Invariant: a driver serves one term of the meta group's leader here; when that ends, it is closed before anything else
           is done. Two nodes may believe for a moment that they lead: what the older one asks for is decided by Raft
           like everything, on the membership that it names.
Invariant: a report that did not arrive, or was not understood, is followed by a full one.
Called by: coordinator (round), node (report), router/placement_admin (driver, on_report).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from kvstore.base.errors import KVError, NotLeader
from kvstore.base.ids import META_SHARD
from kvstore.placement.census import Gossip
from kvstore.placement.driver import Actions, PlacementDriver
from kvstore.placement.members import Records
from kvstore.placement.reports import NodeReport, Reporter, pack
from kvstore.placement.wishes import Wishes, WishReader
from kvstore.replica.environment import Environment
from kvstore.replica.host_driver import HostDriver

logger = logging.getLogger(__name__)

REPORT_SECONDS = 1.0
PAUSE_SECONDS = 0.1  # between two reports, where leaders or members change in quick succession
IDS_A_TERM = 1_000_000  # operators' ids rise from driver to driver


class PlacementOffice:
    """See the module."""

    def __init__(
        self,
        host: HostDriver,
        environment: Environment,
        actions: Actions,
        *,
        gossip: Gossip,
        space: Callable[[], tuple[int, int]],
        send: Callable[[str], Awaitable[bool]],
    ) -> None:
        """`space`: (free, total) bytes of the disk. `send`: a packed report to the meta group's leader elsewhere,
        returning whether a full one is wanted; raises KVError."""
        self._host = host
        self._environment = environment
        self._actions = actions
        self._gossip = gossip
        self._send = send
        self._reporter = Reporter(environment.node, host.core.replicas, space, disk_full=lambda: environment.disk_full)
        self._news = asyncio.Event()
        self._wishes = WishReader()
        self._driver: PlacementDriver | None = None
        self._term = 0  # of the meta group, that the driver serves

    # -- the driver's side -----------------------------------------------------------------------------------------

    @property
    def driver(self) -> PlacementDriver:
        """Raises NotLeader where it is not, or not yet."""
        if self._driver is None or not self._host.leads(META_SHARD):
            raise NotLeader("the placement driver is not on this node")
        return self._driver

    def counts(self) -> dict[str, float]:
        """Operators by state, for the metrics; all 0 where the driver is not."""
        return dict(self._driver.counts()) if self._driver is not None else {}

    def wishes(self) -> Wishes:
        """Of the meta group's replica here. Raises NotLeader where it is not led."""
        replica = self._host.core.replicas.get(META_SHARD)
        if replica is None or replica.state is None or not replica.is_leader:
            raise NotLeader("the placement driver is not on this node")
        return self._wishes.read(replica.state)

    def on_report(self, report: NodeReport) -> bool:
        """Whether a full one is wanted. Raises NotLeader."""
        return self.driver.hear(report)

    async def round(self, records: Records | None) -> None:
        """Look, decide, act; or leave, when the meta group is led elsewhere."""
        replica = self._host.core.replicas.get(META_SHARD)
        term = replica.raw.term if replica is not None and replica.leads is not None else 0
        if term != self._term:
            await self.close()
            self._term = term
            if term:
                self._driver = PlacementDriver(self._actions, now=self._now(), first_id=term * IDS_A_TERM + 1)
                self._reporter.forget()
                logger.info("this node is the placement driver, in term %d", term)
        if self._driver is None or records is None or not records.members:
            return  # nobody has announced itself yet; the first one binds all founders
        silences = {view.member.node: self._gossip.now() - view.since for view in self._gossip.members()}
        self._driver.round(
            self._now(),
            members=[member.record for member in records.members],
            removed=records.removed,
            wishes=self.wishes(),
            down=lambda node: None if self._gossip.alive(node) else silences.get(node, 0.0),
        )

    async def close(self) -> None:
        """Ends the driver, if there is one."""
        driver, self._driver, self._term = self._driver, None, 0
        if driver is not None:
            await driver.close()

    def _now(self) -> float:
        return self._environment.clock.boot_ms() / 1_000

    # -- every node's side -----------------------------------------------------------------------------------------

    def load(self, shard: int) -> tuple[int, int]:
        """(reads, writes) a second where it is led here; (0, 0) elsewhere."""
        return self._reporter.load(shard)

    def wake(self) -> None:
        """What is led here has changed: worth a report ahead of time."""
        self._news.set()

    async def report(self) -> None:
        """For ever."""
        rng = self._environment.rng
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_SECONDS * rng.uniform(0.8, 1.2)):
                    await self._news.wait()
            self._news.clear()
            try:
                await self._tell(self._reporter.collect(self._now()))
            except KVError as error:
                logger.debug("report: %s", error.message)
                self._reporter.forget()
            await asyncio.sleep(PAUSE_SECONDS)

    async def _tell(self, report: NodeReport) -> None:
        full_wanted = self.on_report(report) if self._host.leads(META_SHARD) else await self._send(pack(report))
        if full_wanted:
            self._reporter.forget()
            self.wake()
