"""How many samples and batches an epoch has, how many drop_last drops, whether that depends on the number of workers, and whether the
batches hold anything.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader

from feedrate.trainables.checking.order_check import by_worker, is_whole
from feedrate.trainables.failure import Failure
from feedrate.trainables.loader.epoch_size import num_indices
from feedrate.trainables.probing.finding import Finding
from feedrate.trainables.probing.probe import Epoch, Parts, samples_of
from feedrate.trainables.probing.survey import Survey
from feedrate.trainables.step import holds_nothing

COUNT_LIMIT_S = 5.0
LEAST_BATCHES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochCount:
    """The size of one epoch of the user's own sampler."""

    num_trained: int
    num_batches: int
    last_batch: int
    """Number of samples in the last batch."""


def counts(counted: EpochCount | Failure, survey: Survey) -> list[Finding]:
    """Report how many of the dataset's samples an epoch trains; for a map-style dataset, workers do not change this.

    Args:
        counted: the result of `count`; a failure if the sampler did not end in time.
        survey: of a map-style dataset.
    """
    if survey.dataset_samples is None:
        return []
    if isinstance(counted, Failure):  # the sampler is endless or slow
        return [Finding(name="sample-count", level="note", sentence="the sampler does not end, or not within a few seconds")]
    total, trained, num_batches, last = survey.dataset_samples, counted.num_trained, counted.num_batches, counted.last_batch
    evidence = {"num_samples": total, "num_trained": trained, "num_batches": num_batches, "last_batch": last}
    if trained == total:
        words = f"an epoch has all {total:,} samples, in {num_batches:,} batches, the last one with {last}"
        return [Finding(name="sample-count", level="ok", sentence=words, evidence=evidence)]
    words = f"an epoch trains {trained:,} of {total:,} samples"
    words += (
        ": drop_last leaves the last batch out"
        if survey.drop_last and total - trained < (survey.batch_size or 1)
        else ": the sampler decides"
    )
    return [
        Finding(name="sample-count", level="note", sentence=f"{words}, with every number of workers", evidence=evidence)
    ]


def count(parts: Parts) -> EpochCount:
    """Draw one epoch of indices from the sampler and count them. Call it through `isolated`, because a sampler may be endless."""
    trained = num_batches = last = 0
    for batch in parts.batch_sampler if parts.batch_sampler is not None else parts.sampler:
        last = num_indices(batch)
        trained, num_batches = trained + last, num_batches + 1
    return EpochCount(num_trained=trained, num_batches=num_batches, last_batch=last)


def num_empty(parts: Parts, num_samples: int, max_s: float) -> int:
    """Return how many of the loader's first batches hold nothing; 0 if one of them holds something, which ends the reading.

    collate_fn makes the batches, without workers. Run it in `isolated`.

    Args:
        parts: of the user's loader.
        num_samples: about this many samples are read. Batches are smaller than the user's if that gives LEAST_BATCHES batches;
            a batch sampler of the user's decides itself.
        max_s: after this time no further batch is read.
    """
    size = parts.batch_size and max(min(parts.batch_size, num_samples // LEAST_BATCHES), 1)
    order: dict[str, Any] = {"batch_size": size}
    if not parts.iterable and size is None and parts.batch_sampler is not None:
        order = {"batch_sampler": parts.batch_sampler}
    elif not parts.iterable:
        order |= {"sampler": parts.sampler}
    loader: DataLoader[Any] = DataLoader(parts.dataset, collate_fn=parts.collate_fn, generator=parts.generator, **order)
    until_s, number = time.monotonic() + max_s, 0
    for batch in itertools.islice(loader, max(LEAST_BATCHES, num_samples // (size or 1))):
        if not holds_nothing(batch):
            return 0
        number += 1
        if time.monotonic() > until_s:
            break
    return number


def empty_batches(number: int | Failure | None) -> list[Finding]:
    """Report that the first batches hold nothing, so that a training step trains on nothing; `number` is the result of `num_empty`."""
    if not isinstance(number, int) or not number:
        return []
    which = f"the first {number:,} batches hold nothing: each is" if number > 1 else "the first batch holds nothing: it is"
    sentence = f"{which} None or empty after collate_fn, so a training step trains on nothing"
    fix = "find out why the dataset or collate_fn drops every sample: an exception that it hides, a wrong path, a filter"
    return [Finding(name="batches", level="error", sentence=sentence, fix=fix, evidence={"num_empty": number})]


def stream_counts(survey: Survey, alone: Epoch, shared: Epoch, num_workers: int) -> list[Finding]:
    """Report the number of samples and batches of an iterable dataset: each worker forms its own batches, so workers change it."""
    found = []
    size = survey.batch_size or 1
    says, gave = survey.dataset_samples, len(samples_of(alone))
    if says is not None and is_whole(alone, 0) and says != gave:
        words = f"len(dataset) is {says:,}, but the stream delivers {gave:,} samples"
        found.append(
            Finding(name="sample-count", level="warning", sentence=words, fix="correct __len__, or leave it out")
        )
    counts = [len(each) for each in by_worker(shared).values()]
    evidence: dict[str, Any] = {"samples_of_each_worker": counts, "batch_size": size, "drop_last": survey.drop_last}
    if size == 1:
        return [
            *found,
            Finding(name="sample-count", level="ok", sentence="batches are single samples", evidence=evidence),
        ]
    words = "the last batch of every worker may be incomplete"
    if not (is_whole(alone, 0) and is_whole(shared, num_workers)):
        words += f": up to {num_workers} with {num_workers} workers"
        words += ", which drop_last leaves out" if survey.drop_last else ""
        return [*found, Finding(name="sample-count", level="note", sentence=words, evidence=evidence)]
    if survey.drop_last:
        lost, lost_alone = sum(count % size for count in counts), gave % size
        evidence |= {"num_dropped": {"0 workers": lost_alone, f"{num_workers} workers": lost}}
        words += f", and drop_last leaves it out, which loses {lost} of {sum(counts):,} samples with {num_workers} workers, {lost_alone} with 0"
        level, fix = (
            ("warning", "drop_last=False, or divide the stream into parts of whole batches")
            if lost > lost_alone
            else ("ok", None)
        )
    else:
        batches = {"0 workers": -(-gave // size), f"{num_workers} workers": sum(-(-count // size) for count in counts)}
        evidence |= {"num_batches": batches}
        words += ": an epoch has " + ", ".join(f"{number:,} batches with {name}" for name, number in batches.items())
        level, fix = ("note" if len(set(batches.values())) > 1 else "ok"), None
    return [*found, Finding(name="sample-count", level=level, sentence=words, fix=fix, evidence=evidence)]
