"""Settings that repeat data, and are fast for that reason, cannot win: which of them a search leaves out, and what it prints about them.

The evidence comes from trainables/checking/disqualify.py and is gathered before the search.
"""

from __future__ import annotations

from collections.abc import Mapping

from feedrate.analysis.disqualified import NOTHING, Disqualified, plural_workers
from feedrate.search.options import SearchOptions, UsageError
from feedrate.search.space.dimension import Choice, Dimension, Range
from feedrate.trainables.checking.described import Described

WAY_OUT = "or fix the dataset (feedrate check shows how), or search anyway with --allow-duplicates"


def disqualification(described: Described, options: SearchOptions) -> Disqualified:
    """Return the settings that the search leaves out: none if no setting repeats data, or with --allow-duplicates."""
    return NOTHING if options.allow_duplicates else Disqualified.from_json(described.data.to_json())


def restricted(given: Mapping[str, Dimension], disqualified: Disqualified) -> dict[str, Dimension]:
    """Return the requested dimensions without the values that repeat data.

    Raises:
        UsageError: no value is left.
    """
    return _persistent_workers(_num_workers(dict(given), disqualified), disqualified)


def _num_workers(given: dict[str, Dimension], disqualified: Disqualified) -> dict[str, Dimension]:
    most = disqualified.max_num_workers
    if most is None:
        return given
    asked = given.get("num_workers")
    kept = tuple(range(most + 1)) if asked is None else tuple(value for value in asked.values if value <= most)
    if not kept:
        few = "0 and 1" if most else "0"
        raise UsageError(
            f"nothing is left to search: with {plural_workers(most)}, {disqualified.reason}. Add {few} to --num-workers, {WAY_OUT}"
        )
    is_range = asked is None or isinstance(asked, Range)
    return {**given, "num_workers": Range(kept[0], kept[-1]) if is_range else Choice(kept)}


def _persistent_workers(given: dict[str, Dimension], disqualified: Disqualified) -> dict[str, Dimension]:
    only, workers = disqualified.persistent_workers, given.get("num_workers")
    if only is None or (workers is not None and workers.values == (0,)):
        return given
    asked = given.get("persistent_workers")
    if asked is not None and only not in asked.values:
        raise UsageError(
            f"nothing is left to search: with persistent_workers={not only}, {disqualified.epochs_reason}. Leave "
            f"--persistent-workers out, {WAY_OUT}"
        )
    return {**given, "persistent_workers": Choice((only,))}


def remarks(disqualified: Disqualified, described: Described, options: SearchOptions) -> list[str]:
    """Return one sentence for each effect of repeated data on the search; the reasons are among the workload's notes."""
    if options.allow_duplicates:
        if Disqualified.from_json(described.data.to_json()).is_nothing:
            return ["--allow-duplicates has no effect: no setting was seen to repeat data"]
        return ["--allow-duplicates: settings that repeat data are searched, and their rates count the repeated samples"]
    said = [
        f"{which} are left out, because they repeat data (--allow-duplicates keeps them)"
        for which, _ in disqualified.in_words()
    ]
    baseline = options.baseline or described.own
    own = f"your own setting has {baseline.num_workers} worker{'s' * (baseline.num_workers != 1)}"
    if disqualified.max_num_workers is not None and baseline.num_workers > disqualified.max_num_workers:
        said.append(f"{own}: it is measured, but its rate counts repeated data, so it cannot be the answer")
    elif not disqualified.allows(baseline.num_workers, baseline.persistent_workers):
        said.append(
            f"{own} and persistent_workers={baseline.persistent_workers}: it repeats the first epoch. It is measured for comparison, "
            "but cannot be the answer"
        )
    return said
