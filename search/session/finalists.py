"""Which settings are measured again before a search answers, in which order, and when that is enough.

The best of many noisy measurements is partly luck. So the finalists and the baseline are measured again in interleaved rounds
(analysis/rounds.py), and only those rounds decide. A crash loses the round that was running; its records count when the search is
resumed. This module imports neither Ray nor Optuna.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from feedrate.analysis.disqualified import NOTHING, Disqualified
from feedrate.analysis.estimate import (
    LEAST_HEADROOM_FRACTION,
    Rate,
    gpu_headroom_fraction,
    record_change,
    record_rate,
    sd_of,
)
from feedrate.analysis.rounds import MIN_ROUNDS, TIED_FRACTION, Comparison, Finalist, out_soon, standing
from feedrate.analysis.schema import status
from feedrate.analysis.setting_cost import SettingCost
from feedrate.search.study.surrogate import improvement
from feedrate.trainables.config import LoaderConfig

MAX_FINALISTS = 4
"""Largest number of finalists, not counting baselines."""
MAX_ROUNDS = 6
MAX_REPEATED = 4
"""Largest number of rounds that are added because other processes disturbed rounds."""
SPEEDUP_HALF_WIDTH = 0.04
"""Half of a speed-up's interval, as a fraction, at which the baseline has been measured well enough."""
WORTH_A_ROUND_FRACTION = 0.005
"""Least expected gain, as a fraction of the rate, for which a setting is measured in another round."""
BUDGET_FRACTION = 0.5
"""Largest share of the time budget that is kept for rounds."""
FAR = 3.0
"""A baseline that is certainly (by its interval) this many times slower than the best setting so far is called far behind. It is
measured only to know the speed-up, only at the batch size of the best setting, and as a rule not in the first round."""
GAIN_HALF_WIDTH_FRACTION = 0.05
"""Half of a speed-up's interval that is precise enough, as a fraction of the speed-up, both as logarithms: a speed-up of 12 or 13 times
is the same answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A setting that a trial measured to its end."""

    config: LoaderConfig
    rate: Rate
    spent_s: float
    """Wall time of its trial."""
    memory_bytes: float
    is_baseline: bool = False
    headroom_fraction: float | None = None
    """Share of the accelerator's memory that was left free; None on a CPU."""
    is_changing: bool = False
    """Whether its rate was still rising or falling when the trial ended; nothing is concluded from such a rate."""

    @property
    def name(self) -> str:
        """The setting's short name, by which the analysis knows it."""
        return self.config.short()

    @property
    def cost(self) -> SettingCost:
        """What it takes from the machine. CPU time is left out, because one trial knows it too badly; the answer is chosen with it (result.py)."""
        return SettingCost(
            num_workers=self.config.num_workers,
            prefetch_factor=self.config.prefetch_factor or 0,
            memory_bytes=self.memory_bytes,
        )

    @property
    def finalist(self) -> Finalist:
        """The candidate as a `Finalist` of the analysis."""
        return Finalist(name=self.name, batch_size=self.config.batch_size, cost=self.cost)


def candidate_of(record: dict[str, Any], objective: str) -> Candidate | None:
    """Return the candidate in a record; None unless it is a search trial that was measured to its end."""
    rate = record_rate(record, objective) if status(record) == "complete" and record["kind"] == "search" else None
    if rate is None:
        return None
    return Candidate(
        config=LoaderConfig.from_dict(record),
        rate=rate,
        spent_s=record["finished_unix_s"] - record["started_unix_s"],
        memory_bytes=float(record.get("tree_pss_bytes") or 0),
        is_baseline=record["origin"] == "baseline",
        headroom_fraction=gpu_headroom_fraction(record),
        is_changing=bool(record_change(record, objective)),
    )


def is_far(baseline: Candidate, best: Candidate) -> bool:
    """Return whether a baseline is certainly (by its interval) more than FAR times slower."""
    return baseline.rate.high_sps * FAR < best.rate.low_sps


def stand_ins(candidates: Sequence[Candidate], untried: Sequence[LoaderConfig], max_trial_s: float) -> list[Candidate]:
    """Return placeholders for the baselines that were skipped because the user's own is far behind.

    A placeholder borrows the rate of the user's own setting until a round measures it.

    Args:
        candidates: measured settings.
        untried: baselines that were not tried.
        max_trial_s: longest time of a trial; without workers, the time of a trial is taken to grow with the batch size.
    """
    best = max(candidates, key=lambda each: each.rate.low_sps, default=None)
    own = next((each for each in candidates if each.is_baseline), None)
    if best is None or own is None or not is_far(own, best):
        return []
    longer = [(each, (each.batch_size or 1) / (own.config.batch_size or 1)) for each in untried]
    return [replace(own, config=each, spent_s=max(own.spent_s, min(own.spent_s * times, max_trial_s))) for each, times in longer]


