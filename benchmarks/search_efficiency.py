"""How good are answers, and how soon? Searches replayed on landscapes, without Ray or a machine, many seeds each.

    python benchmarks/search_efficiency.py --seeds 200 benchmarks/landscapes/*.parquet
    python benchmarks/search_efficiency.py --seeds 20 --made-up
    python benchmarks/search_efficiency.py benchmarks/landscapes/*.parquet --methods "(told the best six)" --at 0.05 0.1 0.2 0.5 1

Time is counted in fractions of what the whole grid takes, three times each. Columns, over the seeds:

    truth     true rate of the answer as a fraction of the grid's best, mean
    off       share of searches whose answer is more than 2 % behind the best
    time      when the search ended by itself, or (methods without an end) 10 % of the grid's time, or a fraction of --at
    claimed   mean of |claimed gain / true gain - 1|
    98 %      time after which the best setting so far is 98 % or more of the grid's best on average, and in at most 5 % of the
              searches more than 2 % off; - where it never is
"""

from __future__ import annotations

import argparse
import io
import logging
import math
import shutil
import statistics
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import landscape as landscapes
import numpy as np
from landscape import MADE_UP, Landscape, columns_of, cut
from peers import (
    Answer,
    Method,
    at_random,
    bisection,
    cpu_count,
    grid,
    one_by_one,
    plain_tpe,
    rules,
    stock,
    told_the_best,
)
from rich.console import Console

from feedrate.analysis.run_folder import RunFolder
from feedrate.search.engine.reservation import Placement
from feedrate.search.options import ENOUGH_FRACTION, LOOKS, SearchOptions
from feedrate.search.record import SearchedWorkload, SearchRecord
from feedrate.search.result import conclude
from feedrate.search.session.display import Display
from feedrate.search.session.finalists import leading
from feedrate.search.session.session import Session
from feedrate.search.setup.request import baseline_configs, seed_configs
from feedrate.search.space.search_space import Choice, SearchSpace
from feedrate.search.study.brain import Brain
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.resolve import WorkloadRef

UNTIL = 0.1
"""Methods without an end of their own are judged after this fraction of the grid's time."""


def space_of(landscape: Landscape) -> SearchSpace:
    """The grid as a search space."""
    given = {name: Choice(tuple(landscape.values(name))) for name in ("num_workers", "batch_size", "prefetch_factor")}
    return SearchSpace.default(
        num_cpus=landscape.num_cpus, has_accelerator=False, given=given | {"persistent_workers": Choice((True,))}
    )


def feedrate(sampler: str, *, of_grid: float = math.inf, **options: Any) -> Method:
    """The search of this repository, as it runs under Ray, but for Ray; its time budget is `of_grid` of the grid's time."""

    def run(landscape: Landscape, seed: int) -> Iterator[Answer]:
        rng = np.random.default_rng([seed, 1])
        folder = RunFolder(tempfile.mkdtemp(prefix="feedrate-replay-", dir="/dev/shm"))
        began_s, now = rng.uniform(0, landscape.drift.length_s), [0.0]
        try:
            space = space_of(landscape)
            asked = SearchOptions(**{"time_budget_s": min(of_grid * landscape.grid_s, 1e6), "sampler": sampler, "seed": seed} | options)
            baseline = landscape.baseline
            workload = SearchedWorkload(ref=WorkloadRef(target="landscape"), name="landscape")
            SearchRecord(study="s", workload=workload, created_unix_s=0.0, space=space, baseline=baseline, options=asked).write(folder)
            session = Session(
                brain=Brain.open(None, folder.journal, study_name="s", space=space, seed=seed, sampler=sampler),
                folder=folder,
                options=asked,
                study="s",
                baselines=baseline_configs(baseline, space.values("batch_size")),
                seeds=seed_configs(baseline, Placement(cpus=landscape.num_cpus, gpus=0, trial_slot=False, num_slots=1, where=""), space),
                epoch_samples=None,
                display=Display(Console(file=io.StringIO()), time_budget_s=1.0, quiet=True),
                clock=lambda: now[0],
            )
            while (request := session.next()) is not None:
                if request.kind == "confirm":
                    assert session.confirmation is not None
                    for position, config in enumerate(request.configs):
                        point = landscape.at(config)
                        now[0] += point.spent_s
                        sps = landscape.measure(config, rng, began_s + now[0])
                        columns = columns_of(landscape, config, sps, rng, step_only=False, num_windows=point.num_windows)
                        session.confirmation.measured(request.number, position, columns, None)
                    session.confirmation.over(request.number)
                    continue
                config = request.config
                point = landscape.at(config)
                num_windows, spent_s = point.cheaper(ENOUGH_FRACTION)
                sps = landscape.measure(config, rng, began_s + now[0], ENOUGH_FRACTION)
                columns = columns_of(landscape, config, sps, rng, step_only=request.measure_step, num_windows=num_windows)
                for look in LOOKS:
                    if look <= num_windows and session.should_stop(request.number, cut(columns, look)):
                        spent_s -= (num_windows - look) * point.window_s
                        columns = cut(columns, look)
                        break
                now[0] += spent_s
                session.completed(request.number, columns, None)
                known = session.measured()
                if known:
                    best_so_far = leading(known)
                    yours = next((each for each in known if each.is_baseline), best_so_far)
                    yield Answer(now[0], best_so_far.config, best_so_far.rate.sps / yours.rate.sps, yours.config)
            best = conclude(folder, session.stop_reason).best
            assert best is not None
            answer = LoaderConfig.from_dict({"batch_size": None, **best["dataloader"]})
            yours = best["baseline"] or {"dataloader": best["dataloader"], "speedup": 1.0}
            yield Answer(now[0], answer, yours["speedup"], LoaderConfig.from_dict({"batch_size": None, **yours["dataloader"]}))
        finally:
            shutil.rmtree(folder.path)

    return run


