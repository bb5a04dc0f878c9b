"""The envelope of every datagram: whose it is, of which cluster, and that it is neither forged nor a repetition.

    version (1) | form (1)   form 0 = open, 1 = signed       numbers are big-endian
    cluster (8)   the first bytes of SHA-256 of the cluster's id
    sender (16)   node id
    boots (4) | counter (8)   the count of the process's starts, and of its datagrams since
    payload
    mac (32)   HMAC-SHA-256 of all before it; only where the cluster has a secret

Other things that are signed with the same secret begin with another byte (transport/hello with 0, requests over HTTP
with a digit), so that none of them can be passed off as one of the others.

Replays: each (boots, counter) is accepted once from each sender, in a window of WINDOW numbers; `boots` never goes
back. A receiver that has just started knows no numbers. It learns them by push-pull, which carries the highest ones
that others have seen. What is left is a gap: a recorded datagram of a sender whose latest numbers nobody has told yet.
To play it back there changes nothing that matters. What it says of members was true once, and is merged by
(incarnation, state), so old tales lose; what it carries is merged by version and term; an acknowledgement counts only
for the probe whose random number it names. Without a secret no numbers are kept: anybody could use up a member's
numbers in its name, and lock it out by the very thing that is to protect it.

Invariant: `open` gives a payload only of another node of this cluster and, where there is a secret, one that was sealed
    with an accepted secret and was never given before by this object (nor was at or below a number told to `hear`).
Invariant: at most `senders_max` windows are kept, of 1,024 bits each; only who has the secret can make one.
Invariant: what costs least is checked first: a look at the number comes before the signature, which costs most.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterable, Sequence
from enum import StrEnum

DATAGRAM_BYTES_MAX = 1_400
"""Fits an Ethernet frame with every header that tunnels add, so that nothing is fragmented."""
SEAL_VERSION = 1
WINDOW = 1_024
COUNTER_MAX = (1 << 64) - 1
BOOTS_MAX = (1 << 32) - 1

_HEAD = struct.Struct(">BB8s16sIQ")
_HEAD_BYTES = _HEAD.size
_MAC_BYTES = 32
_OPEN = 0
_SIGNED = 1
_ALL_SEEN = (1 << WINDOW) - 1

OVERHEAD_BYTES = _HEAD_BYTES + _MAC_BYTES
"""Counted with the signature whether there is one or not: a record that fits now must fit when a secret is added."""
PAYLOAD_BYTES_MAX = DATAGRAM_BYTES_MAX - OVERHEAD_BYTES

Seen = tuple[bytes, int, int]
"""(node id as 16 bytes, boots, counter): the highest number seen of a sender."""


class Refusal(StrEnum):
    """Why a datagram is dropped."""

    SIZE = "size"  # shorter than an envelope, or longer than a datagram may be
    VERSION = "version"
    CLUSTER = "cluster"  # another cluster's
    OWN = "own"  # of this very node: mirrored, or a copy of its directory is in use
    UNSIGNED = "unsigned"
    SIGNED = "signed"  # and this node has no secret
    REPLAYED = "replayed"  # seen before, too old to tell, or of an earlier start of the sender
    FORGED = "forged"  # signed with none of the accepted secrets
    STRANGERS = "strangers"  # too many senders


class _Window:
    """Which numbers of one sender were seen: bit n of `seen` stands for `highest - n`."""

    __slots__ = ("boots", "highest", "seen")

    def __init__(self, boots: int, highest: int, seen: int) -> None:
        self.boots = boots
        self.highest = highest
        self.seen = seen

    def is_fresh(self, boots: int, counter: int) -> bool:
        if boots != self.boots:
            return boots > self.boots
        behind = self.highest - counter
        return behind < 0 or (behind < WINDOW and not self.seen >> behind & 1)

    def mark(self, boots: int, counter: int) -> None:
        """Take a fresh number."""
        ahead = counter - self.highest
        if boots > self.boots:
            self.boots, self.highest, self.seen = boots, counter, 1
        elif ahead <= 0:
            self.seen |= 1 << -ahead
        else:  # a shift by more than the window's width would make an integer as long as the sender likes
            self.seen = (self.seen << ahead | 1) & _ALL_SEEN if ahead < WINDOW else 1
            self.highest = counter

    def close_to(self, boots: int, counter: int) -> None:
        """Count everything up to this number as seen."""
        if (boots, counter) >= (self.boots, self.highest):
            self.boots, self.highest, self.seen = boots, counter, _ALL_SEEN
        elif boots == self.boots and self.highest - counter < WINDOW:
            behind = self.highest - counter
            self.seen |= _ALL_SEEN >> behind << behind


class Seal:
    """Seals what one node sends, and opens what it receives."""

    def __init__(
        self, *, cluster: str, node: str, boots: int, secrets: Sequence[bytes] = (), senders_max: int = 4_096
    ) -> None:
        """`boots`: the durable count of this node's starts. `secrets`: all are accepted, the first one signs."""
        assert 0 <= boots <= BOOTS_MAX
        self._tag = hashlib.sha256(cluster.encode()).digest()[:8]
        self._node = bytes.fromhex(node)
        assert len(self._node) == 16
        self._secrets = tuple(secrets)
        self._senders_max = senders_max
        self._windows: dict[bytes, _Window] = {}
        self.boots = boots
        self._counter = 0

    def set_secrets(self, secrets: Sequence[bytes]) -> None:
        self._secrets = tuple(secrets)

    def wrap(self, payload: bytes) -> bytes:
        """The datagram; each call uses up a number."""
        assert len(payload) <= PAYLOAD_BYTES_MAX
        self._counter += 1
        form = _SIGNED if self._secrets else _OPEN
        body = _HEAD.pack(SEAL_VERSION, form, self._tag, self._node, self.boots, self._counter) + payload
        return body + hmac.digest(self._secrets[0], body, "sha256") if self._secrets else body

    def open(self, datagram: bytes) -> bytes | Refusal:
        """The payload, or why there is none."""
        if not _HEAD_BYTES < len(datagram) <= DATAGRAM_BYTES_MAX:
            return Refusal.SIZE
        version, form, tag, sender, boots, counter = _HEAD.unpack_from(datagram)
        if version != SEAL_VERSION or form > _SIGNED:
            return Refusal.VERSION
        if tag != self._tag:
            return Refusal.CLUSTER
        if sender == self._node:
            return Refusal.OWN
        if not self._secrets:
            return datagram[_HEAD_BYTES:] if form == _OPEN else Refusal.SIGNED
        if form == _OPEN:
            return Refusal.UNSIGNED
        return self._open_signed(datagram, sender, boots, counter)

    def _open_signed(self, datagram: bytes, sender: bytes, boots: int, counter: int) -> bytes | Refusal:
        if len(datagram) <= OVERHEAD_BYTES:
            return Refusal.SIZE
        window = self._windows.get(sender)
        if window is not None and not window.is_fresh(boots, counter):
            return Refusal.REPLAYED
        body, mac = datagram[:-_MAC_BYTES], datagram[-_MAC_BYTES:]
        for secret in self._secrets:
            if hmac.compare_digest(hmac.digest(secret, body, "sha256"), mac):
                break
        else:
            return Refusal.FORGED
        if window is not None:
            window.mark(boots, counter)
        elif len(self._windows) < self._senders_max:
            self._windows[sender] = _Window(boots, counter, 1)
        else:
            return Refusal.STRANGERS
        return body[_HEAD_BYTES:]

    # -- push-pull

    def seen(self) -> list[Seen]:
        """The highest numbers seen, this node's own included."""
        own = (self._node, self.boots, self._counter)
        return [own, *((node, window.boots, window.highest) for node, window in self._windows.items())]

    def hear(self, seen: Iterable[Seen]) -> bool:
        """Take over what another member has seen; whoever sends it is a member by its proof. What is not a number of a
        sender is skipped. True: others have seen a later start of this node, which goes on behind it.

        A node whose directory was restored from a copy counts its starts from there, and would not be heard again.
        """
        behind = False
        for node, boots, counter in seen:
            if len(node) != 16 or not 0 <= boots < BOOTS_MAX or not 0 <= counter <= COUNTER_MAX:
                continue
            if node == self._node:
                if (boots, counter) > (self.boots, self._counter):
                    self.boots, self._counter, behind = boots + 1, 0, True
            elif (window := self._windows.get(node)) is not None:
                window.close_to(boots, counter)
            elif self._secrets and len(self._windows) < self._senders_max:
                self._windows[node] = _Window(boots, counter, _ALL_SEEN)
        return behind

    def forget(self, node: str) -> None:
        """The member is forgotten. An old datagram of it would now be let in; it tells of a member that then does not
        answer, and is forgotten again."""
        self._windows.pop(bytes.fromhex(node), None)
