"""Keys and values as callers may write them. Text means its UTF-8 bytes; answers are always bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kvstore.base.errors import Invalid, TooLarge
from kvstore.base.limits import KEY_BYTES_MAX

Key = bytes | str
Value = bytes | str
Pairs = Mapping[str, Value] | Mapping[bytes, Value] | Mapping[Key, Value] | Iterable[tuple[Key, Value]]
"""Of put_many. A mapping is invariant in its keys, hence the three."""


def to_bytes(text: bytes | str | bytearray | memoryview) -> bytes:
    """Raises TypeError for anything else: 1 as a key is a mistake, not b"1" or b"\\0"."""
    if isinstance(text, bytes):
        return text
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, (bytearray, memoryview)):
        return bytes(text)
    raise TypeError(f"a key or value is bytes or str, not {type(text).__name__}")


def prefix_range(prefix: bytes) -> tuple[bytes, bytes]:
    """[start, end) of all keys with the prefix; an end of b"" means no bound."""
    head = prefix.rstrip(b"\xff")
    return prefix, head[:-1] + bytes((head[-1] + 1,)) if head else b""


def range_of(prefix: Key | None, start: Key | None, end: Key | None) -> tuple[bytes, bytes]:
    """The range that a caller names by prefix or by bounds (none = no bound). Raises Invalid or TooLarge."""
    if prefix is not None:
        if start is not None or end is not None:
            raise Invalid("a range is given by prefix= or by start= and end=, not by both")
        first, last = prefix_range(to_bytes(prefix))
    else:
        first, last = to_bytes(start or b""), to_bytes(end or b"")
    if max(len(first), len(last)) > KEY_BYTES_MAX:
        raise TooLarge(f"a bound of the range has more than {KEY_BYTES_MAX} bytes")
    if last and first > last:
        raise Invalid("the range's start lies behind its end")
    return first, last
