"""`feedrate show`, `compare`, `runs` and `verify`: what they print, and their exit codes."""

import json
import re
from pathlib import Path

import pytest
from answers import answer
from conftest import TOY
from synthetic import example_best, small_run, write_run

from feedrate.search.cli.main import main


@pytest.fixture
def run(tmp_path):
    """A finished run."""
    return write_run(tmp_path / "runs" / "toy-1", small_run(), best=example_best())


def said(capfd, *arguments):
    """Exit code, what was printed, what was complained of."""
    code = main(list(map(str, arguments)))
    captured = capfd.readouterr()
    return code, captured.out, captured.err


def test_show_answers_every_question(run, capfd):
    """The answer comes first, then each table under its question; --table chooses tables, and --rows cuts them and prints a note."""
    code, out, _ = said(capfd, "show", run)
    assert code == 0
    assert "1,843 samples/s, 4.46x the baseline" in out.splitlines()[1]
    for question in ("What is best", "The best at each batch size", "How much each dimension matters", "Throughput against memory",
                     "Where the time goes", "What failed, and why", "How noisy the machine was"):  # fmt: skip
        assert question in out
    code, out, _ = said(capfd, "show", run, "--table", "ranking", "--rows", 2)
    assert code == 0
    assert "Where the time goes" not in out
    assert re.search(r"\.\.\. and \d more \(--rows \d\)", out)


def test_a_run_without_a_trial_is_shown_in_two_lines(tmp_path, capfd):
    """Not as ten questions without an answer; a table that is asked for by name is printed."""
    empty = write_run(tmp_path / "empty", [])
    assert said(capfd, "show", empty)[1].splitlines() == ["toy · empty", "No trial was measured yet"]
    assert "nothing to show" in said(capfd, "show", empty, "--table", "time")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--table", "nonsense"], "--table takes any of ranking, batch-size"),
        (["--rows", "0"], "--rows must be 1 or more"),
        (["--table", "time", "--ceiling", "4000"], "--ceiling would have no effect: add what-if to --table"),
        (["--ceiling", "0"], "--ceiling must be above 0, not 0"),
        (["--ranks", "0"], "--ranks must be 1 or more, not 0"),
    ],
)
def test_show_refuses(run, capfd, arguments, words):
    code, _, err = said(capfd, "show", run, *arguments)
    assert code == 2
    assert words in err


def test_show_predicts_what_is_asked_for(capfd):
    """A row for each change that the user names, as text and as JSON."""
    example, asked = Path(__file__).parents[3] / "docs" / "example-run", ["--table", "what-if", "--ceiling", "4000", "--ranks", "2"]
    code, out, _ = said(capfd, "show", example, *asked)
    assert code == 0
    assert "an accelerator that trains 4,000/s without loading" in out and "2 ranks on these CPUs" in out
    code, out, _ = said(capfd, "show", example, *asked, "--json")
    assert [each["name"] for each in json.loads(out)["tables"]["what-if"]][-2:] == ["ceiling", "ranks"]


def test_compare_divides_setting_by_setting(run, tmp_path, capfd):
    """And names what differs; other workloads, and folders that are no runs, are exit code 2."""
    other = write_run(tmp_path / "runs" / "toy-2", small_run(), best=example_best(), versions={"torch": "2.14.0"})
    code, out, _ = said(capfd, "compare", run, other)
    assert code == 0
    assert "the rate of B is 1.000 times that of A" in out
    assert "Differs: version of torch: 2.13.0 and 2.14.0" in out
    stranger = write_run(tmp_path / "stranger", small_run(), workload={"name": "other", "unit": "samples"})
    for second, words in ((stranger, "runs of different workloads"), (tmp_path, "is not a run folder")):
        code, _, err = said(capfd, "compare", run, second)
        assert (code, words in err) == (2, True), err


def test_runs_lists_what_was_searched(run, capfd):
    """A line a run, with --json one object; an empty place is exit code 2."""
    code, out, _ = said(capfd, "runs", run.parent)
    assert code == 0
    assert "toy-1" in out
    assert "4.46x" in out
    code, out, _ = said(capfd, "runs", run.parent, "--json")
    assert [each["config"] for each in answer(out, "runs")["runs"]] == ["b64 w6 p4 pin pers"]
    code, _, err = said(capfd, "runs", run / "*")
    assert code == 2
    assert "matches no run" in err


