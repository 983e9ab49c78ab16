"""Does every setting deliver every sample once, in which order, and with the same bytes when it runs again?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from feedrate.trainables.probing.finding import Finding
from feedrate.trainables.probing.probe import END, Epoch, Seen, samples_of

OVERLAP_FRACTION = 0.5
LEAST_REPEATED = 4
"""Least number of samples of one worker that another worker must also have delivered to count as repetition."""
SOME_REPEATED = 8
"""This many repeated samples are no coincidence; add as many again for each sample that also repeats without workers."""
SHARD = """def __iter__(self):
    info = torch.utils.data.get_worker_info()
    first, step = (0, 1) if info is None else (info.id, info.num_workers)
    yield from itertools.islice(self.all_samples(), first, None, step)  # each worker its own part"""
OWN_STATE = (
    "the dataset chooses samples from its own state (an iterator, a file position, a random generator) rather than from the index, "
    "and every worker has its own copy of that state"
)
SAME_ORDER = """sampler = torch.utils.data.RandomSampler(dataset, generator=torch.Generator().manual_seed(0))
DataLoader(dataset, sampler=sampler, generator=torch.Generator().manual_seed(1), ...)  # without shuffle=True"""


def compare(reference: Sequence[Seen], other: Sequence[Seen], *, whole: bool) -> tuple[str, int]:
    """Compare two epochs; return invariant, permuted, duplicated or missing, and the number of samples concerned.

    Args:
        reference, other: what two settings delivered.
        whole: whether both went to the end of the epoch; if not, the result is invariant or permuted.
    """
    before, after = [seen.key for seen in reference], [seen.key for seen in other]
    if before == after:
        return "invariant", 0
    extra, lacking = Counter(after) - Counter(before), Counter(before) - Counter(after)
    if not whole or not (extra or lacking):
        return "permuted", sum(one != two for one, two in zip(before, after, strict=False))
    return ("missing", lacking.total()) if lacking else ("duplicated", extra.total())


def map_order(looks: dict[str, list[Epoch]], *, whole: bool, torchs_own: bool) -> Finding:
    """Report whether all settings deliver every index once, and in the same order.

    Args:
        looks: setting in words -> its epochs; the first is the reference, with 0 workers.
        whole: the epochs were delivered to their end.
        torchs_own: the sampler is torch's own, so that all epochs contain the same indices, whatever the random numbers.
    """
    (reference_name, reference), *others = looks.items()
    orders, worst = {}, ("invariant", 0, "")
    for name, epochs in others:
        verdicts = [
            compare(samples_of(one), samples_of(two), whole=whole and (torchs_own or number == 0))
            for number, (one, two) in enumerate(zip(reference, epochs, strict=True))
        ]
        orders[name] = [verdict for verdict, _ in verdicts]
        for verdict, count in verdicts:
            if verdict in ("missing", "duplicated") or worst[0] == "invariant":
                worst = (verdict, count, name)
    verdict, count, name = worst
    if verdict in ("missing", "duplicated"):
        return Finding(
            name="order",
            level="error",
            sentence=f"{name}: {count} samples of an epoch are {verdict}, compared with {reference_name}",
            fix="make the sampler draw the same indices whatever num_workers is: torch runs it in the training process, so it needs no share for each worker",
            evidence={"orders": orders},
        )
    if verdict == "permuted":
        changed = [name for name, each in orders.items() if set(each) != {"invariant"}]
        return Finding(
            name="order",
            level="note",
            sentence=f"every sample comes once in every epoch, but in another order with {', '.join(changed)}. This is not "
            "different data: the loader and the random order draw from the same torch generator, and in_order=False delivers "
            "batches as soon as they are ready",
            fix=SAME_ORDER,
            evidence={"orders": orders},
        )
    return Finding(
        name="order",
        level="ok",
        sentence="every sample comes once in every epoch, in the same order with every setting",
        evidence={"orders": orders},
    )


def by_worker(epoch: Epoch) -> dict[int, list[Seen]]:
    """Return the samples that each worker delivered, in its own order."""
    workers: dict[int, list[Seen]] = {}
    for seen in (seen for batch in epoch for seen in batch):
        workers.setdefault(seen.worker, []).append(seen)
    return {worker: [seen for seen in workers[worker] if seen.key != END] for worker in sorted(workers)}


