"""The environment of a submitted search and its trials on the cluster: variables (--env) and packages (--pip).

The values of --env are sent as a Python module, which Ray unpacks on each node into a file that only the user that Ray runs as can
read. As `env_vars` of a runtime environment they would appear in the list of jobs and in world-readable logs of every node (Ray 2.60:
raylet.out, runtime_env_agent.log, debug_state.txt).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feedrate.search.options import UsageError
from feedrate.search.shipping.submission import VARIABLE as SUBMISSION
from feedrate.search.shipping.submission import Submission

MODULE = "feedrate_job_environment"
VALUES = "values.json"


def add_to(parser: argparse.ArgumentParser) -> None:
    """Add the options --env and --pip."""
    group = parser.add_argument_group("environment of a submitted search")
    group.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]",
        help="set an environment variable for the search and its trials; NAME alone takes the value from this shell. The value appears in no log, job list "
        "or run folder, but it is in a file on each node, which anyone who can run jobs on the cluster can read",
    )  # fmt: skip
    group.add_argument(
        "--pip", action="append", default=[], metavar="REQUIREMENT|FILE.txt",
        help="have Ray install a package on each node before the search and its trials start; may be given several times",
    )  # fmt: skip


def variables(given: Sequence[str]) -> dict[str, str]:
    """Return the variables of --env.

    Raises:
        UsageError: a name is not a valid variable name, is one that Ray or feedrate sets, or has no value in this shell.
    """
    found = {}
    for text in given:
        name, has_value, value = text.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UsageError("--env: write NAME=VALUE, or only NAME for a variable of this shell")
        if name == SUBMISSION or name.startswith("RAY_JOB_"):
            raise UsageError(f"--env {name}: feedrate or Ray sets that variable itself")
        if not has_value and name not in os.environ:
            raise UsageError(f"--env {name}: this shell does not set it; write {name}=VALUE")
        found[name] = value if has_value else os.environ[name]
    return found


def packed(env: Mapping[str, str], parent: Path) -> list[str]:
    """Write the module with the variables into a folder; return its path in a list, or an empty list if there are no variables."""
    if not env:
        return []
    module = parent / MODULE
    module.mkdir(mode=0o700)
    (module / "__init__.py").write_text('"""The variables of feedrate submit --env."""\n')
    descriptor = os.open(module / VALUES, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w") as stream:
        json.dump(dict(env), stream)
    return [str(module)]


def unpacked() -> dict[str, str]:
    """Return the --env variables of the job that this process belongs to; empty without --env, and outside a job."""
    found = importlib.util.find_spec(MODULE)
    if found is None or found.origin is None:
        return {}
    values: dict[str, str] = json.loads(Path(found.origin).with_name(VALUES).read_text())
    return values


def requirements(given: Sequence[str]) -> list[str]:
    """Return the requirements of --pip, with the lines of each requirements file in its place.

    Raises:
        UsageError: a file cannot be read.
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
    """Return the variables and requirements of a search that is continued.

    Args:
        before: Ray's details of the earlier search, or a `FolderJob`.
        given_env: values of --env; they must contain all variables that the search was submitted with.
        given_pip: values of --pip; if there are any, they replace the earlier requirements.

    Raises:
        UsageError: an earlier variable was not given again; its value is not stored anywhere.
    """
    earlier = before.runtime_env or {}
    text = earlier.get("env_vars", {}).get(SUBMISSION)
    submission = Submission.from_json(json.loads(text)) if text else getattr(before, "submission", None)
    env = variables(given_env)
    if missing := sorted(set(submission.env) - env.keys()) if submission is not None else []:
        again = " ".join(f"--env {name}" for name in missing)
        raise UsageError(f"the search was submitted with {again}, whose values are not stored: give them again")
    pip = earlier.get("pip") or []
    pip = pip.get("packages", []) if isinstance(pip, dict) else pip
    return env, requirements(given_pip) or list(pip)
