"""The differences between the supported versions of Optuna, in one place.

Each function names the version of Optuna at which it can be removed: when pyproject.toml allows no older one.
"""

from __future__ import annotations

import warnings

from optuna.samplers import TPESampler
from optuna.storages import BaseStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

PREFIX = "constraints:"
"""Prefix that Optuna 5 gives the name of a constraint among a trial's system attributes."""


def constraints(trial: FrozenTrial) -> dict[str, float]:
    """Return the constraints of a trial by name; a value above 0 is violated.

    When Optuna 5 is the oldest supported version, use `FrozenTrial.constraints` instead.
    """
    return {name.removeprefix(PREFIX): value for name, value in trial.system_attrs.items() if name.startswith(PREFIX)}


def set_constraint(study: Study, storage: BaseStorage, trial_id: int, name: str, value: float) -> None:
    """Set a constraint of a running trial as Optuna 5 does, so that each version can continue a study of the other.

    The TPESampler of Optuna 5 reads it. Optuna 4 ranks such a trial among the pruned ones, by its last report.

    When Optuna 5 is the oldest supported version, use `Trial.set_constraint` instead.
    """
    if hasattr(Trial, "set_constraint"):
        Trial(study, trial_id).set_constraint(name, value)
    else:
        storage.set_trial_system_attr(trial_id, PREFIX + name, value)


def tpe_sampler(seed: int) -> TPESampler:
    """Return a TPESampler that draws all dimensions together.

    Optuna 4 warns that `multivariate` is experimental. Remove the function when Optuna 5 is the oldest supported version.
    """
    from optuna.exceptions import ExperimentalWarning
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # constant_liar would write to a trial that does not exist yet; the running settings are in `tried` instead
        return TPESampler(seed=seed, multivariate=True, constant_liar=False)
