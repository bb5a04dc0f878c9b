"""The numbers by which placement decides, with their bounds: what `kvctl settings` shows and sets.

Invariant: a Thresholds that exists is within its bounds; an unknown name or a value out of bounds is `Invalid`.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from kvstore.base.errors import Invalid
from kvstore.base.limits import MIB

META_VOTERS_MAX = 5
"""More voters make the meta group slower and hardly safer: five survive the loss of two nodes."""


def meta_voters(nodes: int) -> int:
    """How many voters the meta group has, of so many nodes: odd, up to five. With two nodes it is two: one voter alone
    would lose the cluster's records with its disk."""
    return META_VOTERS_MAX if nodes >= META_VOTERS_MAX else max(1, min(3, nodes))


class Thresholds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of the whole cluster. Loads are operations a second at a shard's leader."""

    dead_after_seconds: Annotated[float, Meta(ge=1, le=86_400)] = 300.0
    """A node that is down for longer is taken for lost, and its replicas are replaced. Shorter outages are cheaper to
    wait out than to copy everything."""
    replication_factor: Annotated[int, Meta(ge=1, le=7)] = 3
    rebalance: bool = True
    """False: only repair, drain and spread move anything, and shards are split."""
    split_bytes: Annotated[int, Meta(ge=1 * MIB, le=4096 * MIB)] = 64 * MIB
    split_load: Annotated[int, Meta(ge=10, le=1_000_000_000)] = 10_000
    operators_max: Annotated[int, Meta(ge=1, le=1_000)] = 64
    receiving_max: Annotated[int, Meta(ge=1, le=100)] = 2
    """Replicas on their way to one node. A snapshot fills a connection; more at once only delay each other."""
    sending_max: Annotated[int, Meta(ge=1, le=100)] = 2
    """Replicas on their way from one node, which is the leader of their shards."""
    transfers_max: Annotated[int, Meta(ge=1, le=1_000)] = 8
    """Leaderships on their way, in all: each is a pause of a few milliseconds for its shard."""
    disk_used_max: Annotated[float, Meta(gt=0, le=1)] = 0.9
    """A node with a larger part of its disk in use receives nothing."""
    balance_tolerance: Annotated[float, Meta(ge=0.01, le=1)] = 0.05
    """How far counts may be from their share before something is moved."""
    load_tolerance: Annotated[float, Meta(ge=0.05, le=10)] = 0.2
    load_ignored: Annotated[int, Meta(ge=0, le=1_000_000_000)] = 500
    """Differences of load below this move nothing: they come and go."""
    rest_seconds: Annotated[float, Meta(ge=0, le=3_600)] = 30.0
    """How long a shard that was moved for its load, or whose operator failed, is left alone by balancing."""


DEFAULTS = Thresholds()
NAMES = tuple(field.name for field in msgspec.structs.fields(Thresholds))


def changed(thresholds: Thresholds, changes: dict[str, Any]) -> Thresholds:
    """With the changes. Raises Invalid."""
    unknown = sorted(set(changes) - set(NAMES))
    if unknown:
        raise Invalid(f"there is no setting {unknown[0]!r}; there are {', '.join(NAMES)}")
    whole = {name: int(value) for name, value in changes.items() if type(value) is float and value.is_integer()}
    try:  # 3.0 is an integer in JSON
        return msgspec.convert(msgspec.structs.asdict(thresholds) | changes | whole, Thresholds)
    except msgspec.ValidationError as error:
        raise Invalid(f"a setting is not possible: {error}") from None
