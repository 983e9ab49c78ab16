"""Command lines for people to paste: with what they need of this process's environment."""

from __future__ import annotations

import os
import shlex

AUTH_MODE = "RAY_AUTH_MODE"


def pasted(*words: str) -> str:
    """Return a feedrate command that works as it stands, also in a shell where RAY_AUTH_MODE=token is not exported."""
    prefix = f"{AUTH_MODE}=token " if os.environ.get(AUTH_MODE, "").lower() == "token" else ""
    return prefix + shlex.join(["feedrate", *words])
