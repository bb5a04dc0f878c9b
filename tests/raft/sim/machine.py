"""The replicated state machine of the simulation: the position, a digest of everything applied, the membership.

A digest is enough: two replicas that applied the same entries in the same order have the same one, any others have not.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from raft.types import ConfState, Entry


@dataclass(slots=True, frozen=True)
class MachineState:
    index: int
    term: int
    digest: int
    conf_state: ConfState


def applied(state: MachineState, entry: Entry, conf_state: ConfState) -> MachineState:
    digest = zlib.crc32(entry.data, state.digest * 31 + entry.term & 0xFFFFFFFF)
    return MachineState(entry.index, entry.term, digest, conf_state)
