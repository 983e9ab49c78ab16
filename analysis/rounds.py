"""Confirmation rounds: what finalists, measured one after the other again and again, say about each other. NumPy only.

All settings of a round are measured on one host within a minute or so, each in a fresh process, so that what changes
between rounds (load, caches, temperature) is the same for all of them. log(rate) = setting + round + noise, by least
squares over all rounds (a randomised block design); a setting that was dropped or added on the way is no harm. The
noise is pooled over the settings, with the run-to-run spread known from before as so many runs (MEASURING.md 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from feedrate.analysis.estimate import RUN_SD_FRACTION, Rate, t_quantile

TIED_FRACTION = 0.02
"""Settings this close to the fastest are as good; the cheapest of them is the answer."""
MIN_ROUNDS = 3
"""Rounds before anything is called confirmed."""
SOON_ROUNDS = 2
"""Rounds after which a setting that is more than TIED_FRACTION behind for sure is out."""
PRIOR_RUNS = 5
"""Runs that RUN_SD_FRACTION counts for beside the rounds' own noise."""
DISTURBED_FRACTION = 0.1
"""A round is repeated when other processes took this much more of the CPUs than in most measurements."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """What one round measured."""

    number: int
    sps: dict[str, float]
    """Setting (as `LoaderConfig.short` writes it) -> items per second; what failed is missing."""
    disturbed: bool = False
    """Other processes, or the hypervisor, took CPU time that they did not take before."""


def rounds_of(measured: Iterable[tuple[str, float, Mapping[Any, Any]]]) -> list[Round]:
    """The rounds among what was measured, in order.

    Args:
        measured: setting, its rate in items per second, and the record (a row of `Run.trials` will do); records of
            other kinds than confirm are passed over.
    """
    kept = [each for each in measured if each[2]["kind"] == "confirm" and each[1] > 0]
    taken = [_taken(record) for _, _, record in kept]
    usual = float(np.median(taken)) if taken else 0.0
    sps: dict[int, dict[str, float]] = {}
    disturbed: set[int] = set()
    for (name, rate, record), fraction in zip(kept, taken, strict=True):
        sps.setdefault(record["round"], {})[name] = rate
        if fraction > usual + DISTURBED_FRACTION:
            disturbed.add(record["round"])
    return [Round(number=number, sps=sps[number], disturbed=number in disturbed) for number in sorted(sps)]


def _taken(record: Mapping[Any, Any]) -> float:
    """Share of the CPUs that others took while this was measured, the hypervisor among them."""
    fractions = [record.get(name) for name in ("foreign_cpu_fraction", "steal_fraction")]
    return sum(float(each) for each in fractions if each is not None and not math.isnan(each))


class Comparison:
    """Differences between settings over rounds.

    Args:
        rounds: disturbed ones count only where fewer than MIN_ROUNDS others are there.
        sd_fraction: run-to-run standard deviation known from before, worth PRIOR_RUNS runs.
    """

    def __init__(self, rounds: Sequence[Round], sd_fraction: float = RUN_SD_FRACTION) -> None:
        quiet = [each for each in rounds if not each.disturbed]
        self.rounds = quiet if len(quiet) >= MIN_ROUNDS else list(rounds)
        self.num_disturbed = sum(each.disturbed for each in rounds)
        self._prior = sd_fraction
        self.settings = sorted({name for each in self.rounds for name in each.sps})
        self._column = {name: index for index, name in enumerate(self.settings)}

    def num_rounds(self, setting: str) -> int:
        """Rounds that measured a setting."""
        return sum(setting in each.sps for each in self.rounds)

    def log_ratio(self, first: str, second: str) -> tuple[float, float]:
        """log(rate of first / rate of second) and half of its 95 % interval, infinite where no round relates the two."""
        if first not in self._column or second not in self._column:
            return 0.0, math.inf
        if first == second:
            return 0.0, 0.0
        effects, inverse, projector, sd, degrees = self._fit
        contrast = np.zeros(len(effects))
        contrast[self._column[first]], contrast[self._column[second]] = 1.0, -1.0
        if not np.allclose(contrast @ projector, contrast, atol=1e-6):
            return 0.0, math.inf
        variance = float(contrast @ inverse @ contrast)
        return float(contrast @ effects), t_quantile(degrees) * sd * math.sqrt(max(variance, 0.0))

    def ratio(self, first: str, second: str) -> Rate:
        """Rate of first / rate of second with its 95 % interval."""
        log, half = self.log_ratio(first, second)
        return Rate(sps=math.exp(log), low_sps=math.exp(log - half), high_sps=_exp(log + half))

    def rate(self, setting: str) -> Rate | None:
        """Geometric mean of a setting's rate with its 95 % interval, differences between rounds included."""
        logs = np.log([each.sps[setting] for each in self.rounds if setting in each.sps])
        if not len(logs):
            return None
        degrees = len(logs) - 1 + PRIOR_RUNS
        squares = float(((logs - logs.mean()) ** 2).sum()) + PRIOR_RUNS * self._prior**2
        half = t_quantile(degrees) * math.sqrt(squares / degrees / len(logs))
        sps = math.exp(logs.mean())
        return Rate(sps=sps, low_sps=sps * math.exp(-half), high_sps=sps * math.exp(half))

    @cached_property
    def _fit(self) -> tuple[Any, Any, Any, float, int]:
        """Effects, unscaled covariance, projector on what can be estimated, standard deviation, degrees of freedom."""
        cells = [(row, name, sps) for row, each in enumerate(self.rounds) for name, sps in each.sps.items()]
        num_settings = len(self.settings)
        design = np.zeros((len(cells), num_settings + len(self.rounds)))
        for index, (row, name, _) in enumerate(cells):
            design[index, self._column[name]] = 1.0
            design[index, num_settings + row] = 1.0
        logs = np.log([sps for _, _, sps in cells])
        inverse = np.linalg.pinv(design.T @ design, hermitian=True)
        effects = inverse @ design.T @ logs
        degrees = len(cells) - int(np.linalg.matrix_rank(design)) + PRIOR_RUNS
        squares = float(((logs - design @ effects) ** 2).sum()) + PRIOR_RUNS * self._prior**2
        return effects, inverse, inverse @ design.T @ design, math.sqrt(squares / degrees), degrees


