"""Goal: bytes survive import and export, and can't fool a terminal. Method: hypothesis, and a table of bad lines."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.cli.records import BadLine, decode_line, encode_line, field, readable, shortened


@given(st.binary(), st.binary())
def test_a_line_carries_any_bytes(key: bytes, value: bytes) -> None:
    line = encode_line(key, value)
    assert decode_line(line) == (key, value)
    assert line.count(b"\n") == 1


@given(st.text(), st.text())
def test_text_stays_readable(key: str, value: str) -> None:
    try:
        line = encode_line(key.encode(), value.encode())
    except UnicodeEncodeError:
        return  # a lone surrogate is no UTF-8: there are no such bytes
    assert orjson.loads(line) == {"key": key, "value": value}


def test_each_field_chooses_its_own_form() -> None:
    assert field("key", b"a") == {"key": "a"}
    assert field("value", b"\xff\x00") == {"value_base64": "/wA="}
    assert decode_line(b'{"key": "a", "value_base64": "/wA=", "mod_revision": 7}') == (b"a", b"\xff\x00")
    assert decode_line(b'{"key_base64": "", "value": "\\u00e4"}') == (b"", "ä".encode())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"", "truncated"),
        (b"hello", "malformed"),
        (b"[1]", "object"),
        (b'{"key": "a"}', "'value' and 'value_base64'"),
        (b'{"value": "a"}', "'key' and 'key_base64'"),
        (b'{"key": "a", "key_base64": "YQ==", "value": "1"}', "'key' and 'key_base64'"),
        (b'{"key": "a", "value": 1}', "str"),
        (b'{"key": "a", "value_base64": "%%%"}', "value_base64"),
        (b'{"key": "a", "value": "\xff"}', "utf-8"),
        (b'{"key": "a", "value": "1"} x', "trailing"),
        (b'{"key": "a", "value": "' + b"[" * 10_000, "truncated"),
    ],
)
def test_bad_lines_say_what_is_wrong(line: bytes, says: str) -> None:
    with pytest.raises(BadLine) as caught:
        decode_line(line)
    assert says in str(caught.value)


@given(st.binary(max_size=200))
def test_hostile_lines_are_refused_never_worse(data: bytes) -> None:
    for line in (data, b'{"key": "' + data + b'", "value": ""}'):
        try:
            decode_line(line)
        except BadLine as error:
            assert str(error)


@given(st.binary(), st.binary())
def test_readable_is_printable_and_tells_bytes_apart(one: bytes, other: bytes) -> None:
    assert readable(one).isprintable()
    assert (readable(one) == readable(other)) == (one == other)


def test_readable_leaves_text_alone_and_escapes_the_rest() -> None:
    assert readable("Grüße 🎉".encode()) == "Grüße 🎉"
    assert readable(b"\x1b[31mred\n") == "\\x1b[31mred\\n"
    assert readable(b"\xff\\") == "\\xff\\\\"


def test_long_values_are_cut_and_say_so() -> None:
    assert shortened(b"abc", 10) == "abc"
    cut = shortened(b"x" * 5_000, 40)
    assert len(cut) == 40
    assert cut.endswith("… (5,000 bytes)")
