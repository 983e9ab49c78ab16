"""`check`: does changing the loader change the data?

It checks the order and multiplicity of samples, their content, samples that change from epoch to epoch, determinism, the random
numbers of workers, members that workers must not share, the number of samples and batches, and pickling together with the
time that each start method takes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch

from feedrate.trainables.checking.count_check import (
    COUNT_LIMIT_S,
    EpochCount,
    count,
    counts,
    empty_batches,
    num_empty,
    stream_counts,
)
from feedrate.trainables.checking.epoch_check import EpochState, epoch_findings
from feedrate.trainables.checking.epoch_look import epoch_state
from feedrate.trainables.checking.order_check import (
    determinism,
    map_order,
    repeated_indices,
    repeated_stream,
    repeats,
    stream_order,
)
from feedrate.trainables.checking.random_check import SAMPLES, Streams, random_streams, streams
from feedrate.trainables.checking.start_check import start_findings
from feedrate.trainables.failure import Failure, TrialFailed
from feedrate.trainables.isolation.isolated import OutOfTime
from feedrate.trainables.loader.build_loader import no_batch
from feedrate.trainables.probing.finding import Finding
from feedrate.trainables.probing.fresh_loader import CannotBeMade, FreshLoader, check_again
from feedrate.trainables.probing.probe import Epoch, Look, Pace, Parts, deliver, pace, samples_of
from feedrate.trainables.probing.static_check import MAKE_LATER, static, threads_in_words
from feedrate.trainables.probing.survey import Make, Survey, compared
from feedrate.trainables.workload import Workload

T = TypeVar("T")

MAX_SAMPLES = 256
MAX_EPOCH_SAMPLES = 32
"""Number of samples that are compared from epoch to epoch."""
REPEATS = 32
"""How often one index is fetched to see which random numbers workers draw."""
SHARE_OF_BUDGET = 20
"""The whole check fetches an epoch of N samples about this many times."""
FIRST_SAMPLE_S = 60.0
"""Time for the first sample, unless the budget is smaller."""
LEAST_LOOK_S = {"fork": 5.0, "forkserver": 20.0, "spawn": 20.0}
"""Lower bound, by start method, of the time limit of one `Look` at the loader: spawned workers take seconds to start, again in every epoch."""
LEAST_DRAWS = 8
"""Least number of random draws per worker."""
WITHOUT_DATA = {"loading", "batches"}
"""Errors that say nothing about other settings: the loader does not work with workers, or its batches hold nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The result of `check`."""

    workload: str
    """The workload's name."""
    num_workers: int
    num_samples: int
    """Number of samples of an epoch that were examined."""
    epoch_samples: int | None
    """len(dataset); None if it has no length."""
    seconds: float
    findings: list[Finding]

    @property
    def changes_data(self) -> bool | None:
        """Whether some setting would train on different data; None if nobody knows, because of an error in `WITHOUT_DATA`."""
        errors = {finding.name for finding in self.findings if finding.level == "error"}
        return None if errors and errors <= WITHOUT_DATA else bool(errors)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object, as `feedrate check --json` prints it."""
        fields = {name: getattr(self, name) for name in ("workload", "num_workers", "num_samples", "epoch_samples", "seconds")}
        findings = [finding.to_json() for finding in self.findings]
        return {**fields, "changes_data": self.changes_data, "findings": findings}


def check(
    workload: Workload | Make,
    *,
    num_workers: int = 2,
    budget_s: float = 30.0,
    on_step: Callable[[str], None] = lambda name: None,
) -> Report:
    """Compare what the workload's loader delivers with 0 and with `num_workers` workers.

    Args:
        workload: of either form, or a function that makes it. The function is called in separate processes, so that whatever
            it leaves behind (threads, open files) is as in the user's program. If the workload already exists, what making
            it left behind is not seen.
        num_workers: number of workers to compare with 0; 2 or more.
        budget_s: about how long the check takes, apart from making the dataset; it takes at most twice as long. If
            samples are slow, fewer are examined. The time in which spawned workers import torch counts.
        on_step: called with a description of each step before it begins.

    Raises:
        ValueError: there are fewer than two workers, so none could repeat another's samples.
        WorkloadError: there is no loader or no data.
        TrialFailed: no sample can be loaded; the user's traceback is in the failure.
    """
    if num_workers < 2:
        raise ValueError(f"num_workers must be 2 or more, not {num_workers}: the check compares workers with each other")
    begin = time.monotonic()
    make = (lambda: workload) if isinstance(workload, Workload) else workload
    on_step("making the dataset")
    first = FreshLoader(make)
    try:
        checking = _Checking(make, first, num_workers, budget_s, on_step)
        findings = [Finding(name="workload", level="note", sentence=note) for note in first.survey.notes]
        findings += checking.findings()
    finally:
        first.close()
    return Report(
        workload=first.survey.name,
        num_workers=num_workers,
        num_samples=checking.num_seen,
        epoch_samples=first.survey.dataset_samples,
        seconds=time.monotonic() - begin,
        findings=findings,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Alone:
    """What the loader delivered without workers."""

    pace: Pace
    delivered: list[Epoch]
    again: list[Epoch] | None
    """A second delivery with the same seed."""
    neutral: Epoch | None
    """A delivery with random generators seeded to the same value before every sample."""
    count: EpochCount | Failure | None
    num_empty: int | Failure | None
    """How many batches hold nothing; None if there was no time to read one."""


class _Checking:
    """One check: it first does everything that needs no workers, then everything with workers."""

    def __init__(
        self, make: Make, first: FreshLoader, num_workers: int, budget_s: float, on_step: Callable[[str], None]
    ) -> None:
        self.make, self.first, self.num_workers, self.on_step = make, first, num_workers, on_step
        self.survey: Survey = first.survey
        self.budget_s = budget_s
        self.until_s = time.monotonic() + budget_s
        self.with_workers = f"{num_workers} workers"
        self.method = self.survey.setting.multiprocessing_context or torch.multiprocessing.get_start_method()
        self.num_samples = self.num_seen = 0
        self.sample_s = 0.0
        self.skipped: list[str] = []

    def findings(self) -> list[Finding]:
        """Return the findings in the order in which they are shown."""
        with self._loader(0) as loader:
            alone = self._alone(loader)
        with self._loader(self.num_workers) as loader:
            found = [] if alone is None else empty_batches(alone.num_empty)
            try:
                found += self._shared(loader, alone) if alone is not None else []
            except _Failed as failed:
                found.append(failed.finding)
            found.append(static(self.survey.members, self.survey.left))
            self.on_step("starting workers by fork, forkserver and spawn")
            known = {self.method} if any(finding.name == "loading" for finding in found) else set()
            started, skipped = start_findings(loader, lambda: self.until_s + self.budget_s - time.monotonic(), known)
        self.skipped += [f"start method {method}" for method in skipped]
        return [*found, *started, *self._not_looked_at()]

    def _not_looked_at(self) -> list[Finding]:
        if not self.skipped:
            return []
        sentence = f"not checked, because {self.budget_s:.0f} s are not enough: {', '.join(self.skipped)}"
        return [Finding(name="time", level="note", sentence=sentence, fix="raise --time-budget")]

    def _loader(self, num_workers: int) -> contextlib.AbstractContextManager[FreshLoader]:
        """Return the user's loader with this number of workers, after ending the process that made the previous one.

        Raises:
            TrialFailed: the loader cannot be made with this setting, or cannot be made again.
        """
        if self.survey.is_short:  # the short form has the same dataset, and its loader is feedrate's own
            return contextlib.nullcontext(self.first)
        self.first.close()
        try:
            loader = FreshLoader(self.make, compared(self.survey.setting, num_workers), self.survey)
        except CannotBeMade:
            raise
        except TrialFailed as error:
            if error.failure.kind != "override-ignored":
                check_again(self.make)
            raise
        self.until_s += loader.survey.made_s
        return loader

    def _alone(self, loader: FreshLoader) -> _Alone | None:
        """Do everything that needs no workers; return None if samples are too slow for the time.

        Raises:
            TrialFailed: no sample can be loaded.
        """
        self.on_step("reading a few samples")
        seen = self._pace(loader)
        self.sample_s = seen.sample_s
        fitting = int(self.budget_s / SHARE_OF_BUDGET / max(self.sample_s, 1e-6))
        self.num_samples = max(2 * self.num_workers, min(MAX_SAMPLES, fitting))
        self.on_step(f"comparing epochs with 0 and with {self.with_workers}")
        look = Look(num_workers=0, num_samples=self.num_samples)
        what = f"what workers deliver (a sample takes {self.sample_s:.1f} s)"
        if 2 * self._expected_s(look) > self.until_s + self.budget_s - time.monotonic():
            self.skipped.append(what)
            return None
        delivered = self._look(loader, "0 workers", look, what)
        if delivered is None:
            return None
        self.num_seen = sum(seen.num_samples for seen in samples_of(delivered[0]))
        again = self._look_in_time(loader, "0 workers", look, "the same seed again with 0 workers")
        neutral = self._look_in_time(loader, "0 workers", replace(look, epochs=1, neutral=True), "samples without augmentation")
        count_ = None
        if not self.survey.is_iterable:
            count_ = self._ask(loader, count, min(COUNT_LIMIT_S, max(self.until_s - time.monotonic(), 1.0)))
        return _Alone(
            pace=seen,
            delivered=delivered,
            again=again,
            neutral=None if neutral is None else neutral[0],
            count=count_,
            num_empty=self._num_empty(loader),
        )

    def _num_empty(self, loader: FreshLoader) -> int | Failure | None:
        """Read batches until one holds something; return None if the time runs out first."""
        if not self._has_time(loader, Look(num_workers=0, num_samples=self.num_samples, epochs=1), "whether the batches hold anything"):
            return None
        limit_s = max(self.until_s - time.monotonic(), LEAST_LOOK_S["fork"])
        try:
            return self._ask(loader, partial(num_empty, num_samples=self.num_samples, max_s=limit_s / 4), limit_s)
        except OutOfTime:
            self.skipped.append("whether the batches hold anything")
            return None

    def _shared(self, loader: FreshLoader, alone: _Alone) -> list[Finding]:
        """Do everything that needs whole epochs with workers.

        Raises:
            _Failed: loading fails with workers.
        """
        shared = self._look(loader, self.with_workers, self._with(), f"what {self.with_workers} deliver")
        if shared is None:
            return []
        random = self._streams(loader, shared)
        state = self._epochs(loader, alone)
        neutral = None
        if alone.neutral is not None:
            look = Look(num_workers=self.num_workers, num_samples=self.num_samples, epochs=1, neutral=True)
            found = self._look_in_time(loader, self.with_workers, look, "samples of workers without augmentation")
            neutral = None if found is None else found[0]
        owns, repeated = bool(self.survey.owned), False
        if not self.survey.is_iterable:
            findings = self._map_style(loader, alone, shared, neutral, random)
            repeated = findings[0].level == "error"
        elif alone.neutral is None or neutral is None:
            findings = []
        else:
            order = stream_order(
                alone.neutral, neutral, shared[0], alone.delivered[0], self.num_workers, owns_generators=owns
            )
            if order.level in ("ok", "note"):
                for with_, without in ((neutral, alone.neutral), (shared[0], alone.delivered[0])):
                    order = repeated_stream(repeats(with_, without, iterable=True), self.num_workers) or order
            findings = [order, *stream_counts(self.survey, alone.neutral, neutral, self.num_workers)]
        pairs = {} if alone.again is None else {"0 workers": (alone.delivered, alone.again)}
        again = self._look_in_time(loader, self.with_workers, self._with(), f"the same seed again with {self.with_workers}")
        if again is not None:
            pairs[self.with_workers] = (shared, again)
        findings += [determinism(pairs)] if pairs else []
        if random is not None and not (repeated and {*random.duplicated, *random.frozen} <= {SAMPLES}):  # do not report a fact twice
            findings += random_streams(random, self.survey.owned, iterable=self.survey.is_iterable)
        is_frozen = any(finding.name == "frozen-augmentation" for finding in findings)
        return [*findings, *epoch_findings(state, iterable=self.survey.is_iterable, already_told=is_frozen)]

    def _map_style(
        self, loader: FreshLoader, alone: _Alone, shared: list[Epoch], neutral: Epoch | None, random: Streams | None
    ) -> list[Finding]:
        looks = {"0 workers": alone.delivered, self.with_workers: shared}
        for name, look in (
            ("persistent_workers", replace(self._with(), persistent_workers=True)),
            ("in_order=False", replace(self._with(), in_order=False)),
        ):
            found = self._look_in_time(loader, name, look, name)
            if found is not None:
                looks[name] = found
        pairs = [(shared[0], alone.delivered[0])]
        if neutral is not None and alone.neutral is not None:
            pairs.append((neutral, alone.neutral))
        found_ = [repeated_indices(repeats(*pair, iterable=False), self.num_workers) for pair in pairs]
        repeated = next((each for each in found_ if each is not None), None)
        torchs_own = alone.pace.is_torchs_own
        whole = torchs_own or self.num_seen < self.num_samples
        order = map_order(looks, whole=whole, torchs_own=torchs_own)
        return [
            repeated or order,
            *([] if repeated else _content(alone.delivered, shared, random, alone.again)),
            *(counts(alone.count, self.survey) if alone.count is not None else []),
        ]

    def _epochs(self, loader: FreshLoader, alone: _Alone) -> EpochState | None:
        """Find out whether workers follow changes from epoch to epoch; return None if the time runs out first."""
        what = "samples from epoch to epoch"
        num_samples = min(self.num_samples, MAX_EPOCH_SAMPLES)
        items = None if self.survey.is_iterable else alone.pace.items[:num_samples]
        look = Look(num_workers=0, num_samples=num_samples, items=items, epochs=3)
        if not self._has_time(loader, look, what):
            return None

        def looked_at(look: Look) -> list[Epoch]:
            found = self._look(loader, "persistent_workers" if look.persistent_workers else self.with_workers, look, what)
            if found is None:
                raise _NoTime
            return found

        try:
            return epoch_state(look, looked_at, self.survey.tells, self.num_workers)
        except _NoTime:
            return None
        except _Failed:  # the error comes from collate_fn, which is not called otherwise; the start of workers will show why
            self.skipped.append(what)
            return None

    def _with(self) -> Look:
        return Look(num_workers=self.num_workers, num_samples=self.num_samples, generators=self.survey.is_iterable)

    def _streams(self, loader: FreshLoader, shared: list[Epoch]) -> Streams | None:
        """Return the random numbers that each worker draws; None if the check's time does not allow it."""
        if self.survey.is_iterable:
            return streams(shared, same_index=False)
        self.on_step("fetching one sample again and again")
        least = LEAST_DRAWS * self.num_workers
        repeats = max(least, min(max(REPEATS, least), self.num_samples))
        look = replace(self._with(), num_samples=repeats, same_index=True, generators=True)
        found = self._look_in_time(loader, self.with_workers, look, "one sample again and again")
        return None if found is None else streams(found)

    def _look_in_time(self, loader: FreshLoader, name: str, look: Look, what: str) -> list[Epoch] | None:
        """Deliver samples if there is time for it; otherwise return None."""
        return self._look(loader, name, look, what) if self._has_time(loader, look, what) else None

    def _look(self, loader: FreshLoader, name: str, look: Look, what: str) -> list[Epoch] | None:
        """Deliver samples in a separate process; return None if that took too long.

        Raises:
            TrialFailed: it fails without workers. _Failed: it fails only with workers.
        """
        least_s = LEAST_LOOK_S[self.method if look.num_workers else "fork"]
        left_s = self.until_s - time.monotonic()
        limit_s = max(least_s, min(max(left_s, 4 * self._expected_s(look)), left_s + self.budget_s))
        try:
            epochs = self._ask(loader, partial(deliver, look=look), limit_s)
        except OutOfTime:
            self.skipped.append(what)
            return None
        if not isinstance(epochs, Failure):
            return epochs
        if not look.num_workers:
            raise TrialFailed(epochs)
        raise _Failed(name, epochs, self.survey)

    def _ask(self, loader: FreshLoader, work: Callable[[Parts], T], limit_s: float) -> T | Failure:
        """Run `work` on a fresh loader; the time for making the loader again does not count against the budget."""
        self.until_s += loader.making_s
        return loader.look(work, limit_s)

    def _expected_s(self, look: Look) -> float:
        return self.sample_s * look.num_samples * look.epochs

    def _has_time(self, loader: FreshLoader, look: Look, what: str) -> bool:
        if time.monotonic() + self._expected_s(look) < self.until_s:
            return True
        self.skipped.append(what)
        return False

    def _pace(self, loader: FreshLoader) -> Pace:
        """Read the first samples without workers to see how long they take."""
        most_s = min(self.budget_s / SHARE_OF_BUDGET, 10.0)
        first_s = min(FIRST_SAMPLE_S, self.budget_s)
        try:
            seen = self._ask(loader, partial(pace, max_samples=MAX_SAMPLES, max_s=most_s), first_s + most_s)
        except OutOfTime:
            seen = Failure(kind="hang", phase="loader", message=f"nothing came within {first_s:.0f} s")
        if isinstance(seen, Failure):
            if seen.kind == "hang":
                _, _, where = seen.message.partition(": ")
                words = f"no sample came within {first_s:.0f} s, without workers" + (f": {where}" if where else "")
                seen = replace(seen, message=words)
            raise TrialFailed(seen)
        if not seen.num_samples:
            raise no_batch(0)
        return seen


