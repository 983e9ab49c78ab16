"""Installing the wheel keeps supported packages that are installed already, and constraints.txt pins every version."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_wheel import build_wheel

ROOT = Path(__file__).parents[2]
BUILD_TOOLS = {"pip", "setuptools", "wheel"}


def would_install(what: str) -> set[str]:
    """The packages that pip would add or replace here. It has no index to take one from, so wanting any is an error."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-index", "--report", "-", what]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment["PIP_CONFIG_FILE"] = os.devnull  # it may name a folder of wheels
    asked = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert asked.returncode == 0, asked.stderr
    return {canonicalize_name(item["metadata"]["name"]) for item in json.loads(asked.stdout)["install"]}


def closure(package: str, *extras: str) -> dict[str, str]:
    """The versions here of `package` and of everything that it needs."""
    found: dict[str, str] = {}
    ours = [path for path in sys.path if "thirdparty_files" not in path]  # Ray puts a psutil of its own there once imported
    waiting, seen = [(package, extras)], set()
    while waiting:
        name, extras = wanted = waiting.pop()
        if wanted in seen:
            continue
        seen.add(wanted)
        distribution = next(iter(metadata.distributions(name=name, path=ours)), None)
        assert distribution is not None, f"{name} is not installed"
        found[canonicalize_name(name)] = distribution.version.partition("+")[0]  # torch's 2.13.0+cpu is 2.13.0
        for requirement in map(Requirement, distribution.requires or []):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append((requirement.name, tuple(sorted(requirement.extras))))
    return found


def test_installing_the_wheel_where_torch_and_ray_are_changes_neither_nor_anything_else(tmp_path):
    assert would_install(str(build_wheel(tmp_path))) <= {"feedrate"}


def test_a_package_that_would_be_replaced_is_noticed():
    with pytest.raises(AssertionError, match=r"No matching distribution found for torch<2\.13"):
        would_install("torch<2.13")


IS_OLDEST = Path(sys.prefix).name == ".venv-oldest"


def test_constraints_pin_the_versions_of_everything_that_feedrate_and_its_tests_need():
    """Of the environment that this is: `make venv` or `make test-oldest`."""
    lines = (ROOT / ("constraints-oldest.txt" if IS_OLDEST else "constraints.txt")).read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    needed = closure("feedrate", *(("cluster", "postgresql") if IS_OLDEST else ("dev",)))
    for tool in ("pytest", "pytest-timeout", "pytest-xdist", "build") if IS_OLDEST else ():
        needed |= closure(tool)
    del needed["feedrate"]
    # torch brings its CUDA packages, at versions that it names exactly, where it is not a CPU build
    needed = {name: version for name, version in needed.items() if not name.startswith(("nvidia-", "cuda-", "triton"))}
    assert pins.keys() | {"pip"} == needed.keys() | BUILD_TOOLS
    assert {name: pins[name] for name in needed} == needed
