"""What a node does for the placement driver and for those who talk to it: steps of operators, drains, settings.

People's wishes are records of the meta group and survive every driver; operators are asked of the driver itself.

Invariant: a wish is answered once its record is committed; carrying it out is the driver's business.
Called by: router/admin (operations), api (through router.protocol.Admin), placement/driver (as its Actions).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

from kvstore.base.errors import Invalid, NotFound, NotLeader
from kvstore.base.ids import META_SHARD
from kvstore.base.operations import Batch, Cas, Delete, Get, Mutation, Put, Result
from kvstore.placement.members import Records
from kvstore.placement.office import PlacementOffice
from kvstore.placement.replica_change import ReplicaChange
from kvstore.placement.reports import ShardReport, look_at, pack, unpack_node, unpack_shard
from kvstore.placement.thresholds import DEFAULTS, NAMES
from kvstore.placement.wishes import (
    FACTOR_PREFIX,
    check_name,
    checked_setting,
    draining_key,
    encode_setting,
    setting_key,
)
from kvstore.replica.host_driver import HostDriver
from kvstore.replica.replica import Replica
from kvstore.router.shard_map import KEYSPACES

CHANGE_SECONDS_MAX = 60.0
CATCH_UP_SECONDS_MAX = 1_800.0  # of one request: a snapshot of a large shard at the rate limit, behind others
META_SECONDS_MAX = 6.0
SETTINGS_MAX = 100  # that one request changes


class NodeAccess(Protocol):
    """What `router.admin.NodeAdmin` lends."""

    async def at_leader(
        self, shard: int, operation: str, arguments: dict[str, Any], *, seconds: float
    ) -> dict[str, Any]: ...
    async def bind_founders(self) -> None: ...
    async def write_meta(self, operation: Mutation) -> Result: ...
    def led(self, shard: int) -> Replica: ...
    def led_records(self) -> Records: ...
    async def transfer(self, shard: int, node: str) -> dict[str, Any]: ...
    async def split(self, shard: int, key: bytes | None, version: int | None = None) -> dict[str, Any]: ...


class PlacementAdmin:
    """See the module. `office` is set before anything is asked."""

    office: PlacementOffice

    def __init__(self, host: HostDriver, node: NodeAccess) -> None:
        self._host = host
        self._node = node
        self.operations: Mapping[str, Callable[..., Awaitable[dict[str, Any]]]] = {
            "report": self._report_here,
            "operators": self._operators_here,
            "cancel_operator": self._cancel_here,
            "drain": self._drain_here,
            "undrain": self._undrain_here,
            "drain_progress": self._progress_here,
            "settings": self._settings_here,
            "set_settings": self._set_settings_here,
            "add_learner": self._add_learner_here,
            "promote": self._promote_here,
            "remove": self._remove_here,
        }

    # -- for people, on any node -----------------------------------------------------------------------------------

    async def operators(self) -> list[dict[str, Any]]:
        """Those under way and lately ended, newest first."""
        operators: list[dict[str, Any]] = (await self._at_driver("operators"))["operators"]
        return operators

    async def cancel_operator(self, operator: int) -> dict[str, Any]:
        return await self._at_driver("cancel_operator", operator=operator)

    async def drain(self, name: str) -> dict[str, Any]:
        """From now on the node gets nothing, and what it has goes elsewhere; answers with the progress."""
        await self._at_driver("drain", name=name)
        return await self._at_driver("drain_progress", name=name)

    async def undrain(self, name: str) -> dict[str, Any]:
        return await self._at_driver("undrain", name=name)

    async def drain_progress(self, name: str) -> dict[str, Any]:
        return await self._at_driver("drain_progress", name=name)

    async def settings(self) -> dict[str, Any]:
        return await self._at_driver("settings")

    async def set_settings(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """A value of None goes back to the default. All or nothing."""
        return await self._at_driver("set_settings", changes=dict(changes))

    async def send_report(self, report: str) -> bool:
        """Whether a full one is wanted."""
        return bool((await self._at_driver("report", report=report)).get("full"))

    async def _at_driver(self, operation: str, **arguments: Any) -> dict[str, Any]:
        return await self._node.at_leader(META_SHARD, operation, arguments, seconds=META_SECONDS_MAX)

    # -- where the meta group is led -------------------------------------------------------------------------------

    async def _report_here(self, *, report: str) -> dict[str, Any]:
        return {"full": self.office.on_report(unpack_node(report))}

    async def _operators_here(self) -> dict[str, Any]:
        return {"operators": self.office.driver.describe()}

    async def _cancel_here(self, *, operator: int) -> dict[str, Any]:
        return self.office.driver.cancel(operator)

    async def _drain_here(self, *, name: str) -> dict[str, Any]:
        await self._node.bind_founders()
        node = self._member(name)
        draining = set(self.office.wishes().draining.values())
        staying = [one.record.node for one in self._node.led_records().members if one.record.node not in draining]
        if staying == [node]:
            raise Invalid(f"{name} is the last node that is not drained")
        await self._node.write_meta(Put(0, draining_key(name), node.encode()))
        return {"draining": name}

    async def _undrain_here(self, *, name: str) -> dict[str, Any]:
        self._member(name)
        await self._node.write_meta(Delete(0, draining_key(name)))
        return {"draining": None, "node": name}

    async def _progress_here(self, *, name: str) -> dict[str, Any]:
        node = self._member(name)
        wished = node in self.office.wishes().draining.values()
        return self.office.driver.drain_progress(node) | {"node": name, "draining": wished}

    def _member(self, name: str) -> str:
        """Its node id. Raises NotFound."""
        known = self._node.led_records().named(name)
        if known is None:
            raise NotFound(f"there is no member {name}")
        return known.record.node

    async def _settings_here(self) -> dict[str, Any]:
        wishes = self.office.wishes()
        rows = [
            {
                "name": name,
                "value": getattr(wishes.thresholds, name),
                "default": getattr(DEFAULTS, name),
                "changed": name in wishes.set_names,
            }
            for name in NAMES
        ]
        names = {number: name for name, number in KEYSPACES.items()}
        rows += [
            {
                "name": f"{FACTOR_PREFIX}{names.get(keyspace, keyspace)}",
                "value": factor,
                "default": wishes.thresholds.replication_factor,
                "changed": True,
            }
            for keyspace, factor in sorted(wishes.factors.items())
        ]
        return {"settings": rows}

    async def _set_settings_here(self, *, changes: dict[str, Any]) -> dict[str, Any]:
        if not changes or len(changes) > SETTINGS_MAX:
            raise Invalid(f"between 1 and {SETTINGS_MAX} settings can be changed at once")
        writes: list[Put | Delete | Cas | Get] = []
        for name, value in changes.items():
            key = _key_of(name)
            if value is None:
                check_name(key)
                writes.append(Delete(0, setting_key(key)))
            else:
                writes.append(Put(0, setting_key(key), encode_setting(checked_setting(key, value))))
        await self._node.write_meta(Batch(0, writes))
        return await self._settings_here()

    # -- the driver's actions, wherever the shard is led -----------------------------------------------------------

    async def add_learner(self, shard: int, node: str, conf: int) -> ShardReport | None:
        return await self._at_shard("add_learner", shard, node=node, conf=conf)

    async def promote(self, shard: int, node: str, conf: int, *, other: str) -> ShardReport | None:
        return await self._at_shard("promote", shard, node=node, conf=conf, other=other, seconds=CATCH_UP_SECONDS_MAX)

    async def remove(self, shard: int, node: str, conf: int) -> ShardReport | None:
        return await self._at_shard("remove", shard, node=node, conf=conf)

    async def transfer(self, shard: int, node: str) -> ShardReport | None:
        await self._node.transfer(shard, node)
        return None  # the one that leads now will report

    async def split(self, shard: int, version: int) -> ShardReport | None:
        await self._node.split(shard, None, version)
        return None  # both halves will be reported

    async def _at_shard(
        self, operation: str, shard: int, *, seconds: float = CHANGE_SECONDS_MAX, **arguments: Any
    ) -> ShardReport | None:
        answer = await self._node.at_leader(shard, operation, {"shard": shard, **arguments}, seconds=seconds)
        return unpack_shard(answer["seen"]) if answer.get("seen") else None

    # -- at the shard's leader -------------------------------------------------------------------------------------

    async def _add_learner_here(self, *, shard: int, node: str, conf: int) -> dict[str, Any]:
        await self._change(shard, conf, CHANGE_SECONDS_MAX).add_learner(node)
        return self._seen(shard)

    async def _promote_here(self, *, shard: int, node: str, conf: int, other: str) -> dict[str, Any]:
        await self._change(shard, conf, CATCH_UP_SECONDS_MAX).promote(node, other=other or None)
        return self._seen(shard)

    async def _remove_here(self, *, shard: int, node: str, conf: int) -> dict[str, Any]:
        await self._change(shard, conf, CHANGE_SECONDS_MAX).remove(node)
        return self._seen(shard)

    def _change(self, shard: int, conf: int, seconds: float) -> ReplicaChange:
        return ReplicaChange(self._host, shard, timeout_seconds=seconds, conf=conf)

    def _seen(self, shard: int) -> dict[str, Any]:
        try:
            report = look_at(self._node.led(shard))
        except NotLeader:
            report = None
        return {"seen": pack(report) if report is not None else ""}


def _key_of(name: str) -> str:
    """A setting's record: a keyspace is named by people and numbered there."""
    if not name.startswith(FACTOR_PREFIX):
        return name
    keyspace = name.removeprefix(FACTOR_PREFIX)
    return f"{FACTOR_PREFIX}{KEYSPACES.get(keyspace, keyspace)}"
