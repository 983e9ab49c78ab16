"""What is still open when a search gives its answer, and the command that settles it: firm statements need firm numbers.

feedrate says "no faster setting was found" or "the training step is the limit" only if nothing of this is open.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from feedrate.analysis.command_line import extended, without
from feedrate.analysis.rounds import DISTURBED_FRACTION, MIN_ROUNDS, TIED_FRACTION
from feedrate.analysis.run import Run
from feedrate.analysis.summary import may_win, same
from feedrate.analysis.verdict import changing

WIDE_FRACTION = 0.1
"""Half-width of an interval, as a fraction of the rate, from which a rate counts as uncertain: people change a loader for gains of a
tenth, and a trial on a quiet machine determines a rate to 3 to 7 %."""
BUSY_FRACTION = DISTURBED_FRACTION
"""Share of CPU or GPU time taken by others from which a rate says little about a quiet machine: it changes rates as much as gains do."""
MOST_NAMED = 3
LONGER = 3
"""Factor by which the printed command lengthens trials if rates were still changing."""

LONGER_TRIALS, QUIET, ROUNDS = "longer-trials", "quiet-machine", "rounds"
"""The ways to settle a doubt."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """One thing that is open."""

    text: str
    """A clause for people."""
    settle: str
    """LONGER_TRIALS, QUIET or ROUNDS."""


def doubts(run: Run, ranked: pd.DataFrame, chosen: pd.Series[Any], *, confirmed: bool, at_ceiling: bool) -> list[Doubt]:
    """Return what makes the answer uncertain, the most important first.

    Args:
        run: the result of `load_run`.
        ranked: `summary.ranking(run)`.
        chosen: the row of the answer.
        confirmed: whether rounds decided.
        at_ceiling: whether the answer is known to train as fast as the training step alone; then rounds could not show a gain.
    """
    rows = ranked[(ranked["status"] == "complete") & may_win(run, ranked)]
    here = rows[same(rows["batch_size"], chosen["batch_size"])]
    decisive = here[(here["config"] == chosen["config"]) | here["is_baseline"]]
    others = rows[~rows["config"].isin(decisive["config"])]
    rivals = others[others["throughput_high_sps"] > chosen["throughput_sps"] * (1 + TIED_FRACTION)]
    faster = rivals[same(rivals["batch_size"], chosen["batch_size"]) & (rivals["throughput_sps"] > chosen["throughput_sps"])]
    found = [
        *_changing(pd.concat([decisive, rivals])),
        *_busy(here[here["num_rounds"] >= MIN_ROUNDS] if confirmed else here),
        *_wide(pd.concat([decisive, faster])),
        *_faster(rivals, chosen, confirmed=confirmed),
    ]
    if not confirmed and not at_ceiling and len(rows) > 1:
        found.append(Doubt("no setting was measured again in rounds", ROUNDS))
    return found


def _changing(rows: pd.DataFrame) -> list[Doubt]:
    """Return a doubt about rates that had not stopped changing when their trials ended."""
    changed = rows[rows["change_fraction"].fillna(0.0) != 0]
    names = [f"the rate of {row['config']} was {changing(row['change_fraction'])}" for _, row in changed.head(MOST_NAMED).iterrows()]
    when = "its trial" if len(names) == 1 else "their trials"
    return [Doubt(f"{' and '.join(names)} at the end of {when}", LONGER_TRIALS)] if names else []


def _busy(rows: pd.DataFrame) -> list[Doubt]:
    """Return a doubt if others used the machine while the compared settings were measured."""
    most = rows["load_fraction"].max()
    if pd.isna(most) or most < BUSY_FRACTION:
        return []
    return [Doubt(f"other processes used up to {most:.0%} of the machine while the settings were measured", QUIET)]


def _wide(rows: pd.DataFrame) -> list[Doubt]:
    """Return a doubt about rates with wide intervals."""
    half = (rows["throughput_high_sps"] - rows["throughput_low_sps"]) / 2 / rows["throughput_sps"]
    wide = [f"{config} by ±{min(each, 9.99):.0%}" for config, each in zip(rows["config"], half, strict=True) if each >= WIDE_FRACTION]
    return [Doubt(f"rates are uncertain ({', '.join(wide[:MOST_NAMED])})", ROUNDS)] if wide else []


def _faster(rivals: pd.DataFrame, chosen: pd.Series[Any], *, confirmed: bool) -> list[Doubt]:
    """Return a doubt about settings whose interval is above that of a confirmed answer, but that were in too few rounds to count."""
    few = rivals["num_rounds"] < MIN_ROUNDS if confirmed else rivals["num_rounds"] < 0
    surely = rivals[few & (rivals["throughput_low_sps"] > chosen["throughput_high_sps"])].head(MOST_NAMED)
    if surely.empty:
        return []
    rates = " and ".join(f"{row['config']} ({row['throughput_sps']:,.0f}/s)" for _, row in surely.iterrows())
    return [Doubt(f"{rates} {'was' if len(surely) == 1 else 'were'} faster in a trial, but rounds have not confirmed it yet", ROUNDS)]


def what_settles(found: Sequence[Doubt]) -> str | None:
    """Return the first of LONGER_TRIALS, QUIET and ROUNDS that settles one of the doubts; None if there are none."""
    kinds = {each.settle for each in found}
    return next((kind for kind in (LONGER_TRIALS, QUIET, ROUNDS) if kind in kinds), None)


def settle_command(settle: str, search: Mapping[str, Any], trials: pd.DataFrame, resume: str) -> str:
    """Return the complete command that settles what is open.

    Args:
        settle: the result of `what_settles`.
        search: the content of search.json.
        trials: `Run.latest`, from which the duration of trials is taken.
        resume: the beginning of the command that continues the run: feedrate resume FOLDER.
    """
    if settle == LONGER_TRIALS:
        return _again(search)
    spent_s = (trials["finished_unix_s"] - trials["started_unix_s"]).median()
    num_settings = min(max(trials["config"].nunique(), 2), 5)
    # while the driver may still try settings, it reserves at most half of the time budget for rounds
    needed_s = 2.2 * MIN_ROUNDS * num_settings * (20.0 if math.isnan(spent_s) else spent_s)
    confirm = "" if (search.get("options") or {}).get("confirm", True) else " --confirm"
    return f"{resume} --time-budget {math.ceil(max(needed_s, 60.0) / 60)}m{confirm}"


def more_trials_command(search: Mapping[str, Any], num_tried: int, resume: str) -> str:
    """Return the complete command that tries further settings; the arguments are as for `settle_command`."""
    limit = (search.get("options") or {}).get("max_trials")
    return resume if limit is None or num_tried < limit else f"{resume} --max-trials {num_tried + 10}"


def _again(search: Mapping[str, Any]) -> str:
    """Return the command that repeats the search with longer trials."""
    options = search.get("options") or {}
    trial_s = LONGER * options.get("max_trial_s", 20.0)
    rounds_s = 2.2 * MIN_ROUNDS * 2 * trial_s  # of the answer and the baseline; the driver reserves at most half of the time budget for rounds
    budget_s = max(LONGER * options.get("time_budget_s", 300.0), math.ceil(rounds_s / 60) * 60)
    argv = [str(word) for word in search.get("argv") or ()]
    argv = argv[1:] if argv[:1] == ["feedrate"] else argv
    if not argv:
        return f"run_search(..., options=SearchOptions(max_trial_s={trial_s:g}, time_budget_s={budget_s:g}))"
    words = without(argv, ("--max-trial-s", "--time-budget", "--out", "--max-trials"), switches=("--force", "--no-confirm"))
    return shlex.join(["feedrate", *extended(words, "--max-trial-s", f"{trial_s:g}", "--time-budget", f"{budget_s:g}s")])