METHODS: dict[str, Method] = {
    "feedrate": feedrate("gp"),
    "feedrate, 10 % of the grid": feedrate("gp", of_grid=UNTIL),
    "feedrate --sampler tpe": feedrate("tpe"),
    "feedrate --sampler random": feedrate("random"),
    "Tune + OptunaSearch": stock,
    "Optuna TPE, multivariate": plain_tpe,
    "random": at_random,
    "grid": grid,
    "one factor at a time": one_by_one,
    "golden section on workers": bisection,
    "rules of thumb, best of": rules,
    "workers = CPUs": cpu_count,
    "(told the best six)": told_the_best,
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """One search: its answers over time, against the truth."""

    times: list[float]
    """Fractions of the grid's time."""
    truths: list[float]
    claims: list[float]
    """claimed gain / true gain - 1."""
    ended: bool
    """The method has an end of its own."""


def outcome(landscape: Landscape, method: Method, seed: int) -> Outcome:
    """Run a method to its end, or to the time of one whole grid."""
    best = landscape.best.sps
    answers, ended = [], True
    for answer in method(landscape, seed):
        if answer.elapsed_s > landscape.grid_s:
            ended = False
            break
        answers.append(answer)
    truths, claims = [], []
    for answer in answers:
        sps = landscape.at(answer.config).sps
        yours = landscape.at(answer.against).sps
        truths.append(sps / best)
        claims.append(answer.claimed / (sps / yours) - 1)
    return Outcome([answer.elapsed_s / landscape.grid_s for answer in answers], truths, claims, ended)


def at_time(each: Outcome, time: float) -> int:
    """Index of the answer that stands at a time; the first one before there is any."""
    return max(int(np.searchsorted(each.times, time, side="right")) - 1, 0)


def report(landscape: Landscape, method: str, outcomes: list[Outcome], at: float | None = None) -> str:
    """One line of the table; `at` judges the answers that stand then, a fraction of the grid's time."""
    last = [at_time(each, at or UNTIL) if at is not None or not each.ended else len(each.times) - 1 for each in outcomes]
    truths = [each.truths[index] for each, index in zip(outcomes, last, strict=True)]
    claims = [abs(each.claims[index]) for each, index in zip(outcomes, last, strict=True)]
    times = [each.times[index] for each, index in zip(outcomes, last, strict=True)]
    reached = "-"
    for time in sorted({*np.linspace(0.005, 1.0, 200).tolist(), max(times)}):
        now = [each.truths[at_time(each, time)] if each.times[0] <= time else 0.0 for each in outcomes]
        if statistics.fmean(now) >= 0.98 and sum(truth < 0.98 for truth in now) <= 0.05 * len(now):
            reached = f"{time:.1%}"
            break
    off = sum(truth < 0.98 for truth in truths) / len(truths)
    return (
        f"{landscape.name:14}{method:28}{statistics.fmean(truths):>8.1%}{off:>8.1%}{statistics.fmean(times):>8.1%}"
        f"{statistics.fmean(claims):>9.1%}{reached:>8}"
    )


def main() -> None:
    """Replay and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("landscapes", nargs="*", type=Path, metavar="FILE", help="Parquet files of record_landscape.py")
    parser.add_argument("--made-up", action="store_true", help="made-up worlds too")
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), metavar="NAME")
    parser.add_argument("--at", type=float, nargs="*", default=[None], metavar="FRACTION", help="judge after these fractions of the grid's time")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(f"{'landscape':14}{'method':28}{'truth':>8}{'off':>8}{'time':>8}{'claimed':>9}{'98 %':>8}")
    worlds = [*map(landscapes.read, args.landscapes), *(MADE_UP if args.made_up else ())]
    for world in worlds:
        for method in args.methods:
            outcomes = [outcome(world, METHODS[method], seed) for seed in range(args.seeds)]
            for at in args.at:
                print(report(world, method, outcomes, at), flush=True)


if __name__ == "__main__":
    main()
