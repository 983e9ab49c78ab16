"""--json: one object on standard output with the fields of docs/json.md, and nothing else there, whatever happens."""

import json
import re
import signal
import subprocess
import sys

import pytest
from answers import answer, documented, exit_codes
from conftest import FEEDRATE, TOY

from feedrate.search.cli.main import COMMANDS, main
from feedrate.search.service.job_facts import MEANING
from feedrate.search.terminal import machine_output

LOUD = """
import os, sys
assert os.environ["AWS_ACCESS_KEY_ID"] == "mine"  # in every trial of a local search, as in the user's own process
print("imported, to standard output")
os.write(1, b"written to descriptor 1\\n")
""" + TOY


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        ("show RUN", "show"),
        ("show RUN --table noise,failures", "show"),
        ("compare RUN RUN", "compare"),
        ("runs RUN/..", "runs"),
        ("report RUN -o elsewhere", "report"),
        ("export RUN", "export"),
        ("export RUN -o best.json", "export"),
        ("workloads", "workloads"),
        ("version", "version"),
        ("submit images --dry-run", "submit-dry-run"),
        ("submit mine.py:workload --dry-run", "submit-dry-run"),
        ("runs --prune RUN", "prune"),
    ],
)
def test_the_object_has_the_documented_fields(finished, mine, tmp_path, capfd, arguments, command):
    """Of the commands that only read; the others are compared with the page where they are tested."""
    mine(TOY)
    assert main([*arguments.replace("RUN", str(finished.run)).split(), "--json"]) == 0
    facts = answer(capfd.readouterr().out, command)
    assert facts["exit_code"] == 0
    if command == "show":
        assert set(facts["tables"]) >= {"noise", "failures"}
        assert facts["finished"] is True
    if command == "submit-dry-run" and facts["folder"]:
        assert [file["path"] for file in facts["sent"]] == ["mine.py"]
        assert facts["num_bytes"] == (tmp_path / "mine.py").stat().st_size
    if command == "export":
        assert facts["best"] == json.loads((finished.run / "best.json").read_text())


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        ("show absent", 2, "usage"),
        ("export best.json --nonsense", 2, "usage"),
        ("nonsense", 2, "usage"),
        ("", 2, "usage"),
        ("measure mine.py:raises", 1, "workload-failed"),
    ],
)
def test_an_error_is_an_object_too(mine, capfd, arguments, code, kind):
    """And its sentence stands on standard error, as without --json."""
    mine(TOY + "\ndef raises():\n    raise OSError('no disk')\n")
    assert main([*arguments.split(), "--json"]) == code
    printed = capfd.readouterr()
    facts = answer(printed.out, "error")
    assert (facts["kind"], facts["exit_code"], facts["run"], facts["resume"]) == (kind, code, None, None)
    assert f"feedrate: {facts['error']}\n" in printed.err


def test_a_file_that_is_not_replaced_is_an_error_although_the_answer_is_known(finished, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "best.json").write_text("mine")
    assert main(["export", str(finished.run), "-o", "best.json", "--json"]) == 2
    assert "exists" in answer(capfd.readouterr().out, "error")["error"]


@pytest.mark.slow
def test_a_search_and_its_resumption(feedrate, tmp_path):
    """What the user's code prints goes to standard error. Takes over 10 s, because two searches are made."""
    (tmp_path / "loud.py").write_text(LOUD)
    space = ["--batch-size", "16", "--num-workers", "0,1", "--prefetch-factor", "2", "--max-trial-s", "1", "--no-confirm"]
    command = feedrate("search", "loud.py:workload", *space, "--max-trials", "1", "--json", AWS_ACCESS_KEY_ID="mine")
    facts = answer(command.stdout, "search")
    assert (command.code, facts["exit_code"], facts["num_trials"], facts["num_failed"], facts["failures"]) == (0, 0, 1, 0, [])
    assert facts["run"] == str(tmp_path / "feedrate-runs" / "toy-1")
    assert facts["best"] == json.loads((tmp_path / "feedrate-runs" / "toy-1" / "best.json").read_text())
    assert "imported, to standard output\n" in command.stderr
    assert "written to descriptor 1\n" in command.stderr
    assert "yours: b16 w0" in command.stderr
    command = feedrate("resume", "feedrate-runs/toy-1", "--max-trials", "2", "--json", AWS_ACCESS_KEY_ID="mine")
    facts = answer(command.stdout, "resume")
    assert (command.code, facts["num_trials"]) == (0, 2)


@pytest.mark.slow
def test_a_search_that_finds_nothing_names_its_run(feedrate, tmp_path):
    (tmp_path / "hopeless.py").write_text(TOY + "\ndef hopeless():\n    def fail():\n        raise OSError('no model')\n    return workload(model=fail)\n")
    command = feedrate("search", "hopeless.py:hopeless", "--batch-size", "16", "--num-workers", "0", "--max-trials", "1", "--json")
    facts = answer(command.stdout, "error")
    assert (command.code, facts["exit_code"], facts["kind"]) == (1, 1, "nothing-found")
    assert facts["run"] == str(tmp_path / "feedrate-runs" / "toy-1")
    assert "OSError: no model" in facts["error"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_an_interrupted_command_prints_its_object(start, number, code):
    command = start("measure", "toy.py:workload", "--json")
    command.until(lambda: len(command.trial_processes()) >= 2)
    command.process.send_signal(number)
    assert command.wait() == code
    facts = answer(command.stdout, "error")
    assert (facts["kind"], facts["exit_code"]) == ("interrupted", code)


ENDED_BY = {
    0: ["workloads"],
    1: ["measure", "mine.py:raises"],
    2: ["resume", "absent"],
}


def test_the_table_of_exit_codes_is_complete():
    """Each code of it is tested: 0 to 2 below, those of signals above; and what we say of a submitted search agrees."""
    assert exit_codes() == [*ENDED_BY, 129, 130, 143]
    assert set(MEANING) <= set(exit_codes())


@pytest.mark.parametrize("code", ENDED_BY)
def test_exit_codes_are_those_of_the_process(mine, tmp_path, code):
    mine(TOY + "\ndef raises():\n    raise OSError('no disk')\n")
    assert subprocess.run([*FEEDRATE, *ENDED_BY[code]], cwd=tmp_path, capture_output=True, check=False).returncode == code


def test_every_command_but_logs_takes_json_and_every_object_is_documented():
    """A schema that is printed and not on the page fails where it is printed; one that is on the page is some command's."""
    names = {type(command).__name__.lower() for command in COMMANDS}
    help_texts = subprocess.run(
        [sys.executable, "-c", "import sys; from feedrate.search.cli.main import _parser; p = _parser(); [print(a.choices[n].format_usage()) for a in p._actions if a.choices for n in a.choices]"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    with_json = set(re.findall(r"usage: feedrate (\w+) (?:(?!usage).)*--json", help_texts, re.DOTALL))
    assert with_json == names - {"logs"}
    schemas = {name.split("/")[2] for name in documented()}
    assert schemas == names - {"logs"} | {"error", "explain", "failure", "searches", "prune", "submit-dry-run"}


def test_what_json_does_not_have_becomes_null_or_text(tmp_path):
    """Infinity and NaN, numpy's numbers, paths, tuples, keys that are numbers."""
    import numpy as np

    found = machine_output.plain({1: float("inf"), "a": (np.float64(1.5), float("nan"), np.float64("nan"), np.int64(3)), "b": tmp_path, "c": None, "d": True})
    assert found == {"1": None, "a": [1.5, None, None, 3], "b": str(tmp_path), "c": None, "d": True}
