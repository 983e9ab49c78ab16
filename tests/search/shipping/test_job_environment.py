"""job_environment.py: --env and --pip of a submitted search."""

import argparse
import json
from types import SimpleNamespace

import pytest

from feedrate.search.options import UsageError
from feedrate.search.shipping import job_environment
from feedrate.search.shipping.submission import VARIABLE, Submission


def test_variables_are_given_or_taken_from_here(monkeypatch):
    monkeypatch.setenv("HERE", "a=b")
    assert job_environment.variables(["A=1=2", "HERE", "EMPTY="]) == {"A": "1=2", "HERE": "a=b", "EMPTY": ""}


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("1=secret", "write NAME=VALUE, or only NAME"),
        ("=secret", "write NAME=VALUE, or only NAME"),
        ("FEEDRATE_ABSENT", "this shell does not set it; write FEEDRATE_ABSENT=VALUE"),
        (f"{VARIABLE}=secret", "feedrate or Ray sets that variable itself"),
    ],
)
def test_what_is_no_variable_is_refused_without_its_value(given, reason):
    with pytest.raises(UsageError, match=reason) as refused:
        job_environment.variables([given])
    assert "secret" not in str(refused.value)


def test_requirements_are_given_or_read_from_a_file(tmp_path):
    (tmp_path / "mine.txt").write_text("# what I need\neinops==0.8\n\n  timm  # models\n")
    assert job_environment.requirements(["lz4", str(tmp_path / "mine.txt")]) == ["lz4", "einops==0.8", "timm"]
    with pytest.raises(UsageError, match=r"--pip absent\.txt cannot be read"):
        job_environment.requirements(["absent.txt"])


SUBMISSION = Submission(owner="ann@pc", workload="t.py:w", command="feedrate search t.py:w", way_on="feedrate resume x", env=("A", "B"))


@pytest.mark.parametrize("pip", [["lz4"], {"packages": ["lz4"], "pip_check": False}])
def test_a_search_that_is_carried_on_keeps_its_requirements(pip):
    """As Ray knows them, in either form that Ray gives; what is given now comes first."""
    before = SimpleNamespace(runtime_env={"pip": pip})
    assert job_environment.kept(before, ["B=3"], []) == ({"B": "3"}, ["lz4"])
    assert job_environment.kept(before, [], ["timm"]) == ({}, ["timm"])
    assert job_environment.kept(SimpleNamespace(runtime_env=None), [], []) == ({}, [])


@pytest.mark.parametrize("knows", ["Ray", "the run folder"])
def test_values_are_asked_for_again(knows):
    """The names are known, the values are kept nowhere."""
    of_ray = {"env_vars": {VARIABLE: json.dumps(SUBMISSION.to_json())}}
    before = SimpleNamespace(runtime_env=of_ray) if knows == "Ray" else SimpleNamespace(runtime_env={}, submission=SUBMISSION)
    with pytest.raises(UsageError, match="submitted with --env A, whose values are not stored"):
        job_environment.kept(before, ["B=1"], [])
    assert job_environment.kept(before, ["B=1", "A=2"], [])[0] == {"A": "2", "B": "1"}


def test_values_travel_in_a_file_of_the_users_own(tmp_path, monkeypatch):
    assert job_environment.packed({}, tmp_path) == []
    assert job_environment.unpacked() == {}
    (module,) = job_environment.packed({"A": "1", "B": "ü\n"}, tmp_path)
    file = tmp_path / job_environment.MODULE / job_environment.VALUES
    assert (module, file.stat().st_mode & 0o777) == (str(file.parent), 0o600)
    monkeypatch.syspath_prepend(tmp_path)
    assert job_environment.unpacked() == {"A": "1", "B": "ü\n"}


def test_both_can_be_repeated():
    parser = argparse.ArgumentParser()
    job_environment.add_to(parser)
    args = parser.parse_args(["--env", "A=1", "--pip", "x", "--env", "B"])
    assert (args.env, args.pip) == (["A=1", "B"], ["x"])
