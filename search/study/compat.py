"""The differences between the supported versions of Optuna, in one place.

Each entry names the version at which it can go: when pyproject.toml no longer allows an older one.
"""

from __future__ import annotations

import warnings

from optuna.samplers import TPESampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

PREFIX = "constraints:"
"""What Optuna 5 puts before a constraint's name among a trial's system attributes."""


def constraints(trial: FrozenTrial) -> dict[str, float]:
    """Return the constraints of a trial by name; a value above 0 is violated.

    Goes with Optuna 5 as the oldest: `FrozenTrial.constraints`.
    """
    return {name.removeprefix(PREFIX): value for name, value in trial.system_attrs.items() if name.startswith(PREFIX)}


def set_constraint(study: Study, storage: BaseStorage, trial_id: int, name: str, value: float) -> None:
    """Set a constraint of a running trial as Optuna 5 does, so that either version carries the other's study on.

    TPESampler reads it from Optuna 5 on. Optuna 4 ranks such a trial among the pruned ones, by its last report.

    Goes with Optuna 5 as the oldest: `Trial.set_constraint`.
    """
    if hasattr(Trial, "set_constraint"):
        Trial(study, trial_id).set_constraint(name, value)
    else:
        storage.set_trial_system_attr(trial_id, PREFIX + name, value)


def tpe_sampler(seed: int) -> TPESampler:
    """Return the sampler that draws all dimensions together.

    Goes with Optuna 5 as the oldest: Optuna 4 warns that `multivariate` is experimental.
    """
    from optuna.exceptions import ExperimentalWarning
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # constant_liar would write to a trial that does not exist yet; running settings are in `tried` instead
        return TPESampler(seed=seed, multivariate=True, constant_liar=False)
