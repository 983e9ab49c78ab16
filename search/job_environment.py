"""What a submitted search and its trials find on the cluster beside the folder that is sent: --env and --pip."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from feedrate.search.options import UsageError
from feedrate.search.submission import VARIABLE as SUBMISSION


def add_to(parser: argparse.ArgumentParser) -> None:
    """What the job and its trials find on the cluster beside the folder that is sent."""
    group = parser.add_argument_group("environment of a submitted search")
    group.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]",
        help="set an environment variable for the search and its trials; NAME alone takes the value from here. feedrate never prints the value, but "
        "Ray shows it to everybody who may use the cluster, and in its logs on the nodes: put a secret into the nodes' own environment instead",
    )  # fmt: skip
    group.add_argument(
        "--pip", action="append", default=[], metavar="REQUIREMENT|FILE.txt",
        help="have Ray install a package for the search and its trials, on each node, before they start; repeat it for more",
    )  # fmt: skip


def variables(given: Sequence[str]) -> dict[str, str]:
    """Return the variables of --env.

    Raises:
        UsageError: a name that is none, one that is Ray's or ours, or one without a value here.
    """
    found = {}
    for text in given:
        name, has_value, value = text.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UsageError("--env: write NAME=VALUE, or NAME alone for a variable that is set here")
        if name == SUBMISSION or name.startswith("RAY_JOB_"):
            raise UsageError(f"--env {name}: feedrate or Ray sets that variable itself")
        if not has_value and name not in os.environ:
            raise UsageError(f"--env {name}: it is not set here; write {name}=VALUE")
        found[name] = value if has_value else os.environ[name]
    return found


def requirements(given: Sequence[str]) -> list[str]:
    """Return the requirements of --pip, those in files one by one.

    Raises:
        UsageError: a file that cannot be read.
    """
    found: list[str] = []
    for text in given:
        if not text.endswith(".txt"):
            found.append(text)
            continue
        try:
            lines = [line.partition(" #")[0].strip() for line in Path(text).read_text().splitlines()]
        except OSError as error:
            raise UsageError(f"--pip {text} cannot be read: {error.strerror}") from None
        found += [line for line in lines if line and not line.startswith("#")]
    return found


def kept(before: Any, given_env: Sequence[str], given_pip: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables and requirements of a search that is carried on: the earlier ones, and what is given now.

    Args:
        before: Ray's details of the search, or a `FolderJob`.
        given_env: of --env.
        given_pip: of --pip; replaces the earlier requirements where it is given.

    Raises:
        UsageError: values of the earlier --env are gone with Ray's head, and were not given again.
    """
    earlier = before.runtime_env or {}
    hidden = {SUBMISSION, "RAY_JOB_STOP_WAIT_TIME_S"}
    env = {name: value for name, value in earlier.get("env_vars", {}).items() if name not in hidden} | variables(given_env)
    pip = earlier.get("pip") or []
    pip = pip.get("packages", []) if isinstance(pip, dict) else pip
    submission = getattr(before, "submission", None)
    if missing := sorted(set(submission.env) - env.keys()) if submission is not None else []:
        raise UsageError(f"the search was submitted with --env {', '.join(missing)}, whose values are gone with Ray's head: give them again")
    return env, requirements(given_pip) or list(pip)
