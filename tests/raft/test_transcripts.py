"""Golden transcripts: whole conversations of small groups, with everything that is said, stored and applied.

Each file in data/ tells one story. After a change run `pytest tests/raft --rewrite` and read the diff: it shows what
the change does to every one of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .interaction.commands import Environment
from .interaction.script import rewritten

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize("path", sorted(DATA.glob("*.txt")), ids=lambda path: path.stem)
def test_transcript(path: Path, request: pytest.FixtureRequest) -> None:
    recorded = path.read_text()
    printed = rewritten(recorded, Environment().run)
    if request.config.getoption("--rewrite", default=False):
        path.write_text(printed)
        return
    assert printed == recorded
