"""The differences between the supported versions of Ray, in one place.

Each entry names the version at which it can go: when pyproject.toml no longer allows an older one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_ray_init() -> Iterator[None]:
    """Let `ray.init` start without a tip that this process cannot follow.

    Ray 2.52 to 2.55 warn where RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO is not 0; trials need it at 1 (ray_cluster.py).

    Goes with Ray 2.56 as the oldest.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Tip: In future versions of Ray", category=FutureWarning)
        yield


def use_own_token() -> None:
    """Turn token authentication on where this user has a token and RAY_AUTH_MODE is not set, as ray.init("auto") does.

    Goes with Ray 2.60 as the oldest, before which ray.init does not: import the function at the top of ray_cluster.py then.
    """
    from ray._private.authentication import authentication_token_setup as setup

    if hasattr(setup, "maybe_enable_token_auth_if_token_available"):
        setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
