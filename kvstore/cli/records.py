"""Keys and values as text: the lines of import and export, the JSON of the commands, and what a table shows.

In JSON a bytes field `key` is written as `"key"` where it is UTF-8 and as `"key_base64"` where not.

Invariant: `decode_line(encode_line(key, value)) == (key, value)` for all bytes.
Invariant: `readable` gives printable text without line breaks, and different bytes never look the same.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec
import orjson


class BadLine(ValueError):
    """A line of an import that is no key with a value; the text says what is wrong with it."""


class _Line(msgspec.Struct, forbid_unknown_fields=False):
    """Further fields (a revision, say) are let pass, so that a richer export can be read back."""

    key: str | None = None
    value: str | None = None
    key_base64: str | None = None
    value_base64: str | None = None


_decode = msgspec.json.Decoder(_Line).decode


def decode_line(line: bytes) -> tuple[bytes, bytes]:
    """One line of an import. Raises BadLine."""
    try:
        fields = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadLine(str(error)) from None
    key, value = fields.key, fields.value
    if key is not None and value is not None and fields.key_base64 is None and fields.value_base64 is None:
        try:
            return key.encode(), value.encode()
        except UnicodeEncodeError:
            raise BadLine("a lone surrogate is not UTF-8; use key_base64 / value_base64") from None
    return _bytes_of("key", key, fields.key_base64), _bytes_of("value", value, fields.value_base64)


def _bytes_of(name: str, text: str | None, encoded: str | None) -> bytes:
    if (text is None) == (encoded is None):
        raise BadLine(f"exactly one of {name!r} and '{name}_base64' must be there")
    try:
        return text.encode() if text is not None else base64.b64decode(encoded or "", validate=True)
    except binascii.Error as error:
        raise BadLine(f"{name}_base64: {error}") from None
    except UnicodeEncodeError:
        raise BadLine(f"{name}: a lone surrogate is not UTF-8; use {name}_base64") from None


def field(name: str, data: bytes) -> dict[str, str]:
    """The JSON field of some bytes."""
    try:
        return {name: data.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(data).decode()}


def encode_line(key: bytes, value: bytes) -> bytes:
    """One line of an export, with its line break."""
    try:
        return orjson.dumps({"key": key.decode(), "value": value.decode()}, option=orjson.OPT_APPEND_NEWLINE)
    except UnicodeDecodeError:
        return orjson.dumps(field("key", key) | field("value", value), option=orjson.OPT_APPEND_NEWLINE)


def record(key: bytes, found: Any) -> dict[str, Any]:
    """The JSON of a stored key. `found` has value, mod_revision, create_revision and version (Found, Item)."""
    return {
        **field("key", key),
        **field("value", found.value),
        "mod_revision": found.mod_revision,
        "create_revision": found.create_revision,
        "version": found.version,
    }


def readable(data: bytes) -> str:
    """For people: UTF-8 as it is; what can't be printed, and the backslash, escaped as in a Python literal."""
    text = data.decode("utf-8", "surrogateescape")
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte that is not UTF-8, kept by surrogateescape
        return f"\\x{ord(character) - 0xDC00:02x}"
    if character == "\\" or not character.isprintable():
        return character.encode("unicode_escape").decode()
    return character


def shortened(data: bytes, width: int) -> str:
    """At most `width` characters; what was cut is told as a number of bytes."""
    text = readable(data[: width * 4])
    if len(text) <= width and len(data) <= width * 4:
        return text
    tail = f"… ({len(data):,} bytes)"
    return text[: max(1, width - len(tail))] + tail
