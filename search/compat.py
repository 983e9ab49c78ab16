"""The differences between the supported versions of Optuna and Ray, in one place.

Each entry names the version at which it can go: when pyproject.toml no longer allows an older one. Optuna is imported by
the functions that need it: `feedrate measure` comes here through engine.py and needs none.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.samplers import TPESampler
    from optuna.storages import BaseStorage
    from optuna.study import Study
    from optuna.trial import FrozenTrial

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
    from optuna.trial import Trial

    if hasattr(Trial, "set_constraint"):
        Trial(study, trial_id).set_constraint(name, value)
    else:
        storage.set_trial_system_attr(trial_id, PREFIX + name, value)


def tpe_sampler(seed: int) -> TPESampler:
    """Return the sampler that draws all dimensions together.

    Goes with Optuna 5 as the oldest: Optuna 4 warns that `multivariate` is experimental.
    """
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import TPESampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        # constant_liar would write to a trial that does not exist yet; running settings are in `tried` instead
        return TPESampler(seed=seed, multivariate=True, constant_liar=False)


@contextmanager
def quiet_ray_init() -> Iterator[None]:
    """Let `ray.init` start without a tip that this process cannot follow.

    Ray 2.52 to 2.55 warn where RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO is not 0; trials need it at 1 (engine.py).

    Goes with Ray 2.56 as the oldest.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Tip: In future versions of Ray", category=FutureWarning)
        yield


def use_own_token() -> None:
    """Turn token authentication on where this user has a token and RAY_AUTH_MODE is not set, as ray.init("auto") does.

    Goes with Ray 2.60 as the oldest, before which ray.init does not: import the function at the top of engine.py then.
    """
    from ray._private.authentication import authentication_token_setup as setup

    if hasattr(setup, "maybe_enable_token_auth_if_token_available"):
        setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
