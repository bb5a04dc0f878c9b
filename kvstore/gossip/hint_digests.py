"""Digests of a set of hints, kept up with each change: of all, and of PARTS parts by the shard's id.

Two nodes whose digests of everything differ compare those of the parts, and tell each other what is in the parts that
differ. Of a large part only some fits an answer. What has changed since it was told so comes first, the newest of it
before all, since that is what the other one most likely lacks; then everything comes in turn.

Invariant: a digest is a function of the set, whatever the order in which hints came and went: the XOR of one keyed hash
    for each hint. It is the same in all processes.
Invariant: a change takes the same time however many hints there are, and an answer is bounded by what it may hold.
Called by: leader_hints.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from hashlib import blake2b

from msgspec import Raw

PARTS = 512
"""As many as fit a packet with 16 bits each: the smaller a part, the less is told beside what the other one lacks."""
_KEY = b"kvstore leader hint"  # so that these hashes are equal to nobody else's
_PARTS = struct.Struct(f">B{PARTS}H")
PARTS_BYTES = _PARTS.size
_SHIFTS = 49  # places at which 16 of 64 bits can be cut out


class _Part:
    """The hints of the shards with one remainder."""

    __slots__ = ("digest", "hints")

    def __init__(self) -> None:
        self.digest = 0  # 64 bits
        self.hints: OrderedDict[int, Raw] = OrderedDict()  # by shard; what is to be told next at the front


class HintDigests:
    def __init__(self) -> None:
        self._parts = [_Part() for _ in range(PARTS)]
        self.all = 0  # 64 bits
        self._asked = 0

    def add(self, shard: int, encoded: Raw) -> None:
        """Of a shard that is not held."""
        part = self._parts[shard % PARTS]
        assert shard not in part.hints
        part.hints[shard] = encoded
        part.hints.move_to_end(shard, last=False)
        self._flip(part, encoded)

    def remove(self, shard: int) -> None:
        """Of a shard that is held."""
        part = self._parts[shard % PARTS]
        self._flip(part, part.hints.pop(shard))

    def encoded(self, shard: int) -> Raw:
        """The bytes of a hint that is held."""
        return self._parts[shard % PARTS].hints[shard]

    def parts(self) -> bytes:
        """A shift, then for each part the 16 bits of its digest at that shift. The shift is another one each time: two
        parts that differ look equal once in 65,536 times, and then not the next time."""
        self._asked += 1
        shift = self._asked % _SHIFTS
        return _PARTS.pack(shift, *[part.digest >> shift & 0xFFFF for part in self._parts])

    def differing(self, theirs: bytes, *, bytes_max: int, packets_max: int) -> list[list[Raw]]:
        """Hints of the parts that differ, for so many packets; see above. Nothing when `theirs` is malformed."""
        if len(theirs) != PARTS_BYTES:
            return []
        shift, *digests = _PARTS.unpack(theirs)
        pairs = zip(self._parts, digests, strict=True)
        going = [(part, len(part.hints)) for part, digest in pairs if part.digest >> shift & 0xFFFF != digest]
        packets: list[list[Raw]] = []
        left = 0
        while going:  # one of each part that is not told to its end
            going = [(part, count) for part, count in going if count]
            for position, (part, count) in enumerate(going):
                going[position] = (part, count - 1)
                shard, hint = next(iter(part.hints.items()))
                part.hints.move_to_end(shard)
                if len(hint) > bytes_max:
                    continue
                if len(hint) > left:
                    if len(packets) == packets_max:
                        part.hints.move_to_end(shard, last=False)
                        return packets
                    packets.append([])
                    left = bytes_max
                packets[-1].append(hint)
                left -= len(hint)
        return packets

    def _flip(self, part: _Part, encoded: Raw) -> None:
        value = int.from_bytes(blake2b(bytes(encoded), digest_size=8, key=_KEY).digest(), "big")
        part.digest ^= value
        self.all ^= value
