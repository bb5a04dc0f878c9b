"""The splits of one replica: wishes on their way into the log, what is applied, and the heirs that came of it.

Invariant: what a wish is refused for is looked at when it is staged, and again when its entry is applied, where it
           decides: then the shard may be another one.
Called by: replica; the host makes the children (births).
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

from kvstore.base.errors import Code
from kvstore.base.operations import Failure
from kvstore.base.shards import Route, ShardDescriptor
from kvstore.base.stream import Results
from kvstore.replica.environment import Birth
from kvstore.replica.proposals import ProposedEntry
from kvstore.replica.requests import ReplyTo, SplitRequest, refusal
from kvstore.replica.routes import route_of
from kvstore.state.command import Split
from kvstore.state.shard import ShardState
from kvstore.state.split import divide
from raft import Entry

if TYPE_CHECKING:
    from kvstore.replica.replica import Replica

logger = logging.getLogger(__name__)

HEIRS_MAX = 8  # whose routes a refusal tells


class Splits:
    def __init__(self, replica: Replica) -> None:
        self._replica = replica
        self._whole_version = 0  # the epoch's version in which no cut was found; 0 = none is known
        self._heirs: deque[ShardDescriptor] = deque(maxlen=HEIRS_MAX)  # as they were born

    @property
    def is_indivisible(self) -> bool:
        """Whether all that the shard holds was one key, or one key group, when a cut was last looked for here: it can
        grow beyond every bound, and people should know."""
        state = self._replica.state
        return state is not None and state.descriptor.version == self._whole_version

    def note_search(self, version: int, *, found: bool) -> None:
        """A cut in the middle was looked for, in this epoch."""
        self._whole_version = 0 if found else version

    def stage(self, split: Split, *, timeout_ms: int, reply: ReplyTo) -> SplitRequest | None:
        """Queue a split, or refuse it definitely at once."""
        replica = self._replica
        state = replica.state
        if replica.failed or not replica.is_leader or state is None:
            reply(replica.refuse_here(0))
            return None
        halves = divide(state.descriptor, state.conf_state, split)
        if isinstance(halves, Failure):
            reply(refusal(0, Code(halves.code), halves.message, definite=True))
            return None
        request = SplitRequest(frame_id=0, reply=reply, deadline_ms=replica.deadline(timeout_ms), split=split)
        if not replica.proposals.stage(request):
            reply(refusal(0, Code.OVERLOADED, "too many writes wait for their proposal"))
            return None
        return request

    def apply(self, entry: Entry, stamp: int, split: Split, own: ProposedEntry | None) -> None:
        """The host makes the child in this very turn (`Environment.births`)."""
        replica = self._replica
        state, environment = replica.state, replica.environment
        assert state is not None
        outcome = state.apply_split(entry.index, entry.term, stamp, split)
        replica.stamps.on_applied(state.stamp, environment.clock.boot_ms())
        if isinstance(outcome, ShardState):
            environment.births.append(Birth(replica, outcome, entry.index))
            self._heirs.append(outcome.descriptor)
            environment.metrics.splits += 1
            logger.info("group %d: split at %r; the right half is shard %d", replica.group, split.key, split.child)
        for request in own.requests if own is not None else ():
            if isinstance(outcome, Failure):
                request.answer(refusal(request.frame_id, Code(outcome.code), outcome.message, definite=True))
            else:
                request.answer(Results(request.frame_id, state.stamp, [split.child]))

    def heir_routes(self) -> list[Route]:
        """As the children were born: a hint for who has just been refused because of it."""
        return [route_of(heir, None, 0, self._replica.environment) for heir in self._heirs]
