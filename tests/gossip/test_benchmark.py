"""The benchmark of gossip runs, and its tables say what was measured.

Method: the smallest clusters and the shortest times.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gossip


def test_one_cell_of_the_table() -> None:
    cell = gossip.measure(5, 20, 1, minutes=0.2, events=2)
    assert len(cell.joins) == len(cell.leaves) == len(cell.crashes) == len(cell.first_suspicions) == 2
    assert all(0 <= each < 10 for each in cell.joins + cell.leaves)
    assert all(3.9 < each < 60 for each in cell.crashes)
    assert all(first < dead for first, dead in zip(cell.first_suspicions, cell.crashes, strict=True))
    again = gossip.measure(5, 20, 1, minutes=0.2, events=2)
    assert again.crashes == cell.crashes, "the seed decides"
    text = gossip.tell([cell], [])
    assert "| 5 | 20 % | 2 |" in text
    assert "the papers' formulas" in text


def test_local_health_spares_the_healthy() -> None:
    """Lifeguard's main claim: members that starve accuse healthy ones without it."""
    without, with_it = (gossip.measure_slow(8.0, 0.001, lifeguard, seed=1, minutes=0.5) for lifeguard in (False, True))
    assert without.healthy > 0
    assert with_it.healthy == 0
    assert with_it.all <= without.all


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    cells = [gossip.measure(size, 0, 1, minutes=0.1, events=1) for size in (3, 5)]
    gossip.plot(cells, tmp_path / "gossip.png")
    assert (tmp_path / "gossip.png").read_bytes().startswith(b"\x89PNG")
