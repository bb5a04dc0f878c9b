"""GET /openapi.json: OpenAPI 3.1, made from tables of operations, parameters and schemas, and from errors.CODES.

Invariant: it describes every route of app.py and no other, every status and every field (tests compare routes, and
           run schemathesis against it).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvstore import __version__
from kvstore.api.arguments import IDEMPOTENCY_KEY_CHARS_MAX, NAME_PATTERN, STALENESS_MS_DEFAULT, STALENESS_MS_MAX
from kvstore.api.openapi_schemas import JSON, MSGPACK, RAW, reference, schemas
from kvstore.base.errors import CODES, Code
from kvstore.base.limits import DEADLINE_MS_DEFAULT, KEY_BYTES_MAX, ROUTES_WAIT_MS_MAX, Limits

Json = dict[str, Any]

_ETAGS = r'^([*]|(W/)?"[^",]*"(, *(W/)?"[^",]*")*)$'
_REVISION_MAX = (1 << 63) - 1

# What every operation on data may answer besides its success, and what a write adds.
_DATA_CODES = (
    Code.INVALID, Code.NOT_FOUND, Code.TOO_LARGE, Code.NOT_LEADER, Code.STALE_ROUTE, Code.OVERLOADED,
    Code.UNAVAILABLE, Code.TIMEOUT, Code.UNAUTHENTICATED, Code.FORBIDDEN,
)  # fmt: skip
_WRITE_CODES = (*_DATA_CODES, Code.CONFLICT, Code.DISK_FULL, Code.SESSION_EXPIRED)
_ADMIN_CODES = (
    Code.INVALID, Code.NOT_FOUND, Code.TOO_LARGE, Code.NOT_LEADER, Code.CONFLICT, Code.OVERLOADED, Code.UNAVAILABLE,
    Code.TIMEOUT, Code.DUPLICATE_NAME, Code.UNAUTHENTICATED, Code.FORBIDDEN, Code.STALE_ROUTE, Code.DISK_FULL,
)  # fmt: skip
_LIST_CODES = (Code.INVALID, Code.UNAVAILABLE, Code.TIMEOUT, Code.NOT_LEADER, Code.UNAUTHENTICATED, Code.FORBIDDEN)


def openapi_document(limits: Limits) -> Json:
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "kvstore",
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": (
                "A strongly consistent, replicated key-value store. Any node answers for any key. Bytes are "
                "percent-encoded in paths and queries; in JSON they are a string where they are UTF-8, else base64 "
                "under the name with `_base64`; `Accept: application/msgpack` gives the same documents with binary "
                "strings. Errors are problem details (RFC 9457) with a stable `code`; their `outcome` says whether "
                "the operation certainly failed or may have happened."
            ),
        },
        "servers": [{"url": "/"}],
        "paths": _paths(limits),
        "components": {
            "schemas": schemas(limits),
            "parameters": _parameters(limits),
            "responses": _responses(),
            "headers": _headers(),
        },
    }


_WHOLE: Json = {"type": "integer", "minimum": 1}


def _parameters(limits: Limits) -> Json:
    return {**_path_parameters(), **_query_parameters(limits), **_header_parameters(limits)}


def _path_parameters() -> Json:
    return {
        "keyspace": _path("keyspace", {"type": "string", "pattern": NAME_PATTERN}, "`default` exists."),
        "key": _path(
            "key",
            {"type": "string", "minLength": 1, "maxLength": KEY_BYTES_MAX},
            f"1 to {KEY_BYTES_MAX} bytes, percent-encoded; any byte, also %2F and %00. Slashes may stand as they are.",
        ),
        "shard": _path("id", {**_WHOLE, "maximum": _REVISION_MAX}, "The shard's number."),
        "operator": _path("id", {**_WHOLE, "maximum": _REVISION_MAX}, "The operator's number."),
        "member": _path("name", {"type": "string", "pattern": NAME_PATTERN}, "A node's name."),
        "node": _path("node", {"type": "string", "pattern": NAME_PATTERN}, "A node's name."),
    }


def _query_parameters(limits: Limits) -> Json:
    return {
        "timeout": _query(
            "timeout_ms",
            {**_WHOLE, "maximum": limits.deadline_ms_max, "default": DEADLINE_MS_DEFAULT},
            "The request is answered within this time. Header Kv-Timeout-Ms means the same.",
        ),
        "consistency": _query(
            "consistency",
            {"type": "string", "enum": ["linearizable", "stale"], "default": "linearizable"},
            "`stale` may be answered by any replica; Kv-Applied-Index and Kv-Age-Ms tell from how far back.",
        ),
        "staleness": _query(
            "max_staleness_ms",
            {"type": "integer", "minimum": 0, "maximum": STALENESS_MS_MAX, "default": STALENESS_MS_DEFAULT},
            "Only with consistency=stale: the oldest answer that is good enough.",
        ),
        "expect": _query("expect", {"type": "string"}, "The write happens only if this is the current value."),
        "expectBase64": _query(
            "expect_base64",
            {"type": "string", "contentEncoding": "base64", "pattern": "^([A-Za-z0-9+/]{4})*$"},
            "As expect, for a value that is awkward to percent-encode.",
        ),
        "prefix": _query("prefix", {"type": "string", "maxLength": KEY_BYTES_MAX}, "Keys that begin so."),
        "start": _query("start", {"type": "string", "maxLength": KEY_BYTES_MAX}, "The first key of the range."),
        "end": _query("end", {"type": "string", "maxLength": KEY_BYTES_MAX}, "Where the range ends, exclusive."),
        "cursor": _query("cursor", {"type": "string"}, "From the page before; repeat the rest of the query with it."),
        "reverse": _query("reverse", {"type": "boolean", "default": False}, "From the end of the range backwards."),
        "all": _query("all", {"type": "boolean", "default": False}, "Delete the whole keyspace."),
        "scanLimit": _query("limit", {**_WHOLE, "maximum": limits.scan_keys_max}, "Keys a page has at most."),
        "deleteLimit": _query(
            "limit", {**_WHOLE, "maximum": limits.delete_range_keys_max}, "Keys that one request deletes at most."
        ),
        "routesKeyspace": _query("keyspace", {"type": "string"}, "Only the shards of this keyspace."),
        "routesVersion": _query(
            "version", {"type": "integer", "minimum": 0, "maximum": (1 << 63) - 1}, "The version that is known already."
        ),
        "routesWait": _query(
            "wait_ms",
            {"type": "integer", "minimum": 0, "maximum": ROUTES_WAIT_MS_MAX},
            "How long to wait for another version than the one that is known.",
        ),
    }


def _header_parameters(limits: Limits) -> Json:
    return {
        "ifMatch": _header(
            "If-Match", "The write happens only if this is the key's ETag.", pattern='^"[1-9][0-9]{0,18}"$'
        ),
        "ifNoneMatch": _header("If-None-Match", "The write happens only if the key is absent.", pattern="^[*]$"),
        "ifMatchRead": _header("If-Match", "ETags; 412 when the key's is none of them.", pattern=_ETAGS),
        "ifNoneMatchRead": _header("If-None-Match", "ETags; 304 when the key's is one of them.", pattern=_ETAGS),
        "idempotencyKey": {
            "name": "Idempotency-Key",
            "in": "header",
            "schema": {"type": "string", "minLength": 1, "maxLength": IDEMPOTENCY_KEY_CHARS_MAX},
            "description": (
                f"Unique for each mutation; a retry with the same key within {limits.session_window_ms // 60_000} "
                "minutes takes effect once and gets the first answer."
            ),
        },
        "issuedAt": {
            "name": "Kv-Issued-At",
            "in": "header",
            "schema": {"type": "integer", "minimum": 1, "maximum": _REVISION_MAX},
            "description": (
                "With Idempotency-Key: Unix milliseconds of the first attempt, the same on every retry. A retry that "
                "comes too late is then refused (SESSION_EXPIRED) instead of executed again."
            ),
        },
    }


def _path(name: str, schema: Json, text: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": text}


def _query(name: str, schema: Json, text: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": text}


def _header(name: str, text: str, *, pattern: str) -> Json:
    return {"name": name, "in": "header", "schema": {"type": "string", "pattern": pattern}, "description": text}


def _headers() -> Json:
    integer = {"type": "integer", "minimum": 0}
    return {
        "ETag": {"schema": {"type": "string", "pattern": '^"[0-9]+"$'}, "description": "The key's mod_revision."},
        "Kv-Mod-Revision": {"schema": integer, "description": "Revision of the last change."},
        "Kv-Create-Revision": {"schema": integer, "description": "Revision at which the key came to be."},
        "Kv-Version": {"schema": integer, "description": "Changes since the key came to be, from 1."},
        "Kv-Applied-Index": {"schema": integer, "description": "On stale reads: the log index of the answer."},
        "Kv-Age-Ms": {"schema": integer, "description": "On stale reads: how old the answer may be."},
        "Retry-After": {"schema": integer, "description": "Seconds to wait before a retry."},
        "Allow": {"schema": {"type": "string"}, "description": "The methods that are allowed."},
    }


def _responses() -> Json:
    """One reusable response an HTTP status; several codes may share one."""
    by_status: dict[int, list[Code]] = {}
    for info in CODES.values():
        by_status.setdefault(info.http_status, []).append(info.code)
    responses = {
        f"Problem{status}": _problem_response(" / ".join(f"{code.name}: {CODES[code].meaning}" for code in codes))
        for status, codes in by_status.items()
    }
    responses["Problem405"] = _problem_response("The method is not allowed on this path.")
    responses["Problem500"] = _problem_response("A bug of the node; the outcome is unknown.")
    return responses


def _problem_response(text: str) -> Json:
    return {
        "description": text,
        "headers": {"Retry-After": {"$ref": "#/components/headers/Retry-After"}},
        "content": {"application/problem+json": {"schema": reference("Problem")}},
    }


def _problems(codes: Iterable[Code]) -> Json:
    statuses = sorted({CODES[code].http_status for code in codes} | {500})
    return {str(status): {"$ref": f"#/components/responses/Problem{status}"} for status in statuses}


def _document(text: str, schema: str, *headers: str) -> Json:
    return {
        "description": text,
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in headers},
        "content": {JSON: {"schema": reference(schema)}, MSGPACK: {"schema": {}}},
    }


def _operation(
    identifier: str,
    tag: str,
    summary: str,
    *,
    parameters: Iterable[str] = (),
    success: dict[str, Json],
    codes: Iterable[Code] = (),
    body: Json | None = None,
) -> Json:
    operation: Json = {
        "operationId": identifier,
        "tags": [tag],
        "summary": summary,
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in parameters],
        "responses": {**success, **_problems(codes)},
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
    return operation


def _paths(limits: Limits) -> Json:
    return {
        "/v1/kv/{keyspace}/{key}": _key_operations(limits),
        "/v1/kv/{keyspace}": _range_operations(),
        "/v1/batch/{keyspace}": {
            "post": _operation(
                "batch", "data", "Several operations, all or nothing.",
                parameters=("keyspace", "timeout", "idempotencyKey", "issuedAt"),
                body={JSON: {"schema": reference("Batch")}, MSGPACK: {"schema": {}}},
                success={"200": _document("All were done, with one revision.", "BatchDone", "ETag")},
                codes=_WRITE_CODES,
            )
        },
        **_admin_operations(),
        **_node_operations(),
    }  # fmt: skip


def _key_operations(limits: Limits) -> Json:
    revisions = ("ETag", "Kv-Mod-Revision", "Kv-Create-Revision", "Kv-Version", "Kv-Applied-Index", "Kv-Age-Ms")
    headers = {name: {"$ref": f"#/components/headers/{name}"} for name in revisions}
    found = {
        "description": "The value: as it is, or in a document.",
        "headers": headers,
        "content": {RAW: {"schema": {}}, JSON: {"schema": reference("KeyValue")}, MSGPACK: {"schema": {}}},
    }
    read = ("keyspace", "key", "consistency", "staleness", "timeout", "ifMatchRead", "ifNoneMatchRead")
    write = ("keyspace", "key", "expect", "expectBase64", "timeout", "ifMatch", "ifNoneMatch", "idempotencyKey",
             "issuedAt")  # fmt: skip
    not_modified = {"description": "The key's revision is one of If-None-Match.", "headers": headers}
    return {
        "get": _operation(
            "get", "data", "Read a key.",
            parameters=read, success={"200": found, "304": not_modified}, codes=(*_DATA_CODES, Code.CONFLICT),
        ),
        "head": _operation(
            "head", "data", "Read a key's revision.",
            parameters=read,
            success={"200": {"description": "The key exists.", "headers": headers}, "304": not_modified},
            codes=(*_DATA_CODES, Code.CONFLICT),
        ),
        "put": _operation(
            "put", "data", f"Set a key; the body is the value, up to {limits.value_bytes_max} bytes.",
            parameters=write,
            body={RAW: {"schema": {"maxLength": limits.value_bytes_max}}},
            success={"200": _document("Done, on a majority's disks.", "PutDone", "ETag")},
            codes=_WRITE_CODES,
        ),
        "delete": _operation(
            "delete", "data", "Delete a key. Deleting what is not there succeeds and changes nothing.",
            parameters=write,
            success={"200": _document("Done.", "DeleteDone")},
            codes=_WRITE_CODES,
        ),
    }  # fmt: skip


def _range_operations() -> Json:
    return {
        "get": _operation(
            "scan", "data", "A page of keys and values in key order. A page is one moment; pages are not.",
            parameters=("keyspace", "prefix", "start", "end", "scanLimit", "cursor", "reverse", "consistency",
                        "staleness", "timeout"),
            success={"200": _document("A page.", "Page", "Kv-Applied-Index", "Kv-Age-Ms")},
            codes=_DATA_CODES,
        ),
        "delete": _operation(
            "deleteRange", "data", "Delete the first keys of a range or prefix; go on with the cursor.",
            parameters=("keyspace", "prefix", "start", "end", "all", "deleteLimit", "cursor", "timeout",
                        "idempotencyKey", "issuedAt"),
            success={"200": _document("Done.", "RangeDeleted")},
            codes=_WRITE_CODES,
        ),
    }  # fmt: skip


def _admin_operations() -> Json:
    node_body = {JSON: {"schema": reference("NodeBody")}}
    done = {"200": _document("Accepted; what was done.", "Object")}

    def listing(identifier: str, summary: str, schema: str, *parameters: str, codes: tuple[Code, ...]) -> Json:
        success = {"200": _document("As this node knows it.", schema)}
        return {"get": _operation(identifier, "cluster", summary, parameters=parameters, success=success, codes=codes)}

    def change(identifier: str, summary: str, *parameters: str, body: Json | None = None) -> Json:
        return _operation(
            identifier, "cluster", summary, parameters=parameters, body=body, success=done, codes=_ADMIN_CODES
        )

    def placement(identifier: str, summary: str, schema: str, *parameters: str, body: Json | None = None) -> Json:
        return _operation(
            identifier, "cluster", summary, parameters=parameters, body=body,
            success={"200": _document("As the placement driver has it.", schema)}, codes=_ADMIN_CODES,
        )  # fmt: skip

    return {
        "/v1/routes": listing(
            "listRoutes", "Which shard a key is in, and who leads it.", "Routes", "routesKeyspace",
            "routesVersion", "routesWait", codes=(*_LIST_CODES, Code.NOT_FOUND, Code.OVERLOADED),
        ),
        "/v1/members": {
            **listing("listMembers", "The nodes, and how each is, as this one knows.", "Members", codes=_LIST_CODES),
            "post": change("joinMember", "Take a node into the cluster.", body={JSON: {"schema": reference("Join")}}),
        },
        "/v1/members/{name}": {"delete": change("removeMember", "Remove a node for good.", "member")},
        "/v1/shards": listing("listShards", "The shards with their replicas.", "Shards", codes=_LIST_CODES),
        "/v1/shards/{id}/transfer": {
            "post": change("transferLeadership", "Hand leadership to a replica.", "shard", body=node_body)
        },
        "/v1/shards/{id}/split": {
            "post": _operation(
                "splitShard", "cluster", "Cut a shard in two, at a key or in the middle of its data.",
                parameters=("shard",), body={JSON: {"schema": reference("SplitBody")}},
                success={"200": _document("Both halves are there; `child` is null if the cut was already.", "Split")},
                codes=(*_ADMIN_CODES, Code.CONFLICT),
            )
        },
        "/v1/shards/{id}/replicas": {"post": change("addReplica", "Add a replica.", "shard", body=node_body)},
        "/v1/shards/{id}/replicas/{node}": {"delete": change("removeReplica", "Remove a replica.", "shard", "node")},
        "/v1/operators": listing("listOperators", "What is moved, and why.", "Operators", codes=_LIST_CODES),
        "/v1/operators/{id}": {"delete": placement("cancelOperator", "End an operator.", "Operator", "operator")},
        "/v1/members/{name}/drain": {
            "get": placement("drainProgress", "How far a drain is, and what is in the way.", "Drain", "member"),
            "post": placement("drainMember", "Move everything off a node.", "Drain", "member"),
            "delete": placement("undrainMember", "Let the node take part again.", "Object", "member"),
        },
        "/v1/settings": {
            "get": placement("listSettings", "What placement goes by.", "Settings"),
            "patch": placement(
                "changeSettings", "Change settings, all or none; null goes back to the default.", "Settings",
                body={JSON: {"schema": reference("SettingChanges")}},
            ),
        },
    }  # fmt: skip


def _node_operations() -> Json:
    def plain(identifier: str, summary: str, success: Json, codes: tuple[Code, ...] = ()) -> Json:
        return {"get": _operation(identifier, "node", summary, success={"200": success}, codes=codes)}

    text = {media: {"schema": {"type": "string"}} for media in ("text/plain", "application/openmetrics-text")}
    stream = _operation(
        "stream", "data", "The WebSocket of the client library: MessagePack frames, see docs/protocol.md.",
        success={"101": {"description": "The connection is a WebSocket now."}}, codes=(Code.INVALID,),
    )  # fmt: skip
    return {
        "/v1/status": plain("status", "This node.", _document("Name, ids, replicas, disk, ...", "Object"), _LIST_CODES),
        "/v1/limits": plain("limits", "The limits of requests.", _document("The limits.", "Limits"), (Code.INVALID,)),
        "/v1/stream": {"get": stream},
        "/metrics": plain("metrics", "Prometheus metrics.", {"description": "Metrics.", "content": text}),
        "/healthz": plain("healthz", "The process is alive.", _document("Alive.", "Health")),
        "/readyz": plain(
            "readyz", "The node can commit and read.", _document("Ready.", "Object"), (Code.UNAVAILABLE, Code.TIMEOUT)
        ),
        "/openapi.json": plain("openapi", "This document.", {"description": "OpenAPI.", "content": {JSON: {}}}),
        "/": plain("index", "A page for people.", {"description": "HTML.", "content": {"text/html": {}}}),
    }
