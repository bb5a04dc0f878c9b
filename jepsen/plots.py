"""Pictures of a run: the latency of every operation, the operations of each second, the faults of that time.

They are drawn by matplotlib, which is not needed for anything else (`pip install 'kvstore[bench]'`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jepsen.history import Annotation, Operation, Outcome

NS = 1_000_000_000
LACKING = "there are no plots: matplotlib is not installed (pip install 'kvstore[bench]')"
COLOURS = {Outcome.OK: "#2f5bea", Outcome.FAILED: "#98a1b0", Outcome.UNKNOWN: "#d0731c"}
WORDS = {Outcome.OK: "answered", Outcome.FAILED: "refused", Outcome.UNKNOWN: "unknown"}
FAMILIES = (
    (("wipe", "bit-flip", "truncate", "disk-full", "slow-fsync", "failed-fsync", "lost-writes"), "#8a5a00"),
    (("kill", "pause", "restart", "clock"), "#c8243c"),
    (("partition", "flapping", "slow", "lossy"), "#8a5fe0"),
    (("",), "#0f9488"),  # what operators do
)
"""Beginnings of the names of faults, and their colour: the first that fits."""
QUANTILES = ((0.5, "median"), (0.99, "99 %"))
WINDOW_SECONDS = 1
LINE_OPERATIONS_MIN = 3


def available() -> bool:
    return find_spec("matplotlib") is not None


def draw(path: Path, operations: Sequence[Operation], faults: Sequence[Annotation], *, title: str) -> None:
    """Writes a PNG. Operations without times are not drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    timed = [one for one in operations if one.call_ns is not None and one.ret_ns is not None]
    seconds = max([*((one.ret_ns or 0) / NS for one in timed), 1.0])
    kinds = list(dict.fromkeys(fault.f for fault in faults))
    heights = [max(0.35, 0.17 * len(kinds)), 3.2, 1.8]
    with pyplot.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure, (above, middle, below) = pyplot.subplots(
            3, 1, sharex=True, figsize=(11, sum(heights) + 1.2), height_ratios=heights, layout="constrained"
        )
        figure.suptitle(title, fontsize=11, x=0.01, ha="left", fontweight="bold")
        _faults(above, (middle, below), faults, kinds, seconds)
        _latency(middle, timed)
        _throughput(below, timed, seconds)
        below.set_xlim(min([*((one.call_ns or 0) / NS for one in timed), seconds - 1.0]), seconds)
        below.set_xlabel("seconds since the beginning")
        figure.savefig(path, dpi=110)
        pyplot.close(figure)


def _faults(above: Any, others: Sequence[Any], faults: Sequence[Annotation], kinds: list[str], seconds: float) -> None:
    """A row for each kind of fault, and its periods as shadows over the other pictures."""
    for fault in faults:
        begin = (fault.begin_ns or 0) / NS
        end = seconds if fault.end_ns is None else fault.end_ns / NS
        colour = colour_of(fault.f)
        above.barh(kinds.index(fault.f), max(end - begin, seconds / 500), left=begin, height=0.7, color=colour)
        for axes in others:
            axes.axvspan(begin, max(end, begin + seconds / 1_000), color=colour, alpha=0.10, linewidth=0)
    above.set_yticks(range(len(kinds)), kinds, fontsize=8)
    above.set_ylim(len(kinds) - 0.4, -0.6)
    above.tick_params(left=False)
    if not kinds:
        above.set_yticks([])
        above.text(0.5, 0.5, "no faults", transform=above.transAxes, ha="center", va="center", color="#5b6474")


def _latency(axes: Any, operations: Sequence[Operation]) -> None:
    for outcome, colour in COLOURS.items():
        ones = [one for one in operations if one.outcome is outcome]
        if ones:
            ends, took = [(one.ret_ns or 0) / NS for one in ones], [_milliseconds(one) for one in ones]
            size, alpha = (4, 0.35) if outcome is Outcome.OK else (9, 0.8)
            axes.scatter(
                ends, took, s=size, color=colour, alpha=alpha, linewidths=0, label=f"{WORDS[outcome]} ({len(ones)})"
            )
    by_second: dict[int, list[float]] = {}
    for one in operations:
        if one.known:
            by_second.setdefault(int((one.ret_ns or 0) / NS / WINDOW_SECONDS), []).append(_milliseconds(one))
    windows = sorted(second for second, took in by_second.items() if len(took) >= LINE_OPERATIONS_MIN)
    for (share, word), colour in zip(QUANTILES, ("#171b24", "#5b6474"), strict=True):
        line = [quantile(by_second[second], share) for second in windows]
        axes.plot([(second + 0.5) * WINDOW_SECONDS for second in windows], line, color=colour, linewidth=1, label=word)
    axes.set_yscale("log")
    axes.set_ylabel("latency, ms")
    axes.grid(axis="y", alpha=0.2)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, markerscale=2.5)


def _throughput(axes: Any, operations: Sequence[Operation], seconds: float) -> None:
    windows = range(int(seconds / WINDOW_SECONDS) + 1)
    counts = Counter((one.outcome, int((one.ret_ns or 0) / NS / WINDOW_SECONDS)) for one in operations)
    stacks = [[counts[outcome, window] / WINDOW_SECONDS for window in windows] for outcome in COLOURS]
    axes.stackplot(
        [window * WINDOW_SECONDS for window in windows],
        stacks,
        colors=list(COLOURS.values()),
        labels=list(WORDS.values()),
        step="post",
        alpha=0.85,
        linewidth=0,
    )
    axes.set_ylabel("operations a second")
    axes.set_ylim(bottom=0)


def colour_of(fault: str) -> str:
    return next(colour for names, colour in FAMILIES if fault.startswith(names))


def quantile(values: Sequence[float], share: float) -> float:
    """The value that so many are not above; of at least one."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _milliseconds(one: Operation) -> float:
    assert one.ret_ns is not None
    assert one.call_ns is not None
    return max((one.ret_ns - one.call_ns) / 1e6, 0.01)
