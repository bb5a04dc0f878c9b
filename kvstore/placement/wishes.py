"""What people want of placement and what must survive its driver: nodes to be drained, and settings.

Keys of the system keyspace beside the members' records: `draining/NAME` (value: the node's id), `settings/NAME` (value:
JSON), `settings/replication_factor/KEYSPACE` (its number).

Invariant: an unreadable setting (written by a later version, say) counts as not set; the others hold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from kvstore.base.errors import Invalid
from kvstore.placement.members import _all_items as all_items
from kvstore.placement.thresholds import DEFAULTS, NAMES, Thresholds, changed
from kvstore.state.shard import ShardState

DRAINING_PREFIX = b"draining/"
SETTINGS_PREFIX = b"settings/"
FACTOR_PREFIX = "replication_factor/"


@dataclass(frozen=True, slots=True)
class Wishes:
    draining: dict[str, str] = field(default_factory=dict)  # member name -> node id
    thresholds: Thresholds = DEFAULTS
    factors: dict[int, int] = field(default_factory=dict)  # keyspace -> replication factor
    set_names: tuple[str, ...] = ()  # settings that are not the defaults


def draining_key(name: str) -> bytes:
    return DRAINING_PREFIX + name.encode()


def setting_key(name: str) -> bytes:
    return SETTINGS_PREFIX + name.encode()


def encode_setting(value: Any) -> bytes:
    return msgspec.json.encode(value)


def check_name(name: str) -> None:
    """Raises Invalid for a setting that does not exist."""
    keyspace = name.removeprefix(FACTOR_PREFIX)
    if keyspace == name and name not in NAMES:
        raise Invalid(f"there is no setting {name!r}; there are {', '.join(NAMES)}, {FACTOR_PREFIX}KEYSPACE")
    if keyspace != name and not (keyspace.isascii() and keyspace.isdigit() and len(keyspace) < 10):
        raise Invalid(f"there is no keyspace {keyspace!r}")


def checked_setting(name: str, value: Any) -> Any:
    """The value as it is kept. Raises Invalid for an unknown name or a value that is not possible."""
    check_name(name)
    field_name = "replication_factor" if name.startswith(FACTOR_PREFIX) else name
    return getattr(changed(DEFAULTS, {field_name: value}), field_name)


def read_wishes(state: ShardState) -> Wishes:
    """As the meta group's state holds them here."""
    draining = {
        item.key[len(DRAINING_PREFIX) :].decode(): item.value.decode()
        for item in all_items(state, DRAINING_PREFIX, DRAINING_PREFIX[:-1] + b"0")
    }
    thresholds, factors, names = DEFAULTS, {}, []
    for item in all_items(state, SETTINGS_PREFIX, SETTINGS_PREFIX[:-1] + b"0"):
        name = item.key[len(SETTINGS_PREFIX) :].decode()
        try:
            value = msgspec.json.decode(item.value)
            if name.startswith(FACTOR_PREFIX):
                factors[int(name.removeprefix(FACTOR_PREFIX))] = checked_setting(name, value)
            else:
                thresholds = changed(thresholds, {name: value})
        except (Invalid, ValueError, msgspec.DecodeError):
            continue
        names.append(name)
    return Wishes(draining, thresholds, factors, tuple(names))


class WishReader:
    """Reads them again only when the state is another one than at the last look."""

    def __init__(self) -> None:
        self._state: ShardState | None = None
        self._revision = -1
        self._wishes = Wishes()

    def read(self, state: ShardState) -> Wishes:
        if state is not self._state or state.revision != self._revision:
            self._state, self._revision = state, state.revision
            self._wishes = read_wishes(state)
        return self._wishes
