"""Which key comes next: uniform, zipfian, or latest, as the YCSB core workloads want it.

Zipfian ranks are drawn by rejection-inversion (W. Hörmann and G. Derflinger, "Rejection-inversion to generate variates
from monotone discrete distributions", ACM TOMACS 6(3), 1996): exact for any exponent, nothing to tabulate, at most
about 1.1 uniform numbers a draw. YCSB itself uses Gray et al.'s approximation (SIGMOD 1994), which costs a sum over all
keys at the start and is off for the first ranks. The constant is YCSB's, 0.99.

Invariant: a chooser of n keys gives integers in [0, n).
Invariant: `scatter` is a bijection on [0, n): popular ranks lie all over the keys, none are merged (as a hash does).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

ZIPFIAN_CONSTANT = 0.99
Chooser = Callable[[], int]


class ZipfRanks:
    """Ranks 1..n with P(k) proportional to k ** -exponent; names as in the paper. `exponent` must not be 1."""

    __slots__ = ("_exponent", "_h_n", "_h_x1", "_random", "_s", "n")

    def __init__(self, n: int, *, rng: random.Random, exponent: float = ZIPFIAN_CONSTANT) -> None:
        assert n >= 1
        assert exponent > 0
        assert exponent != 1
        self.n = n
        self._exponent = exponent
        self._random = rng.random
        self._h_x1 = self._h(1.5) - 1.0
        self._h_n = self._h(n + 0.5)
        self._s = 2.0 - self._h_inverse(self._h(2.5) - 2.0**-exponent)

    def _h(self, x: float) -> float:
        """The integral of x ** -exponent."""
        return float((x ** (1.0 - self._exponent) - 1.0) / (1.0 - self._exponent))

    def _h_inverse(self, x: float) -> float:
        return float((1.0 + x * (1.0 - self._exponent)) ** (1.0 / (1.0 - self._exponent)))

    def draw(self) -> int:
        exponent, one_minus = self._exponent, 1.0 - self._exponent
        while True:
            u = self._h_n + self._random() * (self._h_x1 - self._h_n)
            x = (1.0 + u * one_minus) ** (1.0 / one_minus)
            k = min(max(int(x + 0.5), 1), self.n)
            if k - x <= self._s or u >= ((k + 0.5) ** one_minus - 1.0) / one_minus - k**-exponent:
                return k


def scatter(n: int) -> Callable[[int], int]:
    """A fixed bijection on [0, n) that puts neighbours far apart: multiplication by a number prime to n."""
    factor = max(1, int(n * 0.6180339887498949))  # the golden ratio spreads multiples evenly (Knuth, TAOCP 6.4)
    while math.gcd(factor, n) != 1:
        factor += 1
    return lambda rank: rank * factor % n


def uniform(n: int, *, rng: random.Random) -> Chooser:
    draw = rng.random
    return lambda: int(draw() * n)


def zipfian(n: int, *, rng: random.Random) -> Chooser:
    """Scattered, like YCSB's ScrambledZipfianGenerator."""
    ranks, place = ZipfRanks(n, rng=rng), scatter(n)
    return lambda: place(ranks.draw() - 1)


def latest(n: int, *, rng: random.Random) -> Callable[[int], int]:
    """Of the keys [0, newest], the newest most often (YCSB D). It draws from the n newest."""
    ranks = ZipfRanks(n, rng=rng)
    return lambda newest: max(0, newest - (ranks.draw() - 1))
