"""Ranges of a keyspace over its shards: which piece the next page takes, and the token that a client goes on with.

A scan or delete-range command stays inside one shard. So a page asks for the piece of the range that lies in the
first shard (in reverse: the last), with the piece's own bounds: if the shard has become smaller meanwhile, it refuses
(STALE_ROUTE) rather than answer for less than was asked, and the page is planned again from the new routes. Where the
piece has no upper bound to give, `Piece.exact` finds out.

Invariant: pages joined in order cover [start, end) once, without gap or overlap, whatever splits and merges happen.
Invariant: a cursor only moves inside the range that its request names.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from kvstore.base.errors import Invalid
from kvstore.base.limits import KEY_BYTES_MAX
from kvstore.base.shards import Route

_TOKEN_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """[start, end) in user keys; end b"" = no upper bound."""

    start: bytes
    end: bytes

    @property
    def empty(self) -> bool:
        return bool(self.end) and self.start >= self.end


@dataclass(frozen=True, slots=True)
class Piece:
    """A span inside one shard, as it was planned; shard 0 = the routes do not tell."""

    span: Span
    shard: int = 0
    version: int = 0

    def exact(self, now: Piece) -> bool:
        """Whether an answer covered the whole piece, `now` being planned from the routes after the answer.

        A bound that is given is checked by the shard. An end of b"" means the shard's own end: if the routes have
        changed since the plan, that may have been the end of a shard that had just been split. (Routes only move
        forward, so the same version before and after is the version that answered.)
        """
        return bool(self.span.end) or (self.shard, self.version) == (now.shard, now.version)


def prefix_end(prefix: bytes) -> bytes:
    """The smallest key behind all keys with the prefix; b"" when there is none (empty or all 0xff)."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return b""
    return stripped[:-1] + bytes((stripped[-1] + 1,))


def piece_of(span: Span, routes: Sequence[Route], *, reverse: bool) -> Piece:
    """The part of a span that the next page takes: what lies in its first shard, in reverse its last."""
    if reverse:
        for route in reversed(routes):
            if span.end and route.start >= span.end:
                continue
            if route.end and (not span.end or route.end < span.end):  # a gap: the last shard is not known yet
                return Piece(span=Span(start=max(span.start, route.end), end=span.end))
            return Piece(Span(start=max(span.start, route.start), end=span.end), route.id, route.version)
    else:
        for route in routes:
            if route.end and span.start >= route.end:
                continue
            if route.start > span.start:  # a gap: the first shard is not known yet
                return Piece(Span(start=span.start, end=_lower(span.end, route.start)))
            return Piece(Span(start=span.start, end=_lower(span.end, route.end)), route.id, route.version)
    return Piece(span)  # no routes are known yet: the router will say what is the matter


def rest_of(span: Span, piece: Piece, cursor: bytes | None, *, reverse: bool) -> Span | None:
    """What is left of the span when `cursor` (None = all done) came back for the piece."""
    if reverse:
        end = piece.span.start if cursor is None else cursor
        return Span(start=span.start, end=end) if end > span.start else None
    end = piece.span.end
    if cursor is not None:
        return Span(start=cursor, end=span.end)
    return None if not end or end == span.end else Span(start=end, end=span.end)


def encode_cursor(rest: Span | None, *, reverse: bool) -> str | None:
    """An opaque token: version, direction, and where to go on."""
    if rest is None:
        return None
    position = rest.end if reverse else rest.start
    return urlsafe_b64encode(bytes((_TOKEN_VERSION, reverse)) + position).rstrip(b"=").decode()


def resume(span: Span, token: bytes, *, reverse: bool) -> Span:
    """The span that is left at a cursor. Raises Invalid when the token was not made for this range."""
    try:
        data = urlsafe_b64decode(token + b"=" * (-len(token) % 4))
    except ValueError:
        data = b""
    position = data[2:]
    if not position or len(position) > KEY_BYTES_MAX + 1 or data[:2] != bytes((_TOKEN_VERSION, reverse)):
        raise Invalid("the cursor is not one that this request's pages have given")
    if position < span.start or (span.end and position > span.end):
        raise Invalid("the cursor lies outside of the range; repeat the same prefix, start, end and reverse")
    if reverse:
        return Span(start=span.start, end=position)
    return Span(start=position, end=span.end)


def _lower(one: bytes, other: bytes) -> bytes:
    """The lower of two ends, where b"" is the highest."""
    if not one:
        return other
    return min(one, other) if other else one