def test_a_report_of_an_address_needs_a_folder(run, tmp_path, capfd):
    code, _, err = said(capfd, "report", run.as_uri())
    assert code == 2
    assert "give the folder to write to with -o DIR" in err
    code, _, err = said(capfd, "report", run, "-o", "file:///tmp/x")
    assert (code, "-o takes a folder" in err) == (2, True)
    code, out, _ = said(capfd, "export", run.as_uri())
    assert json.loads(out)["dataloader"]["num_workers"] == 6
    code, _, _ = said(capfd, "report", run.as_uri(), "-o", tmp_path / "elsewhere")
    assert code == 0
    assert (tmp_path / "elsewhere" / "report.html").exists()


@pytest.fixture
def verify(mine, tmp_path, capfd):
    """Verifies a best.json whose setting and baseline have these numbers of workers, on a dataset with slow samples."""

    def run_verify(workers, baseline_workers, *, text=TOY, **more):
        mine(text)
        best = example_best(
            dataloader=loader(workers), measured_on={"versions": {"torch": "1.0"}}, workload={"name": "toy"},
            baseline={"dataloader": loader(baseline_workers), "samples_per_second": 1.0, "speedup": 2.0, "speedup_ci95": [1.9, 2.1]},
        )  # fmt: skip
        (tmp_path / "best.json").write_text(json.dumps(best))
        arguments = [word for name, value in more.items() for word in (f"--{name}", str(value)) if word]
        return said(capfd, "verify", tmp_path / "best.json", "mine.py:workload", "--time-budget", "1s", "--max-trial-s", "1", *arguments)

    return run_verify


def test_an_answer_of_another_workload_is_refused(verify):
    code, _, err = verify(2, 0, text=TOY.replace('"name": "toy"', '"name": "other"'))
    assert code == 2
    assert "is the answer for the workload 'toy', and mine.py:workload is 'other'" in err


def test_what_cannot_be_exported_is_said(run, capfd):
    """A broken best.json has a way out; a search that goes on says that its answer is not the last word."""
    (run / "best.json").write_text("hello")
    code, _, err = said(capfd, "export", run)
    assert (code, "Move the file away" in err) == (2, True)
    (run / "best.json").unlink()
    code, out, err = said(capfd, "export", run)
    assert (code, json.loads(out)["confirmed"]) == (0, False)
    assert err == ""
    (run / "search.json").write_text(json.dumps(json.loads((run / "search.json").read_text()) | {"finished": False}))
    code, _, err = said(capfd, "export", run)
    assert (code, err) == (0, "note: the search is not finished; this is its best setting so far, which is not confirmed\n")


def loader(workers):
    return {"batch_size": 16, "num_workers": workers} | ({"persistent_workers": True, "prefetch_factor": 2} if workers else {})


@pytest.mark.slow
def test_an_answer_that_holds(verify):
    """Rounds of both in turn, what differs, the sentence, and an exit code that says the same, also as one object.

    What the rates say is their business (test_verification.py has recorded ones).
    """
    code, out, _ = verify(4, 0)
    assert (code, "does not hold" in out) in ((0, False), (1, True)), out
    assert "differs: torch was 1.0, and is 2.13.0" in out
    assert [line.split(":")[0] for line in out.splitlines() if line.startswith("round")][:4] == ["round 1", "round 1", "round 2", "round 2"]
    assert re.search(r"\d\.\d\dx the baseline here", out)
    code, out, err = verify(4, 0, json="")
    facts = answer(out, "verify")
    assert (code, facts["num_rounds"]) == (0 if facts["holds"] else 1, 3)
    assert facts["speedup_ci95"][0] < facts["speedup"] < facts["speedup_ci95"][1]
    assert "differs: torch" in err


def test_an_answer_that_does_not_hold(verify):
    """A setting that does not work at all: exit code 1. Slower ones are in test_verification.py."""
    code, out, _ = verify(2, 0, text=TOY.replace("time.sleep(self.sleep_s)", "raise OSError('disk gone')"))
    assert code == 1
    assert "the answer does not work here: b16 w2 p2 pers: OSError: disk gone" in out
