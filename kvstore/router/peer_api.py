"""Small questions between nodes over HTTP: founding, joining, and administrative requests for a leader elsewhere.

With a cluster secret each request carries an HMAC-SHA-256 over its time, path and body, as everything between nodes.

Invariant: a request made here is not passed on by its receiver (but "admit", once, to the leader), so nothing goes in
           circles.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import msgspec

from kvstore.base.clock import Clock
from kvstore.base.errors import ERRORS, Code, Invalid, KVError, Unauthenticated, Unavailable
from kvstore.placement.founding import ASK_SECONDS, FoundingState
from kvstore.placement.members import Records

FOUNDING_PATH = "/v1/peer/founding"
ADMIN_PATH = "/v1/peer/admin"
AUTH_HEADER = "X-Kvstore-Auth"
AUTH_AGE_MS_MAX = 30_000
JOIN_SECONDS = 7.0  # the one that is asked follows a moving leadership for some seconds


_SIGNATURE = re.compile(r"([0-9]{1,15})\.[0-9a-f]{64}")


def encode_records(records: Records) -> str:
    return base64.b64encode(msgspec.msgpack.encode(records)).decode()


def sign(secret: bytes, *, stamp_ms: int, path: str, body: bytes) -> str:
    """The header's value."""
    mac = hmac.new(secret, b"%d\n%s\n" % (stamp_ms, path.encode()) + body, hashlib.sha256)
    return f"{stamp_ms}.{mac.hexdigest()}"


def check_signature(secrets: Sequence[bytes], value: str, *, now_ms: int, path: str, body: bytes) -> None:
    """With any of the secrets; without one everything passes. Raises Unauthenticated."""
    if not secrets:
        return
    shape = _SIGNATURE.fullmatch(value)
    stamp = 0 if shape is None else int(shape.group(1))
    if abs(now_ms - stamp) > AUTH_AGE_MS_MAX:
        raise Unauthenticated(
            "not signed with the cluster secret, or too old; check --cluster-secret-file and the clocks"
        )
    signed = [sign(secret, stamp_ms=stamp, path=path, body=body) for secret in secrets]
    if not any([hmac.compare_digest(value, one) for one in signed]):
        raise Unauthenticated("signed with another cluster secret; check --cluster-secret-file")


class PeerClient:
    """Asks other nodes. Raises Unavailable when there is no answer, and the KVError that the other side answered."""

    def __init__(self, *, secrets: Sequence[bytes], clock: Clock) -> None:
        self._secrets = tuple(secrets)
        self._clock = clock
        self._session: aiohttp.ClientSession | None = None

    def set_secrets(self, secrets: Sequence[bytes]) -> None:
        """The first one signs from now on."""
        self._secrets = tuple(secrets)

    async def founding(self, address: str) -> FoundingState:
        answer = await self._request(address, "GET", FOUNDING_PATH, b"", seconds=ASK_SECONDS)
        try:
            return msgspec.convert(answer, FoundingState)
        except msgspec.ValidationError as error:
            raise Unavailable(f"{address} answers strangely: {error}") from None

    async def join(self, address: str, *, name: str, node_id: str, own_address: str, labels: Mapping[str, str]) -> str:
        body = {"name": name, "node_id": node_id, "address": own_address, "labels": dict(labels)}
        answer = await self.admin(address, "admit", body, seconds=JOIN_SECONDS)
        cluster = answer.get("cluster")
        if not isinstance(cluster, str) or not cluster:
            raise Unavailable(f"{address} does not name its cluster")
        return cluster

    async def admin(
        self, address: str, operation: str, arguments: Mapping[str, Any], *, seconds: float
    ) -> dict[str, Any]:
        """Have `operation` done by the node at `address`, which must be the right one."""
        body = msgspec.json.encode({"operation": operation, "arguments": arguments})
        return await self._request(address, "POST", ADMIN_PATH, body, seconds=seconds)

    async def records(self, address: str) -> Records:
        """Of the members, as a node with a replica of the meta group has them."""
        answer = await self.admin(address, "records", {}, seconds=ASK_SECONDS)
        try:
            return msgspec.msgpack.decode(base64.b64decode(str(answer.get("records"))), type=Records)
        except (ValueError, msgspec.DecodeError) as error:
            raise Unavailable(f"{address} answers strangely: {error}") from None

    async def _request(self, address: str, method: str, path: str, body: bytes, *, seconds: float) -> dict[str, Any]:
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False)
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self._secrets:
            headers[AUTH_HEADER] = sign(self._secrets[0], stamp_ms=self._clock.wall_ms(), path=path, body=body)
        try:
            async with self._session.request(
                method,
                f"http://{address}{path}",
                data=body if method == "POST" else None,
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as response:
                answer = msgspec.json.decode(await response.read())
        except (TimeoutError, OSError, aiohttp.ClientError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Unavailable(f"no answer from {address}: {error or type(error).__name__}") from None
        if response.status >= 400:
            raise _error_of(answer)
        if not isinstance(answer, dict):
            raise Unavailable(f"{address} answers strangely")
        return answer

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def _error_of(answer: Any) -> KVError:
    """The error that a problem document tells."""
    if not isinstance(answer, dict):
        return Unavailable("an error without a problem document")
    message = str(answer.get("detail") or answer.get("title") or "")
    try:
        return ERRORS[Code[str(answer.get("code"))]](message)
    except KeyError:
        return Invalid(message)