def is_whole(epoch: Epoch, num_workers: int) -> bool:
    """Return whether every worker read its stream to the end."""
    ends = {seen.worker for batch in epoch for seen in batch if seen.key == END}
    return len(ends) == max(num_workers, 1)


def overlap(epoch: Epoch) -> tuple[float, int]:
    """Return the largest share of a worker's samples that another worker also delivered, and the number of different samples."""
    workers = [Counter(seen.key for seen in each) for each in by_worker(epoch).values()]
    shares = [(one & two).total() / max(min(one.total(), two.total()), 1) for one, two in combinations(workers, 2)]
    return max(shares, default=0.0), len(set().union(*workers))


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeats:
    """How many samples of one worker another worker delivered too, although the two should have delivered different samples."""

    num_repeated: int
    num_compared: int
    """Number of samples of the worker that delivered fewer."""
    num_alike: int
    """Number of those samples that are equal with 0 workers, too: the dataset itself has them more than once."""

    @property
    def are_shown(self) -> bool:
        """Whether workers repeat each other more than equal samples or coincidence explain.

        That is so if most of a few samples repeat, or some of many. If each worker shuffles in its own order, the beginnings of
        an undivided stream have only some samples in common; those of a divided stream have none.
        """
        share = self.num_repeated / max(self.num_compared, 1)
        share_alike = self.num_alike / max(self.num_compared, 1)
        most = self.num_repeated >= LEAST_REPEATED and share > OVERLAP_FRACTION and share_alike < OVERLAP_FRACTION / 2
        return most or self.num_repeated >= SOME_REPEATED * (1 + self.num_alike)


def repeats(shared: Epoch, alone: Epoch, *, iterable: bool) -> Repeats:
    """Compare by bytes what workers deliver for different indices, which should differ.

    Args:
        shared: an epoch with two workers or more, of different indices or of a stream.
        alone: the same samples with 0 workers; for a stream, as many samples as all workers delivered together, if it has them.
        iterable: whether there are no indices.
    """
    workers = list(by_worker(shared).values())
    own = {seen.key: seen.digest for seen in samples_of(alone)}
    digests = [seen.digest for seen in samples_of(alone)]
    found = Repeats(num_repeated=0, num_compared=0, num_alike=0)
    for (number, one), (other, two) in combinations(enumerate(workers), 2):
        if iterable:  # compare with the parts that the stream would have if it were divided
            parts = [digests[each :: len(workers)] for each in (number, other)]
        else:
            one, two = ([seen for seen in each if seen.key in own] for each in (one, two))
            parts = [[own[seen.key] for seen in each] for each in (one, two)]
        repeated = (Counter(seen.digest for seen in one) & Counter(seen.digest for seen in two)).total()
        alike = (Counter(parts[0]) & Counter(parts[1])).total()
        if repeated > found.num_repeated:
            found = Repeats(num_repeated=repeated, num_compared=min(len(one), len(two)), num_alike=alike)
    return found


def repeated_indices(found: Repeats, num_workers: int) -> Finding | None:
    """Return the error if workers of a map-style dataset deliver the same samples for different indices; None if they do not."""
    if not found.are_shown:
        return None
    return Finding(
        name="order",
        level="error",
        sentence=f"the {num_workers} workers deliver the same samples for different indices: of {found.num_compared} samples that one "
        f"worker delivered, another worker delivered {found.num_repeated} too. Without workers, the same indices give "
        f"{found.num_alike} repeated samples. {OWN_STATE[0].upper()}{OWN_STATE[1:]}",
        fix="choose each sample by its index alone; to read a stream, use an IterableDataset that divides it among workers",
        evidence={"num_repeated": found.num_repeated, "num_compared": found.num_compared, "num_alike": found.num_alike},
    )


def repeated_stream(found: Repeats, num_workers: int) -> Finding | None:
    """Return the error if workers of an iterable dataset deliver the same samples, in any order; None if they do not."""
    if not found.are_shown:
        return None
    return Finding(
        name="order",
        level="error",
        sentence=f"of {found.num_compared} samples that one of the {num_workers} workers delivered, another worker delivered "
        f"{found.num_repeated} too: the iterable dataset is not divided among workers",
        fix=SHARD,
        evidence={"num_repeated": found.num_repeated, "num_compared": found.num_compared, "num_alike": found.num_alike},
    )


