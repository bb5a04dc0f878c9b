"""The OpenAPI document against the routes, and schemathesis against the server.

Goal: the document is complete and true: every route is in it, every answer is as it says. Method: schemathesis makes
requests from the document, right and wrong ones, with a fixed seed; the server is real and has the fake behind it.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case, SerializationContext
from schemathesis.config import SchemathesisConfig

from kvstore.api.app import build_app
from kvstore.api.openapi import openapi_document
from kvstore.base.errors import CODES
from kvstore.base.limits import Limits
from kvstore.base.metrics import Metrics
from tests.api.conftest import Served, serve
from tests.api.fake_backend import FakeAdmin, FakeRouter

DOCUMENT = openapi_document(Limits())

# Undocumented on purpose: HEAD of the lists, which HTTP gives to every GET (RFC 9110, 9.3.2).
IMPLIED = {"HEAD"}


def test_every_route_is_described_and_nothing_else() -> None:
    app = build_app(
        FakeRouter(),
        FakeAdmin(),
        limits=Limits(),
        metrics=Metrics(node="n1", process=False),
        node_name="n1",
        cluster_id="c",
        fatal=lambda error: None,
    )
    routes = {
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None and (route.method not in IMPLIED or "{key}" in route.resource.canonical)
    }
    described = {(method.upper(), path) for path, item in DOCUMENT["paths"].items() for method in item}
    assert routes == described


def test_operation_ids_are_unique_and_every_code_is_told() -> None:
    operations = [operation for item in DOCUMENT["paths"].values() for operation in item.values()]
    identifiers = [operation["operationId"] for operation in operations]
    assert len(set(identifiers)) == len(identifiers)
    statuses = {status for operation in operations for status in operation["responses"]}
    assert {str(info.http_status) for info in CODES.values()} <= statuses


async def test_the_document_is_served(api: Served) -> None:
    response, body = await api.call("GET", "/openapi.json")
    assert response.status == 200
    assert json.loads(body) == json.loads(json.dumps(DOCUMENT))


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server in a thread of its own, since schemathesis is synchronous."""
    loop = asyncio.new_event_loop()
    served: list[Served] = []
    started = threading.Event()

    async def begin() -> None:
        served.append(await serve())
        started.set()

    async def end() -> None:
        await served[0].http.close()
        await served[0].runner.cleanup()

    def run() -> None:
        loop.run_until_complete(begin())
        loop.run_forever()
        loop.run_until_complete(end())
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(10)
    yield served[0].url
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    assert not served[0].fatal


# Statuses that are right besides schemathesis' defaults: a limit in bytes where JSON Schema counts characters is told
# as 413; a condition that does not hold is 412. 400 for a valid request is looked at closer, by `CROSS_RULES`.
CONFIG = SchemathesisConfig.from_dict(
    {
        "checks": {
            "positive_data_acceptance": {
                "expected-statuses": ["2xx", "3xx", "400", "401", "403", "404", "409", "412", "413", "429", "5xx"]
            },
            "negative_data_rejection": {
                "expected-statuses": ["400", "401", "403", "404", "405", "409", "412", "413", "417", "429", "5xx"]
            },
        },
    }
)

# What OpenAPI can't say of a request, because it is about several parameters or about bytes. Nothing else may make
# the server refuse what the document allows.
CROSS_RULES = re.compile(
    "max_staleness_ms needs consistency=stale|wait_ms needs the version|there is no keyspace "
    "|give one condition|give a prefix, or start and end|name what to delete"
    "|the range's start lies behind its end|the cursor |.*_base64 is not base64|malformed batch: Invalid base64"
    "|give the key as at or as at_base64|operation [0-9]+: give (key|value|expected) or |If-None-Match: [*] asks"
)


@schemathesis.serializer("application/msgpack")
def pack(context: SerializationContext, value: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except (OverflowError, TypeError, UnicodeError):  # numbers beyond 64 bits, schemathesis' own markers, surrogates
        return msgspec.msgpack.encode(ascii(value))


# The stream answers 101 to what its parameters would describe, and then is no HTTP: test_stream_socket has it.
schema = schemathesis.openapi.from_dict(DOCUMENT, config=CONFIG).exclude(path="/v1/stream")


@schema.parametrize()
@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
def test_answers_are_as_described(case: Case[Any], url: str) -> None:
    response = case.call_and_validate(base_url=url)
    assert case.meta is not None
    if case.method == "HEAD" or case.media_type == "application/msgpack":
        return  # has no body to look at; JSON Schema knows no binary strings, so the document says nothing of them
    if response.status_code == 400 and case.meta.generation.mode.is_positive:
        assert CROSS_RULES.match(response.json()["detail"]), response.json()["detail"]