def choose(
    candidates: Sequence[Candidate],
    disqualified: Disqualified = NOTHING,
    *,
    untried: Sequence[LoaderConfig] = (),
    max_trial_s: float = 0.0,
) -> list[Candidate]:
    """Return the finalists, the most important first.

    They are the best setting so far (`leading`), the baseline at its batch size, the one with the highest lower bound, the cheapest settings that
    may be as good, the settings with the highest measured rates, and the baselines at the batch sizes of all of these.

    Args:
        candidates: measured settings.
        disqualified: settings that repeat data and cannot be the answer.
        untried, max_trial_s: as for `stand_ins`.

    Returns:
        The finalists; empty if there is nothing to compare: no setting, or only the baseline.
    """
    candidates = [*candidates, *stand_ins(candidates, untried, max_trial_s)]
    allowed = able(candidates, disqualified)
    if not allowed:
        return []
    best = leading(allowed)
    surest = max(allowed, key=lambda each: each.rate.low_sps)
    rivals = [each for each in allowed if each.rate.high_sps >= surest.rate.low_sps and each is not best]
    fastest = sorted(rivals, key=lambda each: -each.rate.sps)
    near = [
        each
        for each in rivals
        if each.config.batch_size == best.config.batch_size
        and each.cost.is_below(best.cost)
        and each.rate.sps >= best.rate.sps * (1 - 1.5 * TIED_FRACTION)
    ]
    near.sort(key=lambda each: each.cost.order)
    yours = [each for each in candidates if each.is_baseline and _same_size(each, best) and each is not best]
    chosen = [best, *yours, *([surest] if surest not in (best, *yours) else [])]
    if best.is_baseline and not fastest:  # rounds also confirm that nothing is faster than the baseline
        fastest = sorted((each for each in allowed if each is not best), key=lambda each: -each.rate.sps)[:1]
    for group in (near[:1], fastest[:1], near[1:2], fastest[1:]):
        for each in group:
            if each not in chosen and sum(not other.is_baseline for other in chosen) < MAX_FINALISTS:
                chosen.append(each)
    # the baselines at the rivals' batch sizes: if a rival wins, rounds then contain the baseline that its speed-up is relative to
    sizes = {each.config.batch_size for each in chosen}
    chosen += [each for each in candidates if each.is_baseline and each.config.batch_size in sizes and each not in chosen]
    return chosen if len(chosen) > 1 else []


def leading(candidates: Sequence[Candidate]) -> Candidate:
    """Return the best setting so far: the one with the highest measured rate. For a rate that still changes, its lower bound is used instead.

    Choosing by the lower bound everywhere would favour slower settings: those with many workers get few windows, which makes their intervals
    wide. In simulated searches it chose settings that were 3 to 6 % slower (docs/benchmarks.md, "How good are answers, and how soon?").
    """
    return max(candidates, key=lambda each: each.rate.low_sps if each.is_changing else each.rate.sps)


def able(candidates: Sequence[Candidate], disqualified: Disqualified) -> list[Candidate]:
    """Return the candidates that may be the answer: they repeat no data and leave some of the accelerator's memory free."""
    return [
        each
        for each in candidates
        if disqualified.allows(each.config.num_workers, each.config.persistent_workers)
        and (each.headroom_fraction is None or each.headroom_fraction >= LEAST_HEADROOM_FRACTION)
    ]


def _same_size(first: Candidate, second: Candidate) -> bool:
    return first.config.batch_size == second.config.batch_size


def next_round(
    finalists: Sequence[Candidate], comparison: Comparison, number: int, *, seed: int, disqualified: Disqualified = NOTHING
) -> list[LoaderConfig]:
    """Return the settings of a round in the order in which to measure them; empty if there is nothing more to learn.

    Odd rounds have a random order, even rounds the reverse of the round before (ABBA), so that a drift of the machine affects all
    settings alike.

    Args:
        finalists: what `choose` returned, without settings that failed.
        comparison: the rounds so far.
        number: number of the round in this confirmation, from 1.
        seed: seed of the order.
        disqualified: as for `choose`.
    """
    names = _wanted(finalists, comparison, number, disqualified)
    shuffled = random.Random(f"{seed} {(number - 1) // 2}").sample(finalists, len(finalists))
    ordered = shuffled if number % 2 else shuffled[::-1]
    return [each.config for each in ordered if each.name in names]


