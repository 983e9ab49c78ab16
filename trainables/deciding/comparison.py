"""`Comparison`: two settings of a running training, measured in turn, so that drift cancels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist

import numpy as np

from feedrate.analysis.estimate import t_quantile
from feedrate.trainables.deciding.window import Window

WORTH = math.log(1.02)
"""The least gain for which a setting changes, as a logarithm."""
ERROR = 0.001
"""Probability, at each look, of a bound that does not hold. There are several looks and several candidates, and at 15 % noise fewer than
5 % of whole trainings may change for the worse."""
LOOKS = (1, 2, 3, 5, 8, 12, 16, 24, 32)
"""Numbers of pairs at which a comparison may end: a rule that may end it at any time ends it too often by chance. One pair is enough only for
large differences, where every further window of the slower setting would cost the training most."""
MEAN_PAIRS = 3
"""A comparison that ends for another reason than a bound has this many pairs at least, because their mean alone then decides."""
USUAL_PAIRS = 16
"""A comparison goes on beyond this number only for a second setting that seems to be worth it, and which then costs the training nothing."""


class Comparison:
    """Pairs of windows, one of each setting, taken shortly after one another.

    Args:
        before: windows from before the comparison, of each setting that was measured. How much neighbours among those of one setting
            differ shows how much two windows differ by chance.
    """

    def __init__(self, before: Iterable[Sequence[Window]]) -> None:
        steps = np.concatenate([np.diff(np.log([each.rate for each in windows])) for windows in before])
        # neighbouring differences share a window: they are worth two thirds as many independent ones
        self._degrees_before = 2 * steps.size // 3
        self._variance_before = float(np.mean(steps**2)) if steps.size else 0.0
        self.differences: list[float] = []
        """Logarithm of the second setting's rate divided by the first one's, for each pair."""

    def add(self, first: Window, second: Window) -> None:
        """Add a pair."""
        self.differences.append(math.log(second.rate / first.rate))

    @property
    def mean(self) -> float:
        """The mean difference, a logarithm."""
        return float(np.mean(self.differences))

    def half(self, error: float = ERROR) -> float:
        """Return half of the interval around the mean that one of its bounds leaves with a probability of `error`."""
        num, degrees, variance = len(self.differences), *self._noise()
        return student_quantile(1 - error, degrees) * math.sqrt(variance / num) if degrees >= 1 else math.inf

    def is_hopeful(self) -> bool:
        """Return whether more pairs may yet show that the second setting is better."""
        num = len(self.differences)
        return num < USUAL_PAIRS or (num < LOOKS[-1] and self.mean >= WORTH)

    def is_better(self) -> bool:
        """Return whether the second setting is faster beyond doubt, and by enough."""
        return self.mean >= WORTH and self.mean - self.half() > 0

    def is_no_worse(self) -> bool:
        """Return whether the second setting is not slower by more than 2 %, beyond doubt."""
        return self.mean - self.half() > -WORTH

    def is_worse(self) -> bool:
        """Return whether the second setting is slower beyond doubt."""
        return self.mean + self.half() < 0

    def is_not_worth_it(self) -> bool:
        """Return whether the second setting cannot be faster by enough."""
        return self.mean + self.half() < WORTH

    def speedup(self) -> tuple[float, float, float]:
        """Return the second setting's rate divided by the first one's, and its 95 % interval."""
        degrees, variance = self._noise()
        half = t_quantile(degrees) * math.sqrt(variance / len(self.differences))
        return math.exp(self.mean), math.exp(self.mean - half), math.exp(min(self.mean + half, 700.0))

    def _noise(self) -> tuple[int, float]:
        """Return degrees of freedom and variance of a difference, from the pairs and from the windows before."""
        within = max(len(self.differences) - 1, 0)
        squares = float(np.sum((np.asarray(self.differences) - self.mean) ** 2)) if within else 0.0
        degrees = self._degrees_before + within
        variance = (self._degrees_before * self._variance_before + squares) / degrees if degrees else 0.0
        return degrees, variance


def student_quantile(probability: float, degrees: int) -> float:
    """Return a quantile of Student's t by the expansion around the normal quantile (Abramowitz and Stegun 26.7.5), exactly for 1 and 2 degrees.

    For 3 and more degrees it is within 3 % up to a probability of 0.999.
    """
    if degrees == 1:
        return math.tan(math.pi * (probability - 0.5))
    if degrees == 2:
        centred = 2 * probability - 1
        return float(centred * math.sqrt(2 / (1 - centred**2)))
    z = NormalDist().inv_cdf(probability)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / degrees**power for power, term in enumerate(terms)))
