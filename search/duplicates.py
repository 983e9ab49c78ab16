"""Settings that are faster because they repeat data cannot win: what a search leaves out, and how it says so.

The evidence comes from trainables/disqualify.py, gathered before the search.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from feedrate.search.dimension import Choice, Dimension, Range
from feedrate.search.options import SearchOptions, UsageError
from feedrate.trainables.config import LoaderConfig


def disqualification(described: Mapping[str, Any], options: SearchOptions) -> dict[str, Any] | None:
    """{"max_num_workers", "reason"} for search.json; None where no setting duplicates data, or all were allowed."""
    data = described["data"]
    return None if options.allow_duplicates or data["max_num_workers"] is None else dict(data)


def restricted(given: Mapping[str, Dimension], disqualified: Mapping[str, Any] | None) -> dict[str, Dimension]:
    """The dimensions that were asked for, without the numbers of workers that duplicate data.

    Raises:
        UsageError: none is left.
    """
    if disqualified is None:
        return dict(given)
    most = disqualified["max_num_workers"]
    asked = given.get("num_workers")
    kept = tuple(range(most + 1)) if asked is None else tuple(value for value in asked.values if value <= most)
    if not kept:
        raise UsageError(
            f"nothing is left to search: with more than {most} worker, {disqualified['reason']}. Add 0 and {most} to "
            "--num-workers, or fix the dataset (feedrate check shows how), or search all the same with --allow-duplicates"
        )
    is_range = asked is None or isinstance(asked, Range)
    return {**given, "num_workers": Range(kept[0], kept[-1]) if is_range else Choice(kept)}


def remarks(
    disqualified: Mapping[str, Any] | None, described: Mapping[str, Any], options: SearchOptions
) -> list[str]:
    """One sentence for each thing done because of duplicated data; the reason itself is among the workload's notes."""
    if options.allow_duplicates:
        if described["data"]["max_num_workers"] is None:
            return ["--allow-duplicates has no effect: no setting was seen to repeat data"]
        return ["--allow-duplicates: settings that repeat data are searched, and their rates count what is repeated"]
    if disqualified is None:
        return []
    most = disqualified["max_num_workers"]
    said = [f"settings with more than {most} worker are left out, because they repeat data (--allow-duplicates keeps them)"]
    baseline = options.baseline or LoaderConfig.from_dict(described["baseline"] or {"batch_size": None})
    if baseline.num_workers > most:
        said.append(
            f"your own setting has {baseline.num_workers} workers: it is measured, but its rate counts repeated data, so that "
            "it cannot be the answer"
        )
    return said