def _wanted(
    finalists: Sequence[Candidate], comparison: Comparison, number: int, disqualified: Disqualified
) -> set[str]:
    names = {each.name for each in finalists}
    if len(names) < 2 or number > MAX_ROUNDS + min(comparison.num_disturbed, MAX_REPEATED):
        return set()
    far = far_baselines(finalists)
    rivals = [each for each in able(finalists, disqualified) if each not in far]
    now = standing(comparison, [each.finalist for each in rivals])
    if number <= MIN_ROUNDS or now is None:
        yours = {each.name for each in finalists if each.is_baseline}
        wanted = names - (out_soon(comparison, {each.name for each in rivals}) - yours)
        leader = max(rivals, key=lambda each: _rate_sps(comparison, each), default=None)
        alone = len(wanted - {each.name for each in far}) == 1
        # of the baselines far behind, only the one at the leader's batch size, and in the first round only if a rival would be alone
        return wanted - {each.name for each in far if leader is None or not _same_size(each, leader) or (number == 1 and not alone)}
    answer = next(each for each in finalists if each.name == now.answer)
    open_ = {each.name for each in rivals if each.name in now.undecided and _is_worth_a_round(comparison, each, answer)}
    wanted = set() if now.decided or not open_ | {now.fastest} - {now.answer} else {now.fastest, now.answer, *open_}
    for each in finalists:
        if each.is_baseline and _same_size(each, answer) and each.name != now.answer:
            log, half = comparison.log_ratio(now.answer, each.name)
            unclear = abs(log) < half and abs(log) + half > TIED_FRACTION
            if half > max(SPEEDUP_HALF_WIDTH, GAIN_HALF_WIDTH_FRACTION * abs(log)) or unclear:
                wanted |= {each.name, now.answer}
    return wanted & names if len(wanted & names) > 1 else set()


def far_baselines(finalists: Sequence[Candidate]) -> list[Candidate]:
    """Return the baselines among the finalists that are far behind the best finalist, judged by their trials."""
    best = max(finalists, key=lambda each: each.rate.low_sps)
    return [each for each in finalists if each.is_baseline and is_far(each, best)]


def _rate_sps(comparison: Comparison, each: Candidate) -> float:
    """Return a candidate's rate in rounds, or the rate of its trial if it was in none."""
    rate = comparison.rate(each.name)
    return each.rate.sps if rate is None else rate.sps


def _is_worth_a_round(comparison: Comparison, each: Candidate, answer: Candidate) -> bool:
    """Return whether a setting may still turn out to be better than the answer by enough to measure another round.

    A cheaper setting is better already if it is less than TIED_FRACTION slower.
    """
    log, half = comparison.log_ratio(each.name, answer.name)
    if math.isinf(half):
        return True
    start = TIED_FRACTION if _same_size(each, answer) and each.cost.is_below(answer.cost) else 0.0
    return bool(improvement(log + start, sd_of(half)) >= WORTH_A_ROUND_FRACTION)


def rounds_s(finalists: Sequence[Candidate]) -> float:
    """Return the seconds that MIN_ROUNDS rounds take. Of all baselines that are far slower, only one is measured, from the second round on."""
    if not finalists:
        return 0.0
    far = far_baselines(finalists)
    others_s = sum(each.spent_s for each in finalists if each not in far)
    return MIN_ROUNDS * others_s + (MIN_ROUNDS - 1) * max((each.spent_s for each in far), default=0.0)


def fit_into(finalists: Sequence[Candidate], seconds: float) -> list[Candidate]:
    """Return the finalists, the most important first, for which MIN_ROUNDS rounds fit into this time; empty if fewer than two fit."""
    kept: list[Candidate] = []
    for each in finalists:
        if rounds_s([*kept, each]) <= seconds:
            kept.append(each)
    return kept if len(kept) > 1 else []


def for_rounds(chosen: Sequence[Candidate], seconds: float, *, at_ceiling: bool) -> tuple[list[Candidate], str | None]:
    """Return the settings that rounds measure, and if there are none, the reason.

    Args:
        chosen: what `choose` returned.
        seconds: time left for rounds.
        at_ceiling: whether the baseline is as fast as training without loading.
    """
    if at_ceiling:
        return [], "no setting could be noticeably faster than yours"
    if not chosen:
        return [], "there was no second setting to compare with"
    fitting = fit_into(chosen, seconds)
    need_s = rounds_s(chosen[:2])
    return fitting, None if fitting else f"the time left was too short for {MIN_ROUNDS} rounds, which take at least {need_s:.0f} s (--time-budget)"


def rounds_time_s(finalists: Sequence[Candidate], time_budget_s: float) -> float:
    """Return the seconds to keep for MIN_ROUNDS rounds: at most half of the budget; 0 if not even two settings fit."""
    most = BUDGET_FRACTION * time_budget_s
    kept = fit_into(finalists, most)
    return min(rounds_s(kept), most)
