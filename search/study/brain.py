"""`Brain`: the Optuna study of one search. It proposes the next setting and keeps the result of each trial.

In this room, to tell a trial means to report its end to the study, as in Optuna; a told trial has ended. A trial is made by one
write that contains its setting, origin, kind and run id, so after a crash at any moment it is waiting, running or told, never half
made. A study has one live Brain at a time; searches that share a database have a study each. Telling a trial twice changes nothing.

The meanings differ from Optuna's in three ways:
  - a setting that does not fit the machine is PRUNED with a violated constraint, because TPE learns nothing from FAIL;
    `counts()` counts it as failed;
  - a trial whose process vanished is FAIL with the attribute "lost": it is not counted, and its setting may be drawn again;
  - a pruned trial's value is its last report; it is never COMPLETE.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from copy import copy
from functools import partial
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from feedrate.analysis.disqualified import Disqualified
from feedrate.search.options import LOOKS
from feedrate.search.space.domains import to_optuna
from feedrate.search.space.idle_workers import IdleWorkers
from feedrate.search.space.search_space import SearchSpace
from feedrate.search.study.compat import constraints, set_constraint
from feedrate.search.study.expectation import Expectation
from feedrate.search.study.ledger import Ledger
from feedrate.search.study.pruner import HALF_WIDTH, ConfidencePruner
from feedrate.search.study.sampler import SnappingSampler
from feedrate.search.study.storage import BrainError, close_storage, open_storage, open_study, with_retry
from feedrate.search.study.trials import Ask, Counts, KnownTrial
from feedrate.trainables.config import LoaderConfig

__all__ = ["Ask", "Brain", "BrainError", "Counts", "KnownTrial"]

KIND = "search"
FITS = "fits"
"""Name of the constraint that is violated by a setting that does not fit the machine."""
SAMPLER = "sampler"
"""Origin of settings that the sampler drew."""


class Brain:
    """The study of one search; `Brain.open` makes it."""

    def __init__(self, storage: BaseStorage, study: optuna.Study, sampler: SnappingSampler) -> None:
        self.study = study
        self.run_id = study.study_name
        """Marks the trials of searches, because other programs may add trials to the study."""
        self._storage, self._sampler = storage, sampler
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._trials = Ledger(lambda config: sampler.space.fold(config))
        for frozen in study.get_trials(deepcopy=False):
            self._remember(frozen)

    @classmethod
    def open(
        cls,
        storage_url: str | None,
        journal_path: str | os.PathLike[str],
        *,
        study_name: str,
        space: SearchSpace,
        seed: int = 0,
        sampler: str = "gp",
    ) -> Brain:
        """Open the study in a database or a journal file; make it if it does not exist.

        Args:
            storage_url: `sqlite:///FILE` or `postgresql://...`; None for the journal.
            journal_path: the journal file; not used if there is a database.
            study_name: name of the study, unique in the storage.
            space, seed, sampler: see `SnappingSampler`.

        Raises:
            BrainError: the storage cannot be opened, or the study has another search space.
        """
        storage = open_storage(storage_url, journal_path)
        brain: Brain
        snapping = SnappingSampler(space, seed=seed, kind=sampler, tried=lambda: brain.tried())
        try:
            study = open_study(storage, study_name, snapping, ConfidencePruner(), to_optuna(space))
        except BaseException:
            close_storage(storage)
            raise
        return (brain := cls(storage, study, snapping))

    def close(self) -> None:
        """Close the connections to a database; the study must not be used afterwards."""
        close_storage(self._storage)

    def enqueue(self, config: LoaderConfig, origin: str) -> bool:
        """Enqueue a setting, to be measured before any drawn setting; return False if it was tried or waits already."""
        if config in self.tried():
            return False
        self.add(TrialState.WAITING, config, origin)
        return True

    def ask(self) -> Ask | None:
        """Return the next setting: the first enqueued one, else a drawn one; None if every setting was tried."""
        waiting = min(self._trials.waiting(), key=self._place, default=None)
        if waiting is not None and waiting.config is not None:
            self._start(waiting)
            return Ask(waiting.number, waiting.config, waiting.origin)
        config = with_retry(lambda: self._sampler.draw(self.study, len(self._trials)))
        if config is None:
            return None
        return Ask(self.add(TrialState.RUNNING, config, SAMPLER).number, config, SAMPLER)

    @property
    def disqualified(self) -> Disqualified:
        """Settings that repeat data, so other settings need not be faster than they are."""
        return self._sampler.disqualified

    @disqualified.setter
    def disqualified(self, disqualified: Disqualified) -> None:
        self._sampler.disqualified = disqualified

    def extend(self, config: LoaderConfig) -> SearchSpace | None:
        """Extend the search space if the best setting, `config`, is on the edge of a default range; return None if it is not."""
        space = self._sampler.space.extended(config)
        if space is not None:
            self._sampler.use(space)
        return space

    def without(self, idle: IdleWorkers) -> SearchSpace | None:
        """Remove the settings of which some workers deliver nothing from the search space; return None if that is known already."""
        space = self._sampler.space.without(idle)
        if space is not None:
            self._sampler.use(space)
        return space

    def expectation(self) -> Expectation | None:
        """Return the most promising untried setting and its expected gain; None if too little is known, or nothing is left to try."""
        return with_retry(lambda: self._sampler.expectation(copy(self.study), len(self._trials)))

    def predict(self, configs: Sequence[LoaderConfig]) -> list[float]:
        """Return the rates that settings should have, in items per second, shape (configs,); empty while nothing was measured.

        They are expectations for choosing what to try, never results.
        """
        return with_retry(lambda: self._sampler.predict(copy(self.study), configs))

    def report(self, number: int, step: int, value_sps: float, half_width_fraction: float | None = None) -> None:
        """Report the rate of a running trial over its first `step` windows; a step that was reported already is ignored.

        `half_width_fraction` is half of the 95 % interval from the windows alone (`run_sd_fraction=0`), as a fraction of the rate;
        without it the trial is not stopped.
        """
        past = self._open(number)
        if past is None or step <= past.last_step or not math.isfinite(value_sps):
            return
        if half_width_fraction is not None and step in LOOKS:
            self._set_attrs(past, {HALF_WIDTH: half_width_fraction})
        with_retry(lambda: self._storage.set_trial_intermediate_value(past.trial_id, step, value_sps))
        past.last_step, past.value_sps = step, value_sps

    def should_prune(self, number: int) -> bool:
        """Return whether a running trial can no longer be the best, judged by its last report."""
        past = self._open(number)
        if past is not None and past.last_step in LOOKS:
            return with_retry(lambda: Trial(self.study, past.trial_id).should_prune())
        return False

    def tell_complete(self, number: int, value_sps: float, user_attrs: Mapping[str, Any] | None = None) -> None:
        """Tell a trial that was measured to its end. Without the attribute `low_sps` (pruner.LOW) it stops no other trial."""
        if not math.isfinite(value_sps):
            self.tell_failed(number, f"the rate is {value_sps}, not a number")
        elif past := self._open(number):
            self._finish(past, TrialState.COMPLETE, "complete", user_attrs, value_sps)

    def tell_pruned(self, number: int, user_attrs: Mapping[str, Any] | None = None) -> None:
        """Tell a trial that was stopped early; its last report remains as its value."""
        if past := self._open(number):
            self._finish(past, TrialState.PRUNED, "pruned", user_attrs)

    def tell_failed(
        self, number: int, reason: str, *, infeasible: bool = False, blameless: bool = False, lost: bool = False
    ) -> None:
        """Tell a trial that has no rate.

        Args:
            number: number of the trial.
            reason: one sentence.
            infeasible: whether the setting does not fit the machine's memory or limits; larger settings are then avoided.
            blameless: whether the failure is the machine's fault; the setting may then be drawn once more.
            lost: whether it is not known how the trial ended; it is then not counted, and its setting may be drawn again.
        """
        past = self._open(number)
        if past is None:
            return
        attrs = {"failure": reason} | {key: True for key, on in (("blameless", blameless), ("lost", lost)) if on}
        if infeasible and FITS not in constraints(with_retry(lambda: self._storage.get_trial(past.trial_id))):
            with_retry(lambda: set_constraint(self.study, self._storage, past.trial_id, FITS, 1.0))
        state = TrialState.PRUNED if infeasible else TrialState.FAIL
        self._finish(past, state, "lost" if lost else "failed", attrs, is_blameless=blameless)

    def give_up(self, number: int, reason: str) -> LoaderConfig | None:
        """Enqueue the setting of a running trial that is no longer measured, at its old place, and mark the trial as lost.

        Returns:
            The setting; None if the trial has ended or its setting was enqueued again before.
        """
        past = self._open(number)
        if past is None:
            return None
        requeued = None
        if past.config is not None and all(other.requeue_of != number for other in self._trials.all()):
            self.add(TrialState.WAITING, past.config, past.origin, {"requeue_of": number})
            requeued = past.config
        self.tell_failed(number, reason, lost=True)
        return requeued

    def _place(self, past: KnownTrial) -> int:
        """Return the number of the first trial with this setting, so that an interrupted trial keeps its place in the queue."""
        while past.requeue_of is not None:
            past = self._trials[past.requeue_of]
        return past.number

    def counts(self) -> Counts:
        """Return how many trials are in each state."""
        return self._trials.counts()

    def history(self) -> list[KnownTrial]:
        """Return all trials, in order of their numbers."""
        return self._trials.all()

    def waiting(self) -> list[LoaderConfig]:
        """Return the settings that are enqueued and not yet running."""
        return [past.config for past in self._trials.waiting() if past.config is not None]

    def tried(self) -> AbstractSet[LoaderConfig]:
        """Return the settings that are not drawn again: waiting, running and told ones. The set changes with the study."""
        return self._trials.tried

    def forget(self, past: KnownTrial) -> None:
        """Treat a told trial as lost, because its record is gone: it is not counted, and its setting may be drawn again."""
        self._trials.move(past, "lost")

    def add(
        self, state: TrialState, config: LoaderConfig | None, origin: str, attrs: Mapping[str, Any] | None = None
    ) -> KnownTrial:
        """Add a trial to the study in a single write. Its `config` holds every value of the setting, its parameters only those of the search space."""
        known: dict[str, Any] = {"origin": origin, "kind": KIND, "run_id": self.run_id}
        distributions = self._sampler.distributions(config) if config else {}
        template = create_trial(
            state=state,
            params={name: getattr(config, name) for name in distributions},
            distributions=distributions,
            user_attrs=known | ({"config": config.to_dict()} if config else {}) | dict(attrs or {}),
        )
        trial_id = with_retry(lambda: self._storage.create_new_trial(self._study_id, template))
        made = template  # reading the trial back from a database would take half a dozen queries
        made._trial_id = trial_id
        made.number = with_retry(lambda: self._storage.get_trial_number_from_id(trial_id))
        if made.number != len(self._trials):  # with_retry repeated a write that had succeeded, so there are two trials
            for frozen in self.study.get_trials(deepcopy=False)[len(self._trials) : made.number]:
                self._remember(frozen)
        return self._remember(made)

    def _remember(self, frozen: FrozenTrial) -> KnownTrial:
        attrs, last_step = frozen.user_attrs, frozen.last_step
        past = KnownTrial(
            number=frozen.number,
            trial_id=frozen._trial_id,
            config=LoaderConfig.from_dict(attrs["config"]) if "config" in attrs else None,
            origin=attrs.get("origin", SAMPLER),
            run_id=attrs.get("run_id", ""),
            state=_state(frozen),
            value_sps=frozen.intermediate_values.get(last_step or -1) if frozen.value is None else frozen.value,
            is_blameless=attrs.get("blameless", False),
            requeue_of=attrs.get("requeue_of"),
            last_step=-1 if last_step is None else last_step,
        )
        self._trials.append(past)
        return past

    def _open(self, number: int) -> KnownTrial | None:
        """Return the trial if it is not told yet, after starting it if it waits; None if it is told."""
        if not 0 <= number < len(self._trials):
            raise BrainError(f"the study {self.study.study_name} has no trial {number}")
        past = self._trials[number]
        if not past.is_open:
            return None
        if past.state == "waiting":  # a trial with a record must have run, but the study lost its start
            self._start(past)
        return past

    def _start(self, past: KnownTrial) -> None:
        with_retry(lambda: self._storage.set_trial_state_values(past.trial_id, TrialState.RUNNING))
        self._trials.move(past, "running")

    def _set_attrs(self, past: KnownTrial, attrs: Mapping[str, Any] | None) -> None:
        for name, value in (attrs or {}).items():
            with_retry(partial(self._storage.set_trial_user_attr, past.trial_id, name, value))

    def _finish(
        self,
        past: KnownTrial,
        state: TrialState,
        name: str,
        attrs: Mapping[str, Any] | None,
        value_sps: float | None = None,
        is_blameless: bool = False,
    ) -> None:
        self._set_attrs(past, attrs)  # before the tell: Optuna refuses to change a finished trial
        with_retry(lambda: self.study.tell(past.number, value_sps, state=state, skip_if_finished=True))
        self._trials.move(past, name, is_blameless=is_blameless)
        past.value_sps = past.value_sps if value_sps is None else value_sps


def _state(frozen: FrozenTrial) -> str:
    if frozen.state == TrialState.FAIL:
        return "lost" if frozen.user_attrs.get("lost") else "failed"
    return "failed" if any(violation > 0 for violation in constraints(frozen).values()) else frozen.state.name.lower()
