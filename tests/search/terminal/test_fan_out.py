"""fan_out.py without a cluster: how searches that fail or are killed count."""

import sys

import pytest

from feedrate.search.terminal.fan_out import one_each


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ('case "$*" in *small*) exit 2;; esac', 2), ('case "$*" in *small*) kill -9 $$;; esac', 1)],
)
def test_the_worst_end_is_the_answer(tmp_path, monkeypatch, capfd, script, code):
    """A killed search counts as a failure, although its exit code is below 0; each printed line carries the name of its search."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho $5 $6 $7 $8\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    assert one_each(["large", "small"], ["search", "x", "--out", "elsewhere"], tmp_path / "run") == code
    said = capfd.readouterr().out.splitlines()
    assert sorted(said) == [f"[{name}] --hardware {name} --out {tmp_path}/run/{name}" for name in ("large", "small")]


def test_the_objects_of_the_searches_are_collected(tmp_path, monkeypatch, capfd):
    """With --json: nothing of them is printed here, and a search that printed none is left out."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\ncase \"$*\" in *small*) exit 1;; esac\necho '{\"exit_code\": 0}'\necho told >&2\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    objects = {}
    assert one_each(["large", "small"], ["search", "x", "--json"], tmp_path / "run", objects) == 1
    assert objects == {"large": {"exit_code": 0}}
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "[large] told\n" in printed.err
