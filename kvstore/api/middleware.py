"""Around every request: errors become problem documents, broken invariants end the process, answers are counted.

Invariant: a KVError becomes the problem of its code; an AssertionError or StorageFault goes to `fatal` and is raised
           on; a client that went away gets nothing; anything else is a bug, logged once with its traceback, and
           answered 500 with an unknown outcome.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web_protocol import RequestPayloadError

from kvstore.api.problems import ProblemResponse, internal_problem, problem, problem_of
from kvstore.base.errors import CODES, Code, KVError, StorageFault
from kvstore.base.metrics import Metrics

logger = logging.getLogger(__name__)

Fatal = Callable[[BaseException], None]

_METHODS = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"})


def edge(*, metrics: Metrics, fatal: Fatal) -> Middleware:
    """The one middleware of the application."""

    @web.middleware
    async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
        now = asyncio.get_running_loop().time
        started = now()
        try:
            response = await handler(request)
        except KVError as error:
            response = problem_of(error)
        except web.HTTPException as error:
            response = _http_problem(error)
        except (AssertionError, StorageFault) as error:
            logger.critical("broken invariant in %s %s", request.method, request.path, exc_info=True)
            fatal(error)
            raise
        except Exception as error:
            if _went_away(request, error):
                logger.debug("client of %s %s went away: %s", request.method, request.path, error)
                raise ConnectionResetError("the client went away") from error
            logger.exception("bug in %s %s", request.method, request.path)
            response = internal_problem()
        if not request.content.is_eof() and response.status != 101:
            response.force_close()  # the rest of the body is not worth reading
        metrics.count_http(
            method=request.method if request.method in _METHODS else "other",
            route=_route_of(request),
            status=response.status,
            code=response.code.name if type(response) is ProblemResponse else "OK",
            seconds=now() - started if response.status != 101 else None,
        )
        return response

    return around


def _went_away(request: web.Request, error: Exception) -> bool:
    """Whether the error is the client's connection that ended, or a body that broke off."""
    transport = request.transport
    gone = transport is None or transport.is_closing()
    return isinstance(error, RequestPayloadError) or (gone and isinstance(error, ConnectionError))


def _route_of(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return "unknown" if resource is None else resource.canonical


def _http_problem(error: web.HTTPException) -> web.StreamResponse:
    """HTTP's own refusals: no such path, no such method, a body over the limit."""
    status = error.status
    if status == 404:
        return problem(CODES[Code.NOT_FOUND], "there is no such path; GET /openapi.json lists them")
    if status == 405:
        allowed = error.headers.get("Allow", "")
        return problem(
            CODES[Code.INVALID], f"the method is not allowed here; allowed: {allowed}", status=405,
            headers={"Allow": allowed},
        )  # fmt: skip
    if status == 413:
        return problem(CODES[Code.TOO_LARGE], "the request is too large")
    if status < 400:
        raise error
    return problem(CODES[Code.INVALID], (error.text or error.reason)[:200], status=status)
