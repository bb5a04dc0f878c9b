"""Signed questions between nodes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from kvstore.base.errors import Unauthenticated
from kvstore.router.peer_api import AUTH_AGE_MS_MAX, check_signature, sign

SECRET = b"s" * 32
NOW = 1_700_000_000_000
PATH = "/v1/peer/admin"
BODY = b'{"operation": "x"}'


def check(
    value: str, *, secrets: Sequence[bytes] = (SECRET,), now_ms: int = NOW, path: str = PATH, body: bytes = BODY
) -> None:
    check_signature(secrets, value, now_ms=now_ms, path=path, body=body)


SIGNED = sign(SECRET, stamp_ms=NOW, path=PATH, body=BODY)


@pytest.mark.parametrize("skew_ms", [-AUTH_AGE_MS_MAX, 0, AUTH_AGE_MS_MAX])
def test_signed_with_the_secret_and_recent_is_taken(skew_ms: int) -> None:
    check(SIGNED, now_ms=NOW + skew_ms)


def test_without_a_secret_nothing_is_asked() -> None:
    check("", secrets=())


@pytest.mark.parametrize("secrets", [(SECRET, b"t" * 32), (b"t" * 32, SECRET)])
def test_while_the_secret_is_changed_both_are_taken(secrets: Sequence[bytes]) -> None:
    check(SIGNED, secrets=secrets)
    check(sign(b"t" * 32, stamp_ms=NOW, path=PATH, body=BODY), secrets=secrets)


@pytest.mark.parametrize(
    ("value", "changes"),
    [
        ("", {}),
        ("garbage", {}),
        ("\u0661.\u0662", {}),  # digits, but not ASCII
        (f"{NOW}", {}),
        (f"{NOW}.", {}),
        (f"{NOW}.{'0' * 64}", {}),
        (f"{NOW}.\u00e9", {}),
        (SIGNED, {"secrets": (b"t" * 32, b"u" * 32)}),
        (SIGNED, {"path": "/v1/peer/founding"}),
        (SIGNED, {"body": BODY + b" "}),
        (SIGNED, {"now_ms": NOW + AUTH_AGE_MS_MAX + 1}),
        (SIGNED, {"now_ms": NOW - AUTH_AGE_MS_MAX - 1}),
        (SIGNED.replace(str(NOW), str(NOW + 1)), {}),
        ("9" * 5_000 + ".0", {}),
    ],
)
def test_everything_else_is_refused(value: str, changes: dict[str, object]) -> None:
    with pytest.raises(Unauthenticated):
        check(value, **changes)  # type: ignore[arg-type]
