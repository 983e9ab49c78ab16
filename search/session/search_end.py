"""When a search stops trying settings: nothing is left to gain, or trials keep failing. Plain functions of the measurements."""

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
"""Least number of finished settings before the expected gain may end a search."""
WORTH_FRACTION = 0.01
"""Least expected gain, as a fraction of the best rate, for which another trial is worth its time."""
AT_CEILING_FRACTION = 0.03
"""A search ends if the ceiling is above the best rate by no more than this fraction of it."""


def same_failures(records: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a sentence if the last SAME_FAILURES settings failed for one reason, so that the workload must be broken; else None."""
    last = [reason_of(record) for record in records[-SAME_FAILURES:]]
    if len(last) < SAME_FAILURES or last[0] is None or len(set(last)) > 1:
        return None
    return f"the last {SAME_FAILURES} settings failed for the same reason"


def reason_of(record: Mapping[str, Any]) -> str | None:
    """Return why a trial failed, or None if it did not fail.

    The reason is the message without its numbers (samples, processes, seconds), which may differ although the reason is the same.
    If the setting does not fit this host, the sizes stay in the message.
    """
    message = record.get("failure_message")
    if message is None or record.get("failure_kind") in INFEASIBLE:
        return message
    return re.sub(r"\d+", "#", message)


def nothing_to_gain(expected_gain: float | None, num_told: int) -> str | None:
    """Return a sentence if another trial is not worth its time, else None.

    Args:
        expected_gain: expected gain of the most promising untried setting, as a fraction; None if it is not known.
        num_told: number of settings that have finished.
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
    """Return a sentence if the best setting is as fast as training without loading at any batch size, so that none can be faster.

    Args:
        best: the best measured setting.
        surely_sps: a cautious estimate of its rate, in items per second, because a single measurement may be lucky.
        ceilings: batch size -> items per second of the training step alone, for the sizes at which it is known (ceilings.py).
        batch_sizes: all batch sizes that are searched.
        waiting: the settings that will be measured next. If one of them needs fewer workers than the best, the search
            continues, because that setting may be as fast.
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