class _NoTime(Exception):
    """A delivery of samples took too long."""


class _Failed(Exception):
    """Loading works without workers and fails with them."""

    def __init__(self, name: str, failure: Failure, survey: Survey) -> None:
        super().__init__(failure.message)
        sentence = f"loading works with 0 workers and {'hangs' if failure.kind == 'hang' else 'fails'} with {name}: {failure.message}"
        if survey.left.threads:
            sentence += f". Making the dataset starts {threads_in_words(survey.left)}, which forked workers do not have"
        elif survey.members or survey.left.shared:
            what = f"dataset.{survey.members[0][0]}, {survey.members[0][1]}" if survey.members else survey.left.shared[0]
            sentence += f". Forked workers share what was open before they started: {what}"
        self.finding = Finding(
            name="loading",
            level="error",
            sentence=sentence,
            fix=MAKE_LATER if survey.left.threads or survey.left.shared or survey.members else None,
            evidence=failure.columns(),
        )


def _content(
    alone: list[Epoch], shared: list[Epoch], random: Streams | None, again: list[Epoch] | None
) -> list[Finding]:
    """Report whether an index gives the same bytes with and without workers.

    Args:
        alone, shared: epochs without and with workers.
        random: which random numbers workers draw, if there was time to find out.
        again: a second delivery of `alone` with the same seed.
    """
    runs = [{seen.key: seen.digest for seen in samples_of(epoch)} for epoch in (*alone, *shared)]
    one, two = runs[0], runs[len(alone)]
    others = [runs[1], *({seen.key: seen.digest for seen in samples_of(epoch)} for epoch in (again or [])[:1])]
    is_random = (random is not None and random.is_random) or any(
        each.get(key, value) != value for each in others for key, value in one.items()
    )
    changed = [key for key, value in one.items() if two.get(key, value) != value]
    evidence = {"num_changed": len(changed), "num_compared": len(one.keys() & two.keys()), "is_random": is_random}
    if changed and not is_random:
        words = f"{len(changed)} of {len(one):,} samples have different bytes with workers than without, although they are not random"
        fix = "look for what workers share: an open file or connection, or a buffer that __getitem__ fills and returns"
        return [Finding(name="content", level="error", sentence=words, fix=fix, evidence=evidence)]
    if changed:
        words = "augmentations draw other random numbers with another num_workers, because torch seeds every worker differently; this is not different data"
        return [Finding(name="content", level="note", sentence=words, evidence=evidence)]
    words = "every index gives the same bytes with and without workers"
    return [Finding(name="content", level="ok", sentence=words, evidence=evidence)]
