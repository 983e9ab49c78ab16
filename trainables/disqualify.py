"""`disqualified`: settings that are faster because they repeat data must not win a search.

The cheap part of `feedrate check`, which looks at a few samples before every search.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch.utils.data import DataLoader

from feedrate.trainables.failure import Failure
from feedrate.trainables.isolated import isolated
from feedrate.trainables.loading import own_loader
from feedrate.trainables.order_check import overlap
from feedrate.trainables.probe import Look, Parts, deliver, own_setting, parts_of
from feedrate.trainables.random_check import streams
from feedrate.trainables.static_check import owned_generators
from feedrate.trainables.workload import Workload

QUICK_S = 2.0
QUICK_SAMPLES = 8


def disqualified(workload: Workload, own: DataLoader[Any] | None = None) -> dict[str, Any]:
    """Whether more than one worker duplicates data, from a few samples and within about two seconds.

    Args:
        workload: of either form.
        own: the general form's loader, where it was built already.

    Returns:
        {"max_num_workers": 1 or None, "reason": a sentence or None}; None where nothing was demonstrated.
    """
    fine = {"max_num_workers": None, "reason": None}
    if own is None and not workload.is_short:
        own = own_loader(workload)
    parts = parts_of(workload, replace(own_setting(workload, own), num_workers=2), own)
    parts = replace(parts, multiprocessing_context="fork")  # what workers repeat does not depend on how they start
    reason = _repeats_samples(parts) if parts.iterable else _repeats_draws(parts)
    return fine if reason is None else {"max_num_workers": 1, "reason": reason}


def _repeats_samples(parts: Parts) -> str | None:
    look = Look(num_workers=2, num_samples=QUICK_SAMPLES, epochs=1, max_s=QUICK_S / 4, neutral=True)
    for each in (look, replace(look, neutral=False)):
        epochs = isolated(lambda each=each: deliver(parts, each), QUICK_S / 2)  # type: ignore[misc]
        if isinstance(epochs, Failure):
            return None
        share, num_different = overlap(epochs[0])
        if num_different > 1:
            if share < 1.0:
                return None
            return "every worker delivers the same samples: the iterable dataset is not divided among workers (get_worker_info())"
    return None


def _repeats_draws(parts: Parts) -> str | None:
    owned = owned_generators(parts.dataset)
    if not owned and parts.worker_init_fn is None:
        return None
    look = Look(num_workers=2, num_samples=QUICK_SAMPLES, epochs=1, same_index=True, generators=True)
    epochs = isolated(lambda: deliver(parts, look), QUICK_S)
    found = None if isinstance(epochs, Failure) else streams(epochs)
    if found is None or not found.duplicated:
        return None
    names = ", ".join(f"dataset.{name}" if name in owned else name for name in found.duplicated)
    return f"every worker draws the same random numbers from {names}, so that augmentations repeat"
