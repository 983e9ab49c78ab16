"""How many samples and batches an epoch has, how many drop_last drops, and whether that depends on the number of workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from feedrate.trainables.checking.order_check import by_worker, is_whole
from feedrate.trainables.failure import Failure
from feedrate.trainables.loader.epoch_size import num_indices
from feedrate.trainables.probing.finding import Finding
from feedrate.trainables.probing.probe import Epoch, Parts, samples_of
from feedrate.trainables.probing.survey import Survey

COUNT_LIMIT_S = 5.0


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
