"""Every public function of feedrate.analysis shows how it is used, and the example is true."""

import doctest
import inspect
from importlib import import_module
from pathlib import Path

import pytest

import feedrate.analysis

ROOT = Path(__file__).parents[2]
PUBLIC = [name for name in feedrate.analysis.__all__ if name != "Run"]


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_in_the_docstring_is_true(name, monkeypatch):
    """Run in the repository's folder, where the example run lies."""
    monkeypatch.chdir(ROOT)
    function = getattr(feedrate.analysis, name)
    assert inspect.isfunction(function), name
    (found,) = doctest.DocTestFinder(recurse=False).find(function, name, module=import_module(function.__module__))
    assert found.examples, f"{name} has no example"
    runner = doctest.DocTestRunner()
    said = []
    runner.run(found, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)
