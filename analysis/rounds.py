"""Confirmation rounds: compare finalists that were measured in turn, again and again. Needs only NumPy.

All settings of a round are measured on one host within about a minute, one after the other, each in a fresh process. So
whatever changes between rounds (load, caches, temperature) is the same for all of them. The model is log(rate) = setting +
round + noise, fitted by least squares over all rounds (a randomised block design); settings may be dropped or added between
rounds. The noise is pooled over the settings, and the prior run-to-run spread counts as PRIOR_RUNS further runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from feedrate.analysis.estimate import RUN_SD_FRACTION, Rate, t_quantile
from feedrate.analysis.setting_cost import SettingCost, cheapest

TIED_FRACTION = 0.02
"""Settings this close to the fastest count as equally good; the cheapest of them is the answer."""
MIN_ROUNDS = 3
"""Number of rounds before an answer counts as confirmed."""
SOON_ROUNDS = 2
"""Number of rounds after which a setting is dropped if it is more than TIED_FRACTION slower with 95 % confidence."""
PRIOR_RUNS = 5
"""Number of runs that the prior RUN_SD_FRACTION counts as, beside the noise of the rounds themselves."""
DISTURBED_FRACTION = 0.1
"""A round is repeated if other processes took this much more of the CPUs than in most measurements."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """The rates that one round measured."""

    number: int
    sps: dict[str, float]
    """Setting (as in `LoaderConfig.short`) -> items per second, without settings that failed."""
    disturbed: bool = False
    """Whether other processes, or the hypervisor, took more CPU time than in most measurements."""


def rounds_of(measured: Iterable[tuple[str, float, Mapping[Any, Any]]]) -> list[Round]:
    """Return the rounds among the measurements, in order.

    Args:
        measured: setting, its rate in items per second, and its record (or a row of `Run.trials`); records of another kind
            than confirm are ignored.
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
    """Return the share of the CPUs that other processes and the hypervisor took during a measurement."""
    fractions = [record.get(name) for name in ("foreign_cpu_fraction", "steal_fraction")]
    return sum(float(each) for each in fractions if each is not None and not math.isnan(each))


class Comparison:
    """Differences between settings over rounds.

    Args:
        rounds: disturbed rounds count only if there are fewer than MIN_ROUNDS others.
        sd_fraction: prior run-to-run standard deviation, which counts as PRIOR_RUNS runs.
    """

    def __init__(self, rounds: Sequence[Round], sd_fraction: float = RUN_SD_FRACTION) -> None:
        quiet = [each for each in rounds if not each.disturbed]
        self.rounds = quiet if len(quiet) >= MIN_ROUNDS else list(rounds)
        self.num_disturbed = sum(each.disturbed for each in rounds)
        self._prior = sd_fraction
        self.settings = sorted({name for each in self.rounds for name in each.sps})
        self._column = {name: index for index, name in enumerate(self.settings)}

    def num_rounds(self, setting: str) -> int:
        """Return the number of rounds that measured a setting."""
        return sum(setting in each.sps for each in self.rounds)

    def log_ratio(self, first: str, second: str) -> tuple[float, float]:
        """Return log(rate of first / rate of second) and half of its 95 % interval, which is infinite if no rounds relate the two."""
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
        """Return rate of first / rate of second with its 95 % interval."""
        log, half = self.log_ratio(first, second)
        return Rate(sps=math.exp(log), low_sps=math.exp(log - half), high_sps=_exp(log + half))

    def rate(self, setting: str) -> Rate | None:
        """Return the geometric mean of a setting's rate with its 95 % interval, which includes the differences between rounds."""
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
    cost: SettingCost


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """The state of the comparison after some rounds."""

    fastest: str
    answer: str
    """The cheapest setting of `tied` at the batch size of the fastest one."""
    tied: tuple[str, ...]
    """Settings as good as the fastest: less than 2 % slower, with 95 % confidence; those with the fewest workers first."""
    slower: tuple[str, ...]
    """Settings slower than the fastest, with 95 % confidence, that are not known to be within 2 % of it."""
    undecided: tuple[str, ...]
    """Settings that are neither tied nor slower so far."""
    decided: bool
    """Whether more rounds would not change the answer: no setting can be 2 % faster, and every cheaper setting at the same
    batch size is known to be tied or slower."""


def out_soon(comparison: Comparison, names: Iterable[str]) -> set[str]:
    """Return the settings that need no further round: measured in SOON_ROUNDS rounds, and more than TIED_FRACTION slower than another."""
    known = [name for name in names if comparison.num_rounds(name) >= SOON_ROUNDS]
    ratios = {(one, other): comparison.log_ratio(one, other) for one in known for other in known}
    return {other for (_, other), (log, half) in ratios.items() if log - half > TIED_FRACTION}


def standing(comparison: Comparison, finalists: Iterable[Finalist]) -> Standing | None:
    """Return which finalists are tied with the fastest and which are slower; None while none was measured in MIN_ROUNDS rounds."""
    ordered = sorted(finalists, key=lambda each: (each.cost.order, each.name))
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
    same_size = [each for each in tied if each.batch_size == fastest.batch_size]
    answer = same_size[cheapest([each.cost for each in same_size])]
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
            or (each in undecided and each.batch_size == answer.batch_size and each.cost.is_below(answer.cost))
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
