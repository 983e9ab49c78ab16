"""Do workers draw different random numbers, and new ones in every epoch?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from feedrate.trainables.checking.order_check import by_worker
from feedrate.trainables.probing.finding import Finding
from feedrate.trainables.probing.probe import Epoch

SAMPLES = "samples"
"""Used instead of a generator's name if only the samples show the repetition."""
CHANCE = 1e-4
"""Equal samples count as repetition only if two workers that draw independently would be equal less often than this."""


@dataclass(frozen=True, kw_only=True)
class Streams:
    """Random numbers that workers share, found by fetching one index again and again."""

    is_random: bool
    """Whether the same index gives different bytes."""
    duplicated: list[str]
    """Generators from which two workers draw the same numbers; SAMPLES if only the samples show it."""
    frozen: list[str]
    """Generators that give the same numbers in every epoch."""


def streams(epochs: list[Epoch], *, same_index: bool = True) -> Streams:
    """Compare the random numbers that workers draw.

    Args:
        epochs: one index fetched many times (`same_index`) or a stream, with the states of its generators.
        same_index: whether equal samples of two workers mean equal random numbers.
    """
    first = list(by_worker(epochs[0]).values())
    digests = [[seen.digest for seen in each] for each in first]
    is_random = len(set().union(*digests)) > 1
    names = first[0][0].generators if first and first[0] else {}
    duplicated, frozen = [], []
    for name in names:
        states = [[seen.generators[name] for seen in each] for each in first]
        if not any(len(set(each)) > max(len(each) // 2, 1) for each in states):
            continue  # the dataset draws nothing from this generator
        if any(_alike(one, two) for one, two in combinations(states, 2)):
            duplicated.append(name)
        again = [[seen.generators[name] for seen in each] for epoch in epochs[1:] for each in by_worker(epoch).values()]
        if any(_alike(one, two) for one in states for two in again):
            frozen.append(name)
    if same_index and not duplicated and any(_alike(one, two) and _sure(one) for one, two in combinations(digests, 2)):
        duplicated.append(SAMPLES)
    again = [[seen.digest for seen in each] for epoch in epochs[1:] for each in by_worker(epoch).values()]
    if not frozen and same_index and any(_alike(one, two) and _sure(one) for one in digests for two in again):
        frozen.append(SAMPLES)
    return Streams(is_random=is_random, duplicated=duplicated if is_random else [], frozen=frozen if is_random else [])


def _alike(one: list[str], two: list[str]) -> bool:
    length = min(len(one), len(two))
    return length > 1 and one[:length] == two[:length]


def _sure(draws: list[str]) -> bool:
    """Whether another worker is unlikely to draw the same by chance."""
    collision = sum((count / len(draws)) ** 2 for count in Counter(draws).values())
    return collision ** len(draws) < CHANCE


def random_streams(found: Streams, owned: Mapping[str, str], *, iterable: bool) -> list[Finding]:
    """Report whether workers draw the same random numbers, and whether every epoch draws the same.

    Args:
        found: the result of `streams`.
        owned: path of each random generator of the dataset -> the line of a worker_init_fn that seeds it.
        iterable: workers of an iterable dataset may have to draw the same numbers, to shuffle before they divide the samples.
    """
    fix = reseed(found.duplicated or found.frozen, owned)
    evidence = {
        "is_random": found.is_random,
        "duplicated": found.duplicated,
        "frozen": found.frozen,
        "owned": list(owned),
    }
    findings = []
    if found.duplicated:
        sentence = f"every worker draws the same random numbers{_named_source(found.duplicated)}: augmentations repeat num_workers times"
        if iterable:
            sentence += ", unless they only shuffle before the samples are divided among workers"
        level = "warning" if iterable else "error"
        findings.append(Finding(name="random-streams", level=level, sentence=sentence, fix=fix, evidence=evidence))
    elif owned and (found.is_random or iterable):
        sentence = f"the dataset has its own random generators ({_named(list(owned))}); workers were not seen to draw the same numbers"
        findings.append(Finding(name="random-streams", level="ok", sentence=sentence, evidence=evidence))
    else:
        sentence = "workers draw different random numbers" if found.is_random or iterable else "samples are not random"
        findings.append(Finding(name="random-streams", level="ok", sentence=sentence, evidence=evidence))
    if found.frozen:
        sentence = (
            f"with workers that end with the epoch, every epoch draws the same random numbers{_named_source(found.frozen)}: "
            "augmentations are frozen"
        )
        level = "warning" if iterable else "error"
        findings.append(Finding(name="frozen-augmentation", level=level, sentence=sentence, fix=fix, evidence=evidence))
    return findings


def _named_source(paths: list[str]) -> str:
    return "" if paths == [SAMPLES] else f" from {_named(paths)}"


def _named(paths: list[str]) -> str:
    return ", ".join(
        path if path in (SAMPLES, "random", "numpy.random", "torch") else f"dataset.{path}" for path in paths
    )


def reseed(paths: list[str], owned: Mapping[str, str]) -> str:
    """Return a worker_init_fn that seeds these generators; if there is no code to paste, return advice."""
    lines = [f"    {owned[path]}" for path in paths if path in owned and "(" not in path]
    if not lines:
        return "in worker_init_fn, do not seed with a constant: use torch.initial_seed(), which differs by worker and epoch"
    head = ["def worker_init_fn(worker_id):", "    dataset = torch.utils.data.get_worker_info().dataset"]
    return "\n".join([*head, *lines]) + "\n\nDataLoader(..., worker_init_fn=worker_init_fn)"
