"""`check`: does changing the loader change the data?

Six questions (MEASURING.md 6): order and multiplicity of samples, determinism, random streams of workers, members
that workers must not share, number of samples and batches, and pickling with the cost of each start method.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from feedrate.trainables.count_check import counts, stream_counts
from feedrate.trainables.digest import digest
from feedrate.trainables.epoch_size import length_of
from feedrate.trainables.failure import Failure, TrialFailed, classify
from feedrate.trainables.finding import Finding
from feedrate.trainables.isolated import isolated
from feedrate.trainables.loading import no_batch, own_loader
from feedrate.trainables.order_check import determinism, map_order, stream_order
from feedrate.trainables.probe import Epoch, Look, Parts, deliver, own_setting, parts_of, samples_of
from feedrate.trainables.random_check import Streams, random_streams, streams
from feedrate.trainables.start_check import start_findings
from feedrate.trainables.static_check import owned_generators, static
from feedrate.trainables.workload import Workload, WorkloadError

MAX_SAMPLES = 256
MIN_SAMPLES = 16
REPEATS = 32
"""Times that one index is fetched, to see what workers draw."""
SHARE_OF_BUDGET = 12
"""An epoch of N samples is fetched about so many times."""
FIRST_SAMPLE_S = 60.0
LOOK_S = 60.0
"""Longest look at least, but not more than four times what the whole check may take: workers that are spawned take
seconds to start, in every epoch."""
LEAST_DRAWS = 8
"""Of each worker."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What `check` found."""

    num_workers: int
    num_samples: int
    """Samples of an epoch that were looked at."""
    epoch_samples: int | None
    """len(dataset); None where it has none."""
    seconds: float
    findings: list[Finding]

    @property
    def changes_data(self) -> bool:
        """Whether some setting would train on different data."""
        return any(finding.level == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """A JSON object, as `feedrate check --json` prints it."""
        fields = {name: getattr(self, name) for name in ("num_workers", "num_samples", "epoch_samples", "seconds")}
        findings = [finding.to_json() for finding in self.findings]
        return {"changes_data": self.changes_data, **fields, "findings": findings}


def check(
    workload: Workload,
    *,
    num_workers: int = 2,
    budget_s: float = 30.0,
    on_step: Callable[[str], None] = lambda name: None,
) -> Report:
    """Compare what the workload's loader delivers with 0 and with `num_workers` workers.

    Args:
        workload: of either form.
        num_workers: compared with 0; 2 or more.
        budget_s: about how long to take; fewer samples are looked at where they are slow. Importing torch in spawned
            workers is included.
        on_step: told before each step.

    Raises:
        ValueError: fewer than two workers, which have nobody to repeat.
        WorkloadError: there is no loader or no data.
        TrialFailed: no sample can be loaded; the user's traceback is in the failure.
    """
    if num_workers < 2:
        raise ValueError(f"num_workers must be 2 or more, not {num_workers}: the question is what workers repeat")
    begin = time.monotonic()
    notes = workload.check() if workload.check else []
    checking = _Checking(workload, num_workers, begin + budget_s, on_step)
    findings = [Finding(name="workload", level="note", sentence=note) for note in notes]
    findings += checking.findings(budget_s)
    return Report(
        num_workers=num_workers,
        num_samples=checking.num_seen,
        epoch_samples=length_of(checking.alone.dataset),
        seconds=time.monotonic() - begin,
        findings=findings,
    )


class _Checking:
    """One check under way."""

    def __init__(self, workload: Workload, num_workers: int, until_s: float, on_step: Callable[[str], None]) -> None:
        self.num_workers, self.until_s, self.on_step = num_workers, until_s, on_step
        own = None if workload.is_short else own_loader(workload)
        if length_of(workload.dataset if own is None else own.dataset) == 0:
            raise WorkloadError(f"the dataset of workload {workload.name!r} is empty")
        setting = own_setting(workload, own)
        self.alone = parts_of(workload, replace(setting, num_workers=0), own)
        self.shared = parts_of(workload, replace(setting, num_workers=num_workers), own)
        self.with_workers = f"{num_workers} workers"
        self.num_samples, self.num_seen, self.sample_s = 0, 0, 0.0
        patience_s = max(4 * (until_s - time.monotonic()), 10.0)
        self.first_sample_s, self.look_s = min(FIRST_SAMPLE_S, patience_s), min(LOOK_S, patience_s)
        self.skipped: list[str] = []

    def findings(self, budget_s: float) -> list[Finding]:
        self.on_step("reading a few samples")
        self.sample_s = self._pace(min(budget_s / SHARE_OF_BUDGET, 10.0))
        fitting = int(budget_s / SHARE_OF_BUDGET / max(self.sample_s, 1e-6))
        self.num_samples = max(MIN_SAMPLES, min(MAX_SAMPLES, fitting))
        found = [static(self.alone.dataset)]
        try:
            found = [*self._delivered(), *found]
        except _Failed as failed:
            found.append(failed.finding)
        self.on_step("starting workers by fork, forkserver and spawn")
        told = any(finding.name == "loading" for finding in found)
        started = start_findings(self.shared, lambda: self.until_s + budget_s - time.monotonic())
        found += [finding for finding in started if not (told and finding.name == "loading")]
        if self.skipped:
            words = ", ".join(self.skipped)
            found.append(
                Finding(
                    name="time",
                    level="note",
                    sentence=f"not looked at, because {budget_s:.0f} s were over: {words}",
                    fix="raise --time-budget",
                )
            )
        return found

    def _delivered(self) -> list[Finding]:
        """Everything that needs whole epochs."""
        self.on_step(f"comparing epochs with 0 and with {self.with_workers}")
        alone = self._look("0 workers", Look(num_workers=0, num_samples=self.num_samples))
        self.num_seen = len(samples_of(alone[0]))
        shared = self._look(self.with_workers, self._with())
        random = self._streams(shared)
        if self.alone.iterable:
            neutral = Look(num_workers=0, num_samples=self.num_samples, epochs=1, neutral=True)
            one = self._look("0 workers", neutral)
            two = self._look(self.with_workers, replace(neutral, num_workers=self.num_workers))
            owns = bool(owned_generators(self.alone.dataset))
            order = stream_order(one[0], two[0], shared[0], alone[0], self.num_workers, owns_generators=owns)
            found = [order, *stream_counts(self.alone, one[0], two[0], self.num_workers)]
        else:
            looks = {"0 workers": alone, self.with_workers: shared}
            for name, more in (
                ("persistent_workers", {"persistent_workers": True}),
                ("in_order=False", {"in_order": False}),
            ):
                if self._has_time(name):
                    looks[name] = self._look(name, replace(self._with(), **more))
            torchs_own = self.alone.shuffles_all is not None
            whole = torchs_own or self.num_seen < self.num_samples
            found = [map_order(looks, whole=whole, torchs_own=torchs_own), *_content(alone, shared, random)]
            found += counts(self.alone)
        pairs = {}
        for name, first, look in (
            ("0 workers", alone, Look(num_workers=0, num_samples=self.num_samples)),
            (self.with_workers, shared, self._with()),
        ):
            if self._has_time(f"the same seed again with {name}"):
                pairs[name] = (first, self._look(name, look))
        if pairs:
            found.append(determinism(pairs))
        owned = owned_generators(self.alone.dataset)
        return [*found, *random_streams(random, owned, iterable=self.alone.iterable)]

    def _with(self) -> Look:
        return Look(num_workers=self.num_workers, num_samples=self.num_samples, generators=self.alone.iterable)

    def _streams(self, shared: list[Epoch]) -> Streams:
        if self.alone.iterable:
            return streams(shared, same_index=False)
        self.on_step("fetching one sample again and again")
        least = LEAST_DRAWS * self.num_workers
        repeats = max(least, min(max(REPEATS, least), self.num_samples))
        look = replace(self._with(), num_samples=repeats, same_index=True, generators=True)
        return streams(self._look(self.with_workers, look))

    def _look(self, name: str, look: Look) -> list[Epoch]:
        """Deliver, in a process of its own.

        Raises:
            TrialFailed: it fails without workers. _Failed: it fails with workers only.
        """
        parts = self.shared if look.num_workers else self.alone
        limit_s = max(self.look_s, 20 * self.sample_s * look.num_samples * look.epochs)
        epochs = isolated(lambda: deliver(parts, look), limit_s)
        if not isinstance(epochs, Failure):
            return epochs
        if not look.num_workers:
            raise TrialFailed(epochs)
        raise _Failed(name, epochs)

    def _has_time(self, what: str) -> bool:
        if time.monotonic() < self.until_s:
            return True
        self.skipped.append(what)
        return False

    def _pace(self, max_s: float) -> float:
        """Seconds that a sample takes, without workers."""
        outcome = isolated(lambda: _read(self.alone, max_s), self.first_sample_s + max_s)
        if isinstance(outcome, Failure):
            if outcome.kind == "hang":
                outcome = replace(outcome, message=f"no sample came within {self.first_sample_s:.0f} s, without workers")
            raise TrialFailed(outcome)
        count, seconds = outcome
        if not count:
            raise no_batch(0)
        return seconds / count


class _Failed(Exception):
    """Loading works without workers and fails with them."""

    def __init__(self, name: str, failure: Failure) -> None:
        super().__init__(failure.message)
        self.finding = Finding(
            name="loading",
            level="error",
            sentence=f"loading works with 0 workers and fails with {name}: {failure.message}",
            evidence=failure.columns(),
        )


def _read(parts: Parts, max_s: float) -> tuple[int, float]:
    begin, count = time.monotonic(), 0
    dataset: Any = parts.dataset
    if parts.iterable:
        source = iter(dataset)
    else:
        batched = getattr(dataset, "__getitems__", None) and parts.batch_size is not None
        order = (
            parts.sampler
            if parts.batch_size is not None or parts.batch_sampler is None
            else itertools.chain.from_iterable(parts.batch_sampler)
        )
        source = (_sample(dataset, index, bool(batched)) for index in order)
    for sample in itertools.islice(source, MAX_SAMPLES):
        digest(sample)
        count += 1
        if time.monotonic() > begin + max_s:
            break
    return count, time.monotonic() - begin


def _sample(dataset: Any, index: Any, batched: bool) -> Any:
    """One sample.

    Raises:
        TrialFailed: the dataset raises; the failure names the sample.
    """
    try:
        return dataset.__getitems__([index]) if batched else dataset[index]
    except Exception as error:
        failure = classify(error, "loader")
        raise TrialFailed(replace(failure, message=f"{failure.message} (raised for sample {index})")) from error


def _content(alone: list[Epoch], shared: list[Epoch], random: Streams) -> list[Finding]:
    """Whether an index gives the same bytes with and without workers."""
    runs = [{seen.key: seen.digest for seen in samples_of(epoch)} for epoch in (*alone, *shared)]
    one, two = runs[0], runs[len(alone)]
    is_random = random.is_random or any(runs[1].get(key, value) != value for key, value in one.items())
    changed = [key for key, value in one.items() if two.get(key, value) != value]
    evidence = {"num_changed": len(changed), "num_compared": len(one.keys() & two.keys()), "is_random": is_random}
    if changed and not is_random:
        words = f"{len(changed)} of {len(one):,} samples have other bytes with workers than without, although they are not random"
        fix = "look for what workers share: an open file or connection, or a buffer that __getitem__ fills and returns"
        return [Finding(name="content", level="error", sentence=words, fix=fix, evidence=evidence)]
    if changed:
        words = "augmentations draw other numbers with another num_workers, as torch seeds every worker differently: not different data"
        return [Finding(name="content", level="note", sentence=words, evidence=evidence)]
    words = "every index gives the same bytes with and without workers"
    return [Finding(name="content", level="ok", sentence=words, evidence=evidence)]
