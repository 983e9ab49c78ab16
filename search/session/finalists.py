"""Who is measured again before a search answers, in which order, and when that is enough. Neither Ray nor Optuna.

The best of many noisy readings is flattered by luck, so that the finalists and the baseline are measured again in
interleaved rounds (analysis/rounds.py), and only those rounds decide. A crash loses the round that was under way; what
was recorded is counted when the search is resumed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from feedrate.analysis.disqualified import NOTHING, Disqualified
from feedrate.analysis.estimate import LEAST_HEADROOM_FRACTION, Rate, gpu_headroom_fraction, record_change, record_rate
from feedrate.analysis.rounds import MIN_ROUNDS, TIED_FRACTION, Comparison, Finalist, out_soon, standing
from feedrate.analysis.schema import status
from feedrate.search.study.surrogate import improvement
from feedrate.trainables.config import LoaderConfig

MAX_FINALISTS = 4
"""Beside the baseline."""
MAX_ROUNDS = 6
MAX_REPEATED = 4
"""Rounds that may be repeated because other processes disturbed them."""
SPEEDUP_HALF_WIDTH = 0.04
"""Half of a speed-up's interval, as a fraction, at which the baseline has been measured well enough."""
WORTH_A_ROUND_FRACTION = 0.005
"""What another round may bring, expected over what is not known yet, as a fraction of the rate."""
BUDGET_FRACTION = 0.5
"""Share of the time budget that is kept for rounds, at most."""
FAR = 3.0
"""A baseline this many times slower, for sure, is measured only for the speed-up over it: with one rival, and less often."""
GAIN_HALF_WIDTH_FRACTION = 0.05
"""Half of a speed-up's interval that is enough, as a fraction of it, both as logarithms: nobody asks whether it is 12 or 13 times."""


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
    """Of the accelerator's memory; None on a CPU."""
    is_changing: bool = False
    """Its rate was still rising or falling when the trial ended: nothing is concluded from it."""

    @property
    def name(self) -> str:
        """As the analysis names it."""
        return self.config.short()

    @property
    def cost(self) -> tuple[float, ...]:
        """Compared in order: workers, batches in flight for each, memory."""
        return (self.config.num_workers, self.config.prefetch_factor or 0, self.memory_bytes)

    @property
    def finalist(self) -> Finalist:
        """As the analysis knows it."""
        return Finalist(name=self.name, batch_size=self.config.batch_size, cost=self.cost)


def candidate_of(record: dict[str, Any], objective: str) -> Candidate | None:
    """The setting of a record; None unless a search trial measured it to its end."""
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
    """Whether a baseline is more than FAR times slower, for sure."""
    return baseline.rate.high_sps * FAR < best.rate.low_sps


