"""The differences between the supported versions of Ray, in one place.

Each function names the version of Ray at which it can be removed: when pyproject.toml allows no older one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_ray_init() -> Iterator[None]:
    """Suppress a warning of `ray.init` that does not apply to feedrate.

    Ray 2.52 to 2.55 warn if RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO is not 0; trials need it to be 1 (ray_cluster.py).

    Remove it when Ray 2.56 is the oldest supported version.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Tip: In future versions of Ray", category=FutureWarning)
        yield


def use_own_token() -> None:
    """Turn token authentication on if this user has a token and RAY_AUTH_MODE is not set, as ray.init("auto") does since Ray 2.60.

    With a version of Ray that lacks the function, do nothing. When Ray 2.60 is the oldest supported version, import the function at the
    top of ray_cluster.py instead.
    """
    from ray._private.authentication import authentication_token_setup as setup

    if hasattr(setup, "maybe_enable_token_auth_if_token_available"):
        setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