def stream_order(
    alone: Epoch, shared: Epoch, natural: Epoch, natural_alone: Epoch, num_workers: int, *, owns_generators: bool
) -> Finding:
    """Report whether an iterable dataset delivers every sample once, whatever the number of workers.

    Args:
        alone, shared: epochs with 0 and with `num_workers` workers, with global generators seeded to the same value per sample.
        natural, natural_alone: with the user's own random numbers, epochs with `num_workers` and with 0 workers.
        owns_generators: the dataset draws from its own generators, so that samples cannot be recognised by their bytes.
    """
    one, many = samples_of(alone), samples_of(shared)
    before, after = Counter(seen.key for seen in one), Counter(seen.key for seen in many)
    ends, ends_alone = is_whole(shared, num_workers), is_whole(alone, 0)
    share, num_different = overlap(shared)
    if num_different < 2:  # all samples look alike, perhaps because they are all random: compare those with natural random numbers
        share, num_different = overlap(natural)
    evidence = {
        "num_samples": {"0 workers": len(one), f"{num_workers} workers": len(many)},
        "read_to_the_end": ends and ends_alone,
        "overlap_fraction": share,
    }
    duplicated = Finding(
        name="order",
        level="error",
        sentence=f"every one of the {num_workers} workers delivers the same samples ({len(one):,} samples with 0 workers, "
        f"{len(many):,} with {num_workers}): the iterable dataset is not divided among workers",
        fix=SHARD,
        evidence=evidence,
    )
    is_random = not before.keys() >= after.keys() or num_different < 2
    if share > OVERLAP_FRACTION and num_different > 1:
        if share == 1.0:
            return duplicated
        return _changed(duplicated, f"two workers have {share:.0%} of their samples in common")
    if ends and ends_alone and (lacking := before - after) and not (is_random and len(one) <= len(many)):
        return _changed(duplicated, f"{lacking.total()} of {len(one):,} samples are missing with {num_workers} workers")
    if ends and ends_alone and len(many) != len(one):
        words = f"an epoch has {len(many):,} samples with {num_workers} workers and {len(one):,} with 0"
        return _changed(duplicated, words)
    if ends and ends_alone and is_random and num_different > 1 and not owns_generators:
        unknown = (after - before).total()
        words = f"{unknown} of {len(many):,} samples have different bytes with {num_workers} workers than with 0"
        return Finding(name="order", level="warning", sentence=words, evidence=evidence)
    if num_different < 2:
        return Finding(
            name="order",
            level="note",
            sentence="all samples that were checked are alike, so feedrate cannot tell whether workers repeat each other",
            evidence=evidence,
        )
    same = [seen.key for seen in samples_of(natural)] == [seen.key for seen in samples_of(natural_alone)]
    what = (
        "in the same order"
        if same
        else "in an order that depends on the number of workers; this is not different data"
    )
    seen_all = "every sample comes once" if ends and ends_alone else "no sample came from two workers"
    return Finding(name="order", level="ok" if same else "note", sentence=f"{seen_all}, {what}", evidence=evidence)


def _changed(finding: Finding, sentence: str) -> Finding:
    return Finding(
        name=finding.name, level=finding.level, sentence=sentence, fix=finding.fix, evidence=finding.evidence
    )


def determinism(pairs: dict[str, tuple[list[Epoch], list[Epoch]]]) -> Finding:
    """Report whether a setting gives the same bytes again with the same seed; `pairs`: setting in words -> both runs."""
    different = [
        name
        for name, runs in pairs.items()
        if len({tuple(seen.digest for epoch in run for seen in samples_of(epoch)) for run in runs}) > 1
    ]
    if not different:
        return Finding(
            name="determinism", level="ok", sentence="the same setting with the same seed gives the same bytes again"
        )
    return Finding(
        name="determinism",
        level="note",
        sentence=f"the same setting with the same seed gives different bytes the second time ({', '.join(different)}): something "
        "random is not seeded (default_rng() without a seed, os.urandom, time, the order of a set or of a directory)",
        fix="draw from random, numpy.random or torch, which torch seeds in workers, and sort lists of files",
        evidence={"settings": different},
    )