def stand_ins(candidates: Sequence[Candidate], untried: Sequence[LoaderConfig], max_trial_s: float) -> list[Candidate]:
    """The baselines of batch sizes at which none was tried, because yours is far behind: known by yours until rounds measure them.

    Args:
        candidates: measured settings.
        untried: those that were not tried.
        max_trial_s: what a trial takes at most; without workers its time is that of its batches.
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
    """The finalists, the most important first: the surest, yours at its batch size, the cheapest that may be as good, then the fastest readings.

    Args:
        candidates: measured settings.
        disqualified: settings that repeat data and cannot be the answer.
        untried, max_trial_s: as for `stand_ins`.

    Returns:
        Empty where there is nothing to compare: no setting, or the baseline alone.
    """
    candidates = [*candidates, *stand_ins(candidates, untried, max_trial_s)]
    allowed = able(candidates, disqualified)
    if not allowed:
        return []
    surest = max(allowed, key=lambda each: each.rate.low_sps)
    rivals = [each for each in allowed if each.rate.high_sps >= surest.rate.low_sps and each is not surest]
    fastest = sorted(rivals, key=lambda each: -each.rate.sps)
    near = [
        each
        for each in rivals
        if each.config.batch_size == surest.config.batch_size
        and each.cost < surest.cost
        and each.rate.sps >= surest.rate.sps * (1 - 1.5 * TIED_FRACTION)
    ]
    cheapest = sorted(near, key=lambda each: each.cost)
    yours = [each for each in candidates if each.is_baseline and _same_size(each, surest) and each is not surest]
    chosen = [surest, *yours]
    if surest.is_baseline and not fastest:  # that nothing is faster than yours is confirmed too
        fastest = sorted((each for each in allowed if each is not surest), key=lambda each: -each.rate.sps)[:1]
    for group in (cheapest[:1], fastest[:1], cheapest[1:2], fastest[1:]):
        for each in group:
            if each not in chosen and sum(not other.is_baseline for other in chosen) < MAX_FINALISTS:
                chosen.append(each)
    # yours at the batch sizes of rivals: should one of those win, its speed-up is a difference inside rounds, too
    sizes = {each.config.batch_size for each in chosen}
    chosen += [each for each in candidates if each.is_baseline and each.config.batch_size in sizes and each not in chosen]
    return chosen if len(chosen) > 1 else []


def able(candidates: Sequence[Candidate], disqualified: Disqualified) -> list[Candidate]:
    """Those that may be the answer: no repeated data, and memory of the accelerator left."""
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
    """The settings of round `number` (1, 2, ... of this confirmation) in the order to measure them; empty when there is nothing more to learn.

    Odd rounds are in random order, even ones in the reverse of the one before, so that a drift of the machine falls on
    all alike (ABBA).

    Args:
        finalists: as `choose` gives them, without those that failed.
        comparison: of the rounds so far.
        number: of the round.
        seed: of the order.
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
        # of those far behind the one at the leader's size, once there is a leader
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
    """Those of the finalists that are far behind the best one, as their trials say."""
    best = max(finalists, key=lambda each: each.rate.low_sps)
    return [each for each in finalists if each.is_baseline and is_far(each, best)]


def _rate_sps(comparison: Comparison, each: Candidate) -> float:
    """As rounds say, else as its trial does."""
    rate = comparison.rate(each.name)
    return each.rate.sps if rate is None else rate.sps


def _is_worth_a_round(comparison: Comparison, each: Candidate, answer: Candidate) -> bool:
    """Whether a setting may still turn out enough better than the answer; a cheaper one is, from TIED_FRACTION behind it on."""
    log, half = comparison.log_ratio(each.name, answer.name)
    if math.isinf(half):
        return True
    start = TIED_FRACTION if _same_size(each, answer) and each.cost < answer.cost else 0.0
    return bool(improvement(log + start, half / 2) >= WORTH_A_ROUND_FRACTION)


def rounds_s(finalists: Sequence[Candidate]) -> float:
    """What MIN_ROUNDS rounds take: of baselines far behind one is measured, and not in the first."""
    if not finalists:
        return 0.0
    far = far_baselines(finalists)
    others_s = sum(each.spent_s for each in finalists if each not in far)
    return MIN_ROUNDS * others_s + (MIN_ROUNDS - 1) * max((each.spent_s for each in far), default=0.0)


def fit_into(finalists: Sequence[Candidate], seconds: float) -> list[Candidate]:
    """As many of the finalists, the most important first, as MIN_ROUNDS rounds have time for; empty below two."""
    kept: list[Candidate] = []
    for each in finalists:
        if rounds_s([*kept, each]) <= seconds:
            kept.append(each)
    return kept if len(kept) > 1 else []


def for_rounds(chosen: Sequence[Candidate], seconds: float, *, at_ceiling: bool) -> tuple[list[Candidate], str | None]:
    """Whom rounds measure, and where they measure nobody, why.

    Args:
        chosen: as `choose` gives them.
        seconds: left for rounds.
        at_ceiling: the baseline is as fast as training without loading.
    """
    if at_ceiling:
        return [], "no setting could be noticeably faster than yours"
    if not chosen:
        return [], "there was no second setting to compare with"
    fitting = fit_into(chosen, seconds)
    need_s = rounds_s(chosen[:2])
    return fitting, None if fitting else f"the time left was too short for {MIN_ROUNDS} rounds, which take at least {need_s:.0f} s (--time-budget)"


def rounds_time_s(finalists: Sequence[Candidate], time_budget_s: float) -> float:
    """Time to keep for rounds: what MIN_ROUNDS of them take, at most half of the budget; 0 where not even two settings fit."""
    most = BUDGET_FRACTION * time_budget_s
    kept = fit_into(finalists, most)
    return min(rounds_s(kept), most)
