"""Command lines that people can paste, with the environment variable that they need."""

from __future__ import annotations

import os
import shlex

AUTH_MODE = "RAY_AUTH_MODE"


def pasted(*words: str) -> str:
    """Return a feedrate command that also works in a shell in which RAY_AUTH_MODE=token is not exported."""
    prefix = f"{AUTH_MODE}=token " if os.environ.get(AUTH_MODE, "").lower() == "token" else ""
    return prefix + shlex.join(["feedrate", *words])
