"""A reader of EDN, as much of it as histories use.

Keywords become strings without their colon, vectors and lists tuples, maps dicts, sets frozensets, nil None. Tagged
values lose their tag. Positions are counted in lines, for errors.   Source: github.com/edn-format/edn
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from jepsen.history import HistoryError

TOKEN = re.compile(r"""[\s,]+|;[^\n]*|"(?:\\.|[^"\\])*"|\#\{|\#_|[()\[\]{}]|[^\s,()\[\]{}";]+|.""", re.DOTALL)
CLOSING = {"(": ")", "[": "]", "{": "}", "#{": "}"}
WORDS = {"nil": None, "true": True, "false": False}
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"'}
DEPTH_MAX = 64
"""Nesting of a value: histories need three; without a bound the text could exhaust the interpreter's stack."""

Tokens = Iterator[tuple[str, int]]


def read(text: str) -> Iterator[tuple[object, int]]:
    """The values in the text one after the other, each with the line on which it begins."""
    tokens = _tokens(text)
    for token, line in tokens:
        if token == "#_":
            _value(*_next(tokens, line), tokens, 0)
        elif not token.startswith("#") or token == "#{":
            yield _value(token, line, tokens, 0), line


def _tokens(text: str) -> Tokens:
    line = 1
    for found in TOKEN.finditer(text):
        token = found.group()
        if not (token[0].isspace() or token[0] in ",;"):
            yield token, line
        line += token.count("\n")


def _next(tokens: Tokens, line: int) -> tuple[str, int]:
    following = next(tokens, None)
    if following is None:
        raise HistoryError(line, "the text ends inside of a value that began here")
    return following


def _value(token: str, line: int, tokens: Tokens, depth: int) -> object:
    if depth > DEPTH_MAX:
        raise HistoryError(line, f"values nested deeper than {DEPTH_MAX}")
    if token in CLOSING:
        return _collection(token, line, tokens, depth)
    if token[0] == '"':
        if len(token) == 1:
            raise HistoryError(line, "a string without an end")
        return re.sub(r"\\(.)", lambda found: ESCAPES.get(found.group(1), found.group(1)), token[1:-1])
    if token[0] == ":":
        return token[1:]
    if token in WORDS:
        return WORDS[token]
    if token in ")]}":
        raise HistoryError(line, f"unexpected {token}")
    if token[0] == "#":  # a tag: the value that follows stands for itself
        return _value(*_next(tokens, line), tokens, depth + 1)
    return _number(token)


def _number(token: str) -> object:
    for convert in (int, float):
        try:
            return convert(token.rstrip("NM"))
        except ValueError:
            continue
    return token  # a symbol


def _collection(opening: str, line: int, tokens: Tokens, depth: int) -> object:
    closing = CLOSING[opening]
    items: list[object] = []
    while True:
        token, at = _next(tokens, line)
        if token == closing:
            break
        if token == "#_":
            _value(*_next(tokens, at), tokens, depth + 1)
            continue
        items.append(_value(token, at, tokens, depth + 1))
    if opening == "{":
        if len(items) % 2:
            raise HistoryError(line, "a map with a key and no value")
        return dict(zip(map(_hashable, items[::2]), items[1::2], strict=True))
    return frozenset(map(_hashable, items)) if opening == "#{" else tuple(items)


def _hashable(value: object) -> object:
    return tuple(sorted((str(k), _hashable(v)) for k, v in value.items())) if isinstance(value, dict) else value
