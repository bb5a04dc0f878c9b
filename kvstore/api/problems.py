"""Errors as a REST client sees them: RFC 9457 problem details with the stable code, made from base/errors.CODES.

Invariant: `definite` false is told exactly when the operation may have happened.
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from kvstore.api.encoding import found_json, route_json
from kvstore.base.errors import CODES, ERRORS, Code, CodeInfo, Conflict, KVError, NotLeader, StaleRoute
from kvstore.base.operations import Failure, Found, Mismatch
from kvstore.base.shards import Route

PROBLEM_TYPE = "application/problem+json"
_encode = msgspec.json.Encoder().encode


class ProblemResponse(web.Response):
    """A problem document. `code` is the error's, for the request counters."""

    code: Code


def problem(
    info: CodeInfo,
    detail: str,
    *,
    status: int | None = None,
    definite: bool | None = None,
    retry_after_ms: int | None = None,
    extra: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
) -> ProblemResponse:
    """The response for one error. `status` differs from the table's only for HTTP's own refusals (405, 415, 500)."""
    wait_ms = info.retry_after_ms if retry_after_ms is None else retry_after_ms
    known = info.definite if definite is None else definite
    body: dict[str, Any] = {
        "type": f"urn:kvstore:error:{info.code.name}",
        "title": info.meaning,
        "status": status or info.http_status,
        "code": info.code.name,
        "detail": detail,
        "definite": known,
        "outcome": "failed" if known else "unknown",
        "retry": info.retry.value,
        "retry_after_ms": wait_ms,
        "hint": info.hint,
        **(extra or {}),
    }
    response = ProblemResponse(
        status=status or info.http_status, body=_encode(body), content_type=PROBLEM_TYPE, headers=headers
    )
    if wait_ms:
        response.headers["Retry-After"] = str(-(-wait_ms // 1000))  # whole seconds, rounded up
    response.code = info.code
    return response


def problem_of(error: KVError) -> ProblemResponse:
    """The response for what the store refused, with what helps to go on: current value, leader, descriptors."""
    extra: dict[str, Any] = {}
    headers: dict[str, str] = {}
    detail = error.detail
    if isinstance(error, Conflict):
        mismatch = detail if isinstance(detail, Mismatch) else Mismatch(index=0, current=detail)
        extra["index"] = mismatch.index
        extra["current"] = None if mismatch.current is None else found_json(mismatch.current)
        if isinstance(mismatch.current, Found):
            headers["ETag"] = f'"{mismatch.current.mod_revision}"'
    elif isinstance(error, NotLeader | StaleRoute) and isinstance(detail, tuple):
        extra["routes"] = [route_json(route) for route in detail if isinstance(route, Route)]
    return problem(
        error.info,
        error.message,
        definite=error.definite,
        retry_after_ms=error.retry_after_ms,
        extra=extra,
        headers=headers,
    )


def internal_problem() -> ProblemResponse:
    """A bug that is no broken invariant. The operation may have happened, so the outcome is unknown."""
    info = CODES[Code.UNAVAILABLE]
    return problem(info, "internal error; the node's log has the details", status=500, definite=False)


def raise_failure(result: Failure) -> None:
    """Raise the error that a single operation's Failure stands for."""
    kind = ERRORS.get(Code(result.code)) if result.code in Code._value2member_map_ else None
    if kind is None:  # a newer node sent a code that this one does not know
        raise KVError(f"code {result.code}: {result.message}", definite=result.definite)
    raise kind(result.message, definite=result.definite)
