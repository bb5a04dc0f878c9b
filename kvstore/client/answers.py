"""From raw answers to what a caller gets: values, conflicts, and errors that say what is known.

Called by: client.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from kvstore.base.errors import KVError, Timeout
from kvstore.base.operations import Found, Mismatch
from kvstore.client.dispatcher import StaleAnswer


@dataclass(frozen=True, slots=True, kw_only=True)
class StaleRead:
    """A read that any replica may have answered: what it knew, and how old that was."""

    record: Found | None
    applied_index: int
    age_seconds: float  # upper bound


async def outcome_of(future: asyncio.Future[Any]) -> Any:
    """The result or the error, but not being cancelled."""
    try:
        return await future
    except KVError as error:
        return error


def value_of(result: Any) -> bytes | KVError | None:
    if type(result) is StaleAnswer:
        result = result.result
    if type(result) is Found:
        return result.value
    return result if result is None or isinstance(result, KVError) else unexpected(result)


def conflict_text(mismatch: Mismatch) -> str:
    if mismatch.current is None:
        return "the condition did not hold: the key is absent"
    return f"the condition did not hold: the key is at revision {mismatch.current.mod_revision}"


def half_done(error: KVError, deleted: int) -> KVError:
    return Timeout(f"{deleted} keys were deleted, then: {error.message}", definite=False, detail=deleted)


def unexpected(result: Any) -> KVError:
    """The node answered with something that is no answer to this; what it did is anybody's guess."""
    return Timeout(f"the outcome is unknown: the node's answer was a {type(result).__name__}", definite=False)
