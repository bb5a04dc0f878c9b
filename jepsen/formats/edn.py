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
    yield from ((_value(token, line, tokens, 0), line) for token, line in _kept(tokens, 0))


def read_elements(text: str) -> Iterator[tuple[object, int]]:
    """As read, with the elements of lists and vectors in their place: they have lines of their own."""
    tokens = _tokens(text)
    inside: list[tuple[str, int]] = []  # the closings that are waited for, and the lines of their openings
    for token, line in _kept(tokens, 0):
        if token in ("(", "[") and len(inside) < DEPTH_MAX:
            inside.append((CLOSING[token], line))
        elif inside and token == inside[-1][0]:
            inside.pop()
        else:
            yield _value(token, line, tokens, 0), line
    if inside:
        raise HistoryError(inside[-1][1], "the text ends inside of the list that began here")


def _kept(tokens: Tokens, depth: int) -> Tokens:
    """Without the values that `#_` leaves out."""
    for token, line in tokens:
        if token == "#_":
            _value(*_next(tokens, line), tokens, depth + 1)
        else:
            yield token, line


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
    for token, at in _kept(tokens, depth):
        if token == closing:
            break
        items.append(_value(token, at, tokens, depth + 1))
    else:
        raise HistoryError(line, "the text ends inside of a value that began here")
    if opening == "{":
        if len(items) % 2:
            raise HistoryError(line, "a map with a key and no value")
        return dict(zip(map(_hashable, items[::2]), items[1::2], strict=True))
    return frozenset(map(_hashable, items)) if opening == "#{" else tuple(items)


def _hashable(value: object) -> object:
    return tuple(sorted((str(k), _hashable(v)) for k, v in value.items())) if isinstance(value, dict) else value
