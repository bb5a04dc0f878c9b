"""Every error code of the store, in one table: what it means, whether it may have happened, whether to retry.

The client's retries, the HTTP statuses and the documentation are made from `CODES`; nothing else decides.

Invariant: an error is `definite` only when the operation has no effect and never will have one.
Source: the definite / indefinite split follows Jepsen's Maelstrom; problem details are RFC 9457.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any, ClassVar


class Code(IntEnum):
    """The numbers are on the wire: never reuse one."""

    NOT_FOUND = 1
    CONFLICT = 2
    INVALID = 3
    TOO_LARGE = 4
    NOT_LEADER = 5
    STALE_ROUTE = 6
    UNAVAILABLE = 7
    TIMEOUT = 8
    OVERLOADED = 9
    DISK_FULL = 10
    SESSION_EXPIRED = 11
    DUPLICATE_NAME = 12
    UNAUTHENTICATED = 13
    FORBIDDEN = 14


class Retry(StrEnum):
    NEVER = "never"  # the same request will be refused again
    REROUTE = "reroute"  # at once, at the place that the answer names
    BACKOFF = "backoff"  # the same request, after a pause


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeInfo:
    """One row of the table."""

    code: Code
    http_status: int
    definite: bool  # by default; an error that is raised after the proposal says otherwise itself
    retry: Retry
    retry_after_ms: int  # 0 = at once, where a retry helps at all
    meaning: str
    hint: str


def _row(
    code: Code, http_status: int, definite: bool, retry: Retry, retry_after_ms: int, meaning: str, hint: str
) -> CodeInfo:
    return CodeInfo(
        code=code,
        http_status=http_status,
        definite=definite,
        retry=retry,
        retry_after_ms=retry_after_ms,
        meaning=meaning,
        hint=hint,
    )


_ROWS = (
    _row(Code.NOT_FOUND, 404, True, Retry.NEVER, 0, "The key, shard or member does not exist.", "Check the name."),
    _row(Code.CONFLICT, 412, True, Retry.NEVER, 0, "The condition did not hold; the current value is given.",
         "Read the current value, decide anew, and try with its revision."),
    _row(Code.INVALID, 400, True, Retry.NEVER, 0, "The request is malformed or asks for what is not possible.",
         "Correct the request."),
    _row(Code.TOO_LARGE, 413, True, Retry.NEVER, 0, "A key, value, batch or request is over its limit.",
         "GET /v1/limits shows the limits; split the request."),
    _row(Code.NOT_LEADER, 421, True, Retry.REROUTE, 0, "This replica does not lead the shard.",
         "Ask the leader that the answer names, or GET /v1/routes."),
    _row(Code.STALE_ROUTE, 409, True, Retry.REROUTE, 0, "The shard's range has changed since the route was learned.",
         "Use the descriptors in the answer."),
    _row(Code.UNAVAILABLE, 503, True, Retry.BACKOFF, 100, "No quorum or no leader at the moment.",
         "Retry; if it lasts, kvctl status shows which nodes are missing."),
    _row(Code.TIMEOUT, 504, False, Retry.BACKOFF, 50, "The deadline passed; the operation may have happened or not.",
         "Retry with the same session and sequence (or Idempotency-Key), or read."),
    _row(Code.OVERLOADED, 429, True, Retry.BACKOFF, 100, "Refused early because too much is waiting.",
         "Slow down and retry after the time given."),
    _row(Code.DISK_FULL, 507, True, Retry.BACKOFF, 5_000, "The leader's disk is nearly full; only deletes are taken.",
         "Free space on the node or delete data; writes come back by themselves."),
    _row(Code.SESSION_EXPIRED, 410, True, Retry.NEVER, 0, "The store no longer knows whether this mutation was done.",
         "A first attempt is stamped anew by the client; the outcome of a retry is unknown: read."),
    _row(Code.DUPLICATE_NAME, 409, True, Retry.NEVER, 0, "Another node has this name.",
         "Choose another --name, or `kvctl node remove NAME` if the old node is gone for good."),
    _row(Code.UNAUTHENTICATED, 401, True, Retry.NEVER, 0, "The caller did not prove who it is.", "Give the secret."),
    _row(Code.FORBIDDEN, 403, True, Retry.NEVER, 0, "The caller may not do this.", "Ask for the right to."),
)  # fmt: skip

CODES: Mapping[Code, CodeInfo] = {row.code: row for row in _ROWS}
assert len(CODES) == len(Code)


class KVError(Exception):
    """Base of everything that the store refuses. `definite` tells whether it certainly has no effect."""

    code: ClassVar[Code] = Code.INVALID

    def __init__(
        self,
        message: str = "",
        *,
        definite: bool | None = None,
        retry_after_ms: int | None = None,
        detail: Any = None,
    ) -> None:
        info = CODES[self.code]
        super().__init__(message or info.meaning)
        self.message = message or info.meaning
        self.definite = info.definite if definite is None else definite
        self.retry_after_ms = info.retry_after_ms if retry_after_ms is None else retry_after_ms
        self.detail = detail

    @property
    def outcome(self) -> str:
        """ "failed": it has no effect and never will have one; "unknown": it may have."""
        return "failed" if self.definite else "unknown"

    @property
    def info(self) -> CodeInfo:
        return CODES[self.code]


class NotFound(KVError):
    code = Code.NOT_FOUND


class Conflict(KVError):
    """`detail` is the current `operations.Found`, or None when the key is absent."""

    code = Code.CONFLICT


class Invalid(KVError):
    code = Code.INVALID


class TooLarge(KVError):
    code = Code.TOO_LARGE


class NotLeader(KVError):
    """`detail` is a tuple of `shards.Route` with the best hint."""

    code = Code.NOT_LEADER


class StaleRoute(KVError):
    """`detail` is a tuple of the current `shards.Route`s that cover what was asked for."""

    code = Code.STALE_ROUTE


class Unavailable(KVError):
    code = Code.UNAVAILABLE


class Timeout(KVError):
    code = Code.TIMEOUT


class Overloaded(KVError):
    code = Code.OVERLOADED


class DiskFull(KVError):
    code = Code.DISK_FULL


class SessionExpired(KVError):
    code = Code.SESSION_EXPIRED


class DuplicateName(KVError):
    code = Code.DUPLICATE_NAME


class Unauthenticated(KVError):
    code = Code.UNAUTHENTICATED


class Forbidden(KVError):
    code = Code.FORBIDDEN


ERRORS: Mapping[Code, type[KVError]] = {
    kind.code: kind
    for kind in (
        NotFound, Conflict, Invalid, TooLarge, NotLeader, StaleRoute, Unavailable, Timeout, Overloaded, DiskFull,
        SessionExpired, DuplicateName, Unauthenticated, Forbidden,
    )
}  # fmt: skip
assert set(ERRORS) == set(Code)


class StorageFault(Exception):
    """The disk did not do what it must: a commit or fsync failed, a record is damaged. Not for clients.

    A failed commit ends the process (a second fsync may report success for lost pages); a damaged record
    stops the replica that owns it.
    """


class DamagedRecord(StorageFault):
    """A stored record does not match its checksum, or is missing where it must be."""


class StartRefused(Exception):
    """The node can't start; the text says in one line what is wrong and what to do next."""
