"""The JSON schemas of the REST API's documents, for /openapi.json. encoding.py and batch.py write and read them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import msgspec

from kvstore.api.arguments import NAME_PATTERN
from kvstore.base.errors import Code, Retry
from kvstore.base.limits import KEY_BYTES_MAX, Limits
from kvstore.placement.thresholds import Thresholds
from kvstore.placement.wishes import FACTOR_PREFIX

Json = dict[str, Any]

RAW = "application/octet-stream"
JSON = "application/json"
MSGPACK = "application/msgpack"

_COUNT: Json = {"type": "integer", "minimum": 0}
_TEXT: Json = {"type": "string"}
_BASE64: Json = {"type": "string", "contentEncoding": "base64"}
_REVISION_MAX = (1 << 63) - 1


def reference(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: dict[str, Json], optional: dict[str, Json] | None = None, *, closed: bool = True) -> Json:
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": not closed,
    }


def _one_of(*names: str) -> Json:
    """Exactly one of the fields is there."""
    return {"oneOf": [{"required": [name]} for name in names]}


def schemas(limits: Limits) -> Json:
    return {**_data_schemas(), **_batch_schemas(limits), **_cluster_schemas(limits), "Problem": _problem_schema()}


def _data_schemas() -> Json:
    revisions = {"mod_revision": _COUNT, "create_revision": _COUNT, "version": _COUNT}
    value = {"value": _TEXT, "value_base64": _BASE64}
    key = {"key": _TEXT, "key_base64": _BASE64}
    found = {**_object(revisions, value), **_one_of("value", "value_base64")}
    item = {
        **_object(revisions, {**key, **value}),
        "allOf": [_one_of("key", "key_base64"), _one_of("value", "value_base64")],
    }
    cursor = {"type": ["string", "null"], "description": "Give it with the same query to go on; null = done."}
    return {
        "Found": found,
        "KeyValue": item,
        "PutDone": _object({"revision": _COUNT}),
        "DeleteDone": _object({"deleted": {"type": "boolean"}, "revision": {**_COUNT, "description": "0 = absent"}}),
        "Page": _object(
            {"items": {"type": "array", "items": reference("KeyValue")}, "cursor": cursor, "revision": _COUNT}
        ),
        "RangeDeleted": _object({"deleted": _COUNT, "revision": _COUNT, "cursor": cursor}),
    }


def _batch_schemas(limits: Limits) -> Json:
    key = {
        "key": {"type": "string", "minLength": 1, "maxLength": KEY_BYTES_MAX},
        "key_base64": {**_BASE64, "minLength": 4},
    }
    value = {"value": _TEXT, "value_base64": _BASE64}
    one_key = _one_of("key", "key_base64")

    def operation(name: str, fields: Json, *rules: Json) -> Json:
        return {**_object({"op": {"const": name}}, fields), "allOf": list(rules)}

    condition = {
        "revision": {"type": "integer", "minimum": 0, "maximum": _REVISION_MAX},
        "expected": _TEXT,
        "expected_base64": _BASE64,
        "absent": {"const": True},
    }
    set_or_delete = {"not": {"required": ["value", "value_base64"]}}
    return {
        "Batch": _object(
            {
                "operations": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": limits.batch_operations_max,
                    "items": {"oneOf": [reference(name) for name in ("PutOp", "DeleteOp", "CasOp", "GetOp")]},
                }
            }
        ),
        "PutOp": operation("put", {**key, **value}, one_key, _one_of("value", "value_base64")),
        "DeleteOp": operation("delete", key, one_key),
        "GetOp": operation("get", key, one_key),
        "CasOp": {
            **operation("cas", {**key, **value, **condition}, one_key, _one_of(*condition), set_or_delete),
            "description": "Sets the value (without one: deletes the key) if the condition holds; else nothing.",
        },
        "BatchDone": _object(
            {
                "revision": _COUNT,
                "results": {
                    "type": "array",
                    "description": "In the operations' order: a write's revision, a get's value, null = absent.",
                    "items": {
                        "oneOf": [{"type": "null"}, _object({"revision": _COUNT}), reference("Found")],
                    },
                },
            }
        ),
    }


def _cluster_schemas(limits: Limits) -> Json:
    anything = {"type": "object"}
    filled = {"type": "string", "minLength": 1, "maxLength": 255}
    name_or_null = {"type": ["string", "null"]}
    replica = _object({"node": _TEXT, "role": _TEXT}, closed=False)
    bounds = {"start": _TEXT, "start_base64": _BASE64, "end": _TEXT, "end_base64": _BASE64}
    route = _object(
        {
            "id": _COUNT,
            "keyspace": _TEXT,
            "epoch": _object({"version": _COUNT, "conf": _COUNT}),
            "term": _COUNT,
            "leader": name_or_null,
            "address": name_or_null,
            "replicas": {"type": "array", "items": replica},
        },
        bounds,
    )
    shard = _object({"id": _COUNT, "replicas": {"type": "array", "items": replica}}, closed=False)
    return {
        "Object": anything,
        "Routes": _object(
            {
                "version": _COUNT,
                "shards": {"type": "array", "items": route},
                "nodes": {"type": "array", "items": _object({"name": _TEXT, "address": _TEXT})},
            }
        ),
        "Members": {"type": "array", "items": _member_schema()},
        "Shards": {"type": "array", "items": shard},
        "Operators": {"type": "array", "items": reference("Operator")},
        **_placement_schemas(),
        "Limits": _object({name: {"type": "integer"} for name in asdict(limits)}),
        "Health": _object({"status": {"const": "alive"}, "node": _TEXT}),
        "NodeBody": _object({"node": filled}),
        "SplitBody": _object({}, {"at": {"type": ["string", "null"]}, "at_base64": {"type": ["string", "null"]}}),
        "Split": _object({"shard": _COUNT, "child": {"type": ["integer", "null"]}, "at": _TEXT, "at_base64": _TEXT}),
        "Join": _object(
            {"name": {"type": "string", "pattern": NAME_PATTERN}, "node_id": filled, "address": filled},
            {"labels": {"type": "object", "additionalProperties": _TEXT}},
        ),
    }


def _member_schema() -> Json:
    def or_null(kind: str, description: str) -> Json:
        return {"type": [kind, "null"], "minimum": 0, "description": f"{description}; null = not known."}

    return _object(
        {
            "name": _TEXT,
            "node_id": _TEXT,
            "address": {"type": "string", "description": "HOST:PORT"},
            "state": {
                "enum": ["alive", "suspect", "dead", "left"],
                "description": "As gossip has it. A member that gossip has never heard of counts as dead.",
            },
            "incarnation": or_null("integer", "Rises with each start of the node, and each time it denies its death"),
            "labels": {"type": "object", "additionalProperties": _TEXT},
            "version": _TEXT,
            "round_trip_ms": or_null("number", "Of this node's probes, smoothed"),
            "state_age_ms": or_null("integer", "How long the member has been in this state"),
            "heard_age_ms": or_null("integer", "How long ago the member answered a probe of this node"),
        },
        closed=False,
    )


def _placement_schemas() -> Json:
    seconds: Json = {"type": "number", "minimum": 0}
    flag: Json = {"type": "boolean"}
    setting = {"type": ["boolean", "number"]}
    blocked = _object({"shard": _COUNT, "reason": _TEXT})
    step = _object({"kind": _TEXT, "node": _TEXT, "done": flag}, {"other": _TEXT})
    return {
        "Operator": _object(
            {
                "id": _COUNT,
                "kind": _TEXT,
                "shard": _COUNT,
                "reason": _TEXT,
                "state": {"enum": ["running", "done", "failed", "cancelled"]},
                "error": {"type": "string", "description": "Why it failed, or what its step was refused with last."},
                "age_seconds": {**seconds, "description": "Since it began."},
                "seconds": {**seconds, "description": "How long it took, or takes."},
                "steps": {"type": "array", "items": step},
                "history": {"type": "array", "items": _object({"seconds": seconds, "event": _TEXT})},
            },
        ),
        "Drain": _object(
            {
                "node": _TEXT,
                "draining": flag,
                "ready": {**flag, "description": "False: the placement driver has just begun."},
                "done": flag,
                "leaders": _COUNT,
                "replicas": _COUNT,
                "bytes": _COUNT,
                "moving": _COUNT,
                "blocked": {"type": "array", "items": blocked},
                "seconds_left": {"type": ["number", "null"], "description": "An estimate; null = none yet."},
            },
        ),
        "Settings": _object(
            {
                "settings": {
                    "type": "array",
                    "items": _object({"name": _TEXT, "value": setting, "default": setting, "changed": flag}),
                }
            }
        ),
        "SettingChanges": _setting_changes(),
    }


def _setting_changes() -> Json:
    """By the very type that checks them."""
    fields: dict[str, Json] = msgspec.json.schema(Thresholds)["$defs"]["Thresholds"]["properties"]
    settings = {}
    for name, field in fields.items():
        bounds = {
            key: value for key, value in field.items() if key in ("type", "minimum", "maximum", "exclusiveMinimum")
        }
        settings[name] = {"anyOf": [bounds, {"type": "null"}]}
    return {
        "type": "object",
        "minProperties": 1,
        "properties": settings,
        "patternProperties": {f"^{FACTOR_PREFIX}.+$": settings["replication_factor"]},
        "additionalProperties": False,
    }


def _problem_schema() -> Json:
    return _object(
        {
            "type": _TEXT,
            "title": _TEXT,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "code": {"enum": [code.name for code in Code]},
            "detail": _TEXT,
            "definite": {"type": "boolean", "description": "The operation has no effect and never will have one."},
            "outcome": {"enum": ["failed", "unknown"]},
            "retry": {"enum": [str(retry) for retry in Retry]},
            "retry_after_ms": _COUNT,
            "hint": _TEXT,
        },
        {
            "index": {**_COUNT, "description": "CONFLICT: which operation of the batch."},
            "current": {
                "description": "CONFLICT: what the key holds; null = absent.",
                "oneOf": [{"type": "null"}, reference("Found")],
            },
            "routes": {"type": "array", "items": {"type": "object"}, "description": "Where to ask instead."},
        },
    )
