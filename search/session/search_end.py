"""When there is nothing left to gain by trying further settings, or no use in it. Plain functions of what was measured."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from feedrate.search.session.finalists import Candidate
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import INFEASIBLE

EXHAUSTED = "every setting of the space has been tried"
SAME_FAILURES = 8
LEAST_TOLD = 6
"""Settings tried before what another one may gain is judged."""
WORTH_FRACTION = 0.01
"""A trial that is expected to gain less, as a fraction of the best rate, is not worth its time."""
AT_CEILING_FRACTION = 0.03
"""Less than this to gain, as a fraction of the best rate, ends a search."""


def same_failures(records: Sequence[Mapping[str, Any]]) -> str | None:
    """That the last settings all failed alike: the workload is broken, not its settings."""
    last = [reason_of(record) for record in records[-SAME_FAILURES:]]
    if len(last) < SAME_FAILURES or last[0] is None or len(set(last)) > 1:
        return None
    return f"the last {SAME_FAILURES} settings failed for the same reason"


def reason_of(record: Mapping[str, Any]) -> str | None:
    """Return why a trial failed, None where it did not: the message without its numbers of samples, processes and seconds, which
    differ where the reason does not. Sizes that do not fit this host stay in it."""
    message = record.get("failure_message")
    if message is None or record.get("failure_kind") in INFEASIBLE:
        return message
    return re.sub(r"\d+", "#", message)


def nothing_to_gain(expected_gain: float | None, num_told: int) -> str | None:
    """That another trial is not worth its time.

    Args:
        expected_gain: of the most promising untried setting, as a fraction; None where it is not known.
        num_told: settings tried so far.
    """
    if expected_gain is None or num_told < LEAST_TOLD or expected_gain >= WORTH_FRACTION:
        return None
    return f"another trial is expected to gain less than {WORTH_FRACTION:.0%}"


def at_ceiling(
    best: Candidate | None,
    surely_sps: float,
    ceilings: Mapping[int | None, float],
    batch_sizes: Collection[int | None],
    waiting: Iterable[LoaderConfig],
) -> str | None:
    """That the best setting is as fast as training without loading, whatever the batch size: none can be faster.

    Args:
        best: the setting that was measured best.
        surely_sps: what it trains at least, in items per second; a single reading may be lucky.
        ceilings: batch size -> items per second of the training step alone, where that is known (ceilings.py).
        batch_sizes: all that are searched.
        waiting: what will be measured next; while something among it needs fewer workers than the best, the search
            goes on, as that may do as well.
    """
    if best is None or best.is_changing or not set(batch_sizes) <= ceilings.keys():
        return None
    ceiling_sps = max(ceilings[size] for size in batch_sizes)
    if ceiling_sps > surely_sps * (1 + AT_CEILING_FRACTION):
        return None
    if any(config.num_workers < best.config.num_workers for config in waiting):
        return None
    share = min(best.rate.sps / ceiling_sps, 1.0)
    return f"{best.name} trains at {share:.0%} of the rate without any loading: compute-bound, no loader setting can be faster"
