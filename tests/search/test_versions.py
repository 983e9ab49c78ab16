"""versions.py and `feedrate version`: what is installed, what was tested, and the files that pin both ends."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from answers import answer
from conftest import FEEDRATE
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from feedrate.search import versions

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = {canonicalize_name(each.name): each for each in map(Requirement, PROJECT["dependencies"])}


def pins(name):
    lines = (ROOT / name).read_text().splitlines()
    return {canonicalize_name(package): number for package, _, number in (line.partition("==") for line in lines if line and line[0] != "#")}


def lower_bounds(requirements):
    return {name: spec.version for name, each in requirements.items() for spec in each.specifier if spec.operator == ">="}


@pytest.fixture
def elsewhere(tmp_path):
    """Runs feedrate with other versions than those that are installed, as far as their metadata tell."""

    def run(*arguments, **numbers):
        for name, number in numbers.items():
            folder = tmp_path / f"{name}-{number}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")
        path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
        command = [*FEEDRATE, *map(str, arguments)]
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True)

    return run


def test_version_prints_one_object(elsewhere):
    """Python, the operating system, and every package that feedrate names; the form has a version."""
    facts = answer(elsewhere("version", "--json").stdout, "version")
    assert facts["feedrate"] == version("feedrate")
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))
    assert facts["os"]["kernel"] == os.uname().release
    optional = {Requirement(each).name for name, extra in PROJECT["optional-dependencies"].items() if name != "dev" for each in extra}
    named = set(facts["packages"]) - set(versions.LOADING)
    assert {canonicalize_name(name) for name in named} == NEEDED.keys() | {canonicalize_name(name) for name in optional}
    assert facts["packages"]["torch"] == version("torch")


def test_version_prints_a_line_for_each(elsewhere):
    """For people: the same, and between which releases feedrate was tested."""
    lines = elsewhere("version").stdout.splitlines()
    assert lines[0].split() == ["feedrate", version("feedrate")]
    (torch,) = (line for line in lines if line.startswith("torch "))
    assert torch.split()[1] == version("torch")
    assert torch.endswith("(tested: 2.6 to 2.13)")


def test_an_untested_release_is_noted_and_not_refused(elsewhere):
    """Of torch and Ray, older or newer than what was tested; a patch release of a tested one is none."""
    facts = json.loads(elsewhere("version", "--json", torch="2.99.1+cu140", ray="2.60.7").stdout)
    said = "torch 2.99.1+cu140 has not been tested with this feedrate, only 2.6 to 2.13"
    assert facts["notes"] == [said]
    measured = elsewhere("measure", "table", "--num-workers", "0", "--max-trial-s", "1", "--json")
    assert measured.stderr.count(f"note: {said}\n") == 1
    assert json.loads(measured.stdout)["throughput"] > 0


def test_what_changed_since_a_run_was_recorded():
    """Only what changes rates, and only what the record names."""
    now = versions.recorded()
    assert {"python", "torch", "ray", "optuna", "numpy", "pandas", "pyarrow", "psutil", "rich", "plotly", "pillow", "platform"} <= now.keys()
    assert versions.changed(now) == versions.changed({}) == versions.changed(now | {"rich": "1.0", "torchvision": "0.1"}) == []
    assert versions.changed(now | {"torch": "2.7.0"}) == [
        f"torch was 2.7.0 when the search began, but is {now['torch']} now: this may change rates"
    ]


def test_the_newest_tested_releases_are_those_of_constraints():
    newest = pins("constraints.txt")
    for name, (_, tested) in versions.TESTED.items():
        assert newest[name].startswith(f"{tested}.")


def test_the_oldest_tested_releases_are_the_lower_bounds():
    bounds = lower_bounds(NEEDED)
    assert bounds.keys() == NEEDED.keys()
    for name, (tested, _) in versions.TESTED.items():
        assert bounds[name] == tested


def test_the_oldest_environment_has_every_lower_bound_but_torchs():
    """torch's own is tried by hand (docs/versions.md): its builds are gigabytes."""
    oldest = pins("constraints-oldest.txt")
    bounds = lower_bounds(NEEDED | {"psycopg": Requirement(PROJECT["optional-dependencies"]["postgresql"][0])})
    assert oldest["torch"] == pins("constraints.txt")["torch"]
    for name, bound in bounds.items():
        if name != "torch":
            assert Version(oldest[name]) == Version(bound), name


def test_classifiers_name_the_pythons_that_were_tested():
    """From the lower bound on, without a gap; docs/versions.md has a row for each."""
    named = re.findall(r":: (3\.\d+)'", str(PROJECT["classifiers"]))
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert [int(name.split(".")[1]) for name in named] == list(range(11, 11 + len(named)))
    table = (ROOT / "docs/versions.md").read_text()
    for name in named:
        assert f"| {name}" in table