def _exp(log: float) -> float:
    return math.exp(log) if log < 700 else math.inf


@dataclass(frozen=True, kw_only=True, slots=True)
class Finalist:
    """A setting that may be the answer."""

    name: str
    batch_size: int | None
    cost: tuple[float, ...]
    """Compared in order: workers, batches in flight for each, memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Where the finalists stand after some rounds."""

    fastest: str
    answer: str
    """The cheapest of `tied` at the fastest one's batch size."""
    tied: tuple[str, ...]
    """As good as the fastest: less than 2 % slower, with 95 % confidence; the cheapest first."""
    slower: tuple[str, ...]
    """Slower than the fastest, with 95 % confidence, and not known to be within 2 %."""
    undecided: tuple[str, ...]
    """Neither of the two so far."""
    decided: bool
    """More rounds would not change the answer: nothing can be 2 % faster, and where each stands is known of those that are
    cheaper at the same batch size."""


def out_soon(comparison: Comparison, names: Iterable[str]) -> set[str]:
    """Which of these settings need no further round: more than TIED_FRACTION behind another one, after SOON_ROUNDS rounds."""
    known = [name for name in names if comparison.num_rounds(name) >= SOON_ROUNDS]
    ratios = {(one, other): comparison.log_ratio(one, other) for one in known for other in known}
    return {other for (_, other), (log, half) in ratios.items() if log - half > TIED_FRACTION}


def standing(comparison: Comparison, finalists: Iterable[Finalist]) -> Standing | None:
    """Who is tied with the fastest and who is slower; None while no finalist was measured in MIN_ROUNDS rounds."""
    ordered = sorted(finalists, key=lambda each: (each.cost, each.name))
    measured = [each for each in ordered if comparison.num_rounds(each.name) >= MIN_ROUNDS]
    if not measured:
        return None
    fastest = measured[0]
    for each in measured[1:]:
        if comparison.log_ratio(each.name, fastest.name)[0] > 0:
            fastest = each
    tied: list[Finalist] = []
    slower: list[Finalist] = []
    undecided: list[Finalist] = []
    for each in ordered:
        behind, half = comparison.log_ratio(fastest.name, each.name)
        if each not in measured:
            is_out = comparison.num_rounds(each.name) >= SOON_ROUNDS and behind - half > TIED_FRACTION
            (slower if is_out else undecided).append(each)
        elif behind + half < -math.log1p(-TIED_FRACTION) or each is fastest:
            tied.append(each)
        elif behind - half > 0:
            slower.append(each)
        else:
            undecided.append(each)
    answer = next(each for each in tied if each.batch_size == fastest.batch_size)
    most = -math.log1p(-TIED_FRACTION)
    ahead = {each.name: sum(comparison.log_ratio(each.name, answer.name)) for each in ordered}
    matter = [
        each
        for each in ordered
        if each is not answer
        and each not in slower
        and (
            each not in measured
            or ahead[each.name] >= most
            or (each in undecided and each.batch_size == answer.batch_size and each.cost < answer.cost)
        )
    ]
    return Standing(
        fastest=fastest.name,
        answer=answer.name,
        tied=tuple(each.name for each in tied),
        slower=tuple(each.name for each in slower),
        undecided=tuple(each.name for each in undecided),
        decided=not matter,
    )
