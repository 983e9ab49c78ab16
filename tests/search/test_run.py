"""run.py: real searches of a small workload whose loading matters."""

import json
import os
import re
import shlex
import subprocess
import sys

import optuna
import pytest
import torch
from conftest import QUICK, records
from torch.utils.data import DataLoader

from feedrate.analysis import load_best, load_run
from feedrate.analysis.best import check_best
from feedrate.analysis.doubts import ROUNDS, settle_command
from feedrate.analysis.schema import check_record, status
from feedrate.search.study.storage import close_storage, open_storage

STATES = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}


def states(storage):
    """What the study says of each trial: [(number, state)]."""
    (name,) = [summary.study_name for summary in optuna.get_all_study_summaries(storage)]
    return [(trial.number, trial.state.name) for trial in optuna.load_study(study_name=name, storage=storage).trials]


def test_a_search_prints_its_answer_and_leaves_a_run_folder(finished):
    """Exit code 0; the table, why, what to paste, and the path of best.json as the last line."""
    assert finished.code == 0, finished.stderr
    assert {"search.json", "trials.jsonl", "study.journal", "best.json", "report.html", "tune"} <= set(
        os.listdir(finished.run)
    )
    lines = finished.stdout.splitlines()
    assert lines[-1] == "Saved: feedrate-runs/toy-1/best.json"
    assert lines[-2] == "Report: feedrate-runs/toy-1/report.html"
    assert any(line.startswith("best ") for line in lines)  # "best (yours)" where the machine was busy
    assert "Paste: DataLoader(dataset, batch_size=16" in finished.stdout
    assert "Traceback" not in finished.stdout + finished.stderr


def test_progress_comes_on_stderr_the_baseline_first(finished):
    """Where it runs, what the user's own setting gives and the ceiling, then the trials: a line each."""
    lines = finished.stderr.splitlines()
    timed = [line.split("] ", 1)[1] for line in lines if re.match(r"\[\d+:\d\d\] ", line)]
    assert lines[-len(timed) :] == [line for line in lines if line.startswith("[")]
    timed = [line for line in timed if not line.startswith(("waiting", "slot obtained"))]  # on a busy machine
    assert "CPU" in timed[0]
    assert timed[1].startswith("yours: b16 w0")
    assert timed[2].startswith("ceiling at b16 (no loading): ")
    # which settings are skipped and when a ceiling is known depends on rates
    later = [line for line in timed[3:] if not line.startswith(("left out", "skipped", "ceiling"))]
    assert [line.split(":")[0] for line in later[:3]] == ["trial 1", "trial 2", "trial 3"]
    assert later[3].startswith("confirming in interleaved rounds: ")
    rounds = [int(re.match(r"round (\d+):", line)[1]) for line in later[4:]]
    assert rounds == sorted(rounds)
    assert {1, 2, 3} <= set(rounds)


def test_best_json_goes_into_a_dataloader(finished):
    """It was compared with the user's own setting inside rounds."""
    best = json.loads((finished.run / "best.json").read_text())
    check_best(best)
    assert best["confirmed"] is True
    assert best["search"]["num_rounds"] >= 3
    assert best["search"]["num_trials"] == 4
    assert best["baseline"]["dataloader"]["num_workers"] == 0
    assert best["verdict"]
    kwargs = dict(load_best(finished.run)) | {"num_workers": 1}
    rows, _ = next(iter(DataLoader(torch.utils.data.TensorDataset(torch.zeros(64, 2), torch.zeros(64)), **kwargs)))
    assert rows.shape == (16, 2)


def test_records_and_study_agree(finished):
    """Every trial is once in the records and once in the study, with the same outcome; none is left running."""
    kept = [record for record in records(finished.run) if record["kind"] == "search"]
    assert len(kept) == 4
    for record in records(finished.run):
        check_record(record)
    told = states(open_storage(None, finished.run / "study.journal"))
    assert told == [(record["number"], STATES[status(record)]) for record in kept]


def test_every_measurement_of_a_round_is_a_fresh_process(finished):
    """Finalists, in one order and then in its reverse, and the baseline, in the first round only if it is not far behind; each sets
    itself up anew."""
    rounds = {}
    for record in records(finished.run):
        if record["kind"] == "confirm":
            rounds.setdefault(record["round"], []).append(record)
    orders = {number: [record["num_workers"] for record in each] for number, each in rounds.items()}
    assert [number for number in orders[2] if number in orders[1]] == orders[1][::-1]
    assert 0 in orders[2]
    assert {record["origin"] for record in rounds[2]} == {"baseline", "finalist"}
    measured = [record for each in rounds.values() for record in each if "setup_s" in record]  # on a very slow host, a trial of a second may fail
    assert measured
    assert all(record["setup_s"] > 0 for record in measured)
    assert "Confirmed in " in finished.stdout


def test_a_trial_runs_as_the_users_own_program_would(finished):
    """Ray's niceness and thread count do not leak in, on whatever processors this machine has."""
    complete = [record for record in records(finished.run) if status(record) == "complete"]
    assert {record["nice"] for record in complete} == {os.nice(0)}
    command = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    threads = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert {record["torch_num_threads"] for record in complete} == {threads}
    assert {record["num_cpus"] for record in complete} == {len(os.sched_getaffinity(0))}


def test_search_json_says_what_was_asked_on_what(finished):
    """The workload, the command, the space, versions and hardware."""
    search = json.loads((finished.run / "search.json").read_text())
    assert search["finished"] is True
    assert search["command"].startswith("feedrate search toy.py:workload --batch-size 16")
    assert search["workload"]["target"].endswith("toy.py:workload")
    assert search["workload"]["epoch_samples"] == 4000
    assert search["space"]["num_workers"] == {"range": [0, 4]}
    assert search["baseline"]["num_workers"] == 0
    assert search["options"]["max_trials"] == 4
    assert {"torch", "ray", "optuna", "numpy", "pandas", "feedrate", "python", "platform"} <= search["versions"].keys()
    assert load_run(finished.run).problems == []


def test_nothing_is_left_behind(finished, home):
    """No process of Ray, template or loader; no token in the home folder."""
    assert finished.left == {}
    assert not (home / ".ray").exists()


@pytest.mark.slow
def test_the_command_that_settles_an_unconfirmed_answer_works(feedrate, tmp_path):
    """It is printed whole, also where as many settings were tried as --max-trials allowed, and adds the rounds.

    It takes half a minute: two searches, and three rounds of two settings.
    """
    quick = ["--batch-size", "16", "--num-workers", "0,2", "--prefetch-factor", "2", "--persistent-workers", "true", "--max-trial-s", "1"]
    first = feedrate("search", "toy.py:workload", *quick, "--no-confirm", "--max-trials", "2", "--out", "run")
    assert first.code == 0, first.stderr
    assert "no setting was measured again in rounds" in first.stdout
    search = json.loads((tmp_path / "run" / "search.json").read_text())
    command = settle_command(ROUNDS, search, load_run(tmp_path / "run").latest, "feedrate resume run")
    assert command.startswith("feedrate resume run --time-budget ")
    settled = feedrate(*shlex.split(command)[1:])
    assert settled.code == 0, settled.stderr
    assert json.loads((tmp_path / "run" / "best.json").read_text())["confirmed"] is True
    assert len([record for record in records(tmp_path / "run") if record["kind"] == "search"]) == 2


@pytest.mark.slow
def test_ctrl_c_keeps_what_was_measured_and_resume_carries_on(start, feedrate, tmp_path):
    """Exit code 130, the resume command as the last line, nothing left running; resume completes the search."""
    run = tmp_path / "feedrate-runs" / "toy-1"
    command = start("search", "toy.py:workload", *QUICK, "--max-trials", "6")
    command.until(lambda: len(records(run)) == 1 and command.trial_processes())
    command.interrupt()
    assert command.wait() == 130, command.stderr
    assert "interrupted: ending the trial, which takes a few seconds" in command.stdout + command.stderr
    last = command.stderr.splitlines()[-1]
    assert last == "interrupted; what was measured is kept. Carry on with: feedrate resume feedrate-runs/toy-1"
    assert "Traceback" not in command.stderr
    assert command.alive() == {}
    before = records(run)
    assert before
    assert "RUNNING" not in [state for _, state in states(open_storage(None, run / "study.journal"))]
    if (run / "best.json").exists():  # the first setting may still have been measured
        assert json.loads((run / "best.json").read_text())["search"]["is_final"] is False
    resumed = feedrate(*last.split("with: feedrate ")[1].split(), "--max-trials", len(before) + 2)
    assert resumed.code == 0, resumed.stderr
    after = records(run)
    assert after[: len(before)] == before
    assert len(after) == len(before) + 2
    assert len({record["number"] for record in after}) == len(after)
    assert json.loads((run / "best.json").read_text())["search"]["is_final"] is True
    assert json.loads((run / "search.json").read_text())["finished"] is True


MIXED = """
import torch
from toy import Slow, workload

class Picky(Slow):
    def __getitem__(self, index):
        info = torch.utils.data.get_worker_info()
        if info is not None and info.num_workers == 2:
            raise RuntimeError("two is one too many")
        return super().__getitem__(index)

def picky():
    return workload(dataset=lambda: Picky(0.001))

def hopeless():
    def fail():
        raise RuntimeError("no model today")
    return workload(model=fail)
"""


@pytest.fixture
def mixed(tmp_path):
    """mixed.py beside toy.py, and folders named as ours are."""
    for name in ("search", "analysis", "trainables"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("mine = True\n")
    check = "import analysis, search, trainables\nassert analysis.mine and search.mine and trainables.mine\n"
    (tmp_path / "mixed.py").write_text(check + MIXED)


@pytest.mark.soak
@pytest.mark.usefixtures("mixed")
def test_a_setting_that_fails_is_a_failed_trial_and_the_others_go_on(feedrate, tmp_path):
    """It has the user's sentence and no number. The user's own search/, analysis/ and trainables/ folders do not matter."""
    command = feedrate(
        "search", "mixed.py:picky", "--batch-size", "16", "--num-workers", "0,2,3", "--prefetch-factor", "2",
        "--persistent-workers", "true", "--max-trial-s", "2", "--out", "out", "--storage", "sqlite:///study.db",
        "--keep-going", "--no-confirm",
    )  # fmt: skip
    assert command.code == 0, command.stderr
    kept = {record["num_workers"]: record for record in records(tmp_path / "out")}
    assert sorted(kept) == [0, 2, 3]
    assert {number: status(record) for number, record in kept.items()} == {0: "complete", 2: "failed", 3: "complete"}
    assert kept[2]["failure_kind"] == "user-code"
    assert "two is one too many" in kept[2]["failure_message"]
    assert "Failed: b16 w2 p2 pers: " in command.stdout
    assert "Ended because every setting of the space has been tried." in command.stdout
    # the study is in the database, and says the same
    assert not (tmp_path / "out" / "study.journal").exists()
    storage = open_storage(f"sqlite:///{tmp_path}/study.db", "")
    told = states(storage)
    close_storage(storage)
    assert told == [(record["number"], STATES[status(record)]) for record in records(tmp_path / "out")]


@pytest.mark.slow
@pytest.mark.usefixtures("mixed")
def test_nothing_that_works_is_exit_code_1(feedrate, tmp_path):
    """With the reason in one sentence; the failures are recorded, and there is no best.json."""
    command = feedrate("search", "mixed.py:hopeless", *QUICK, "--max-trials", "2", "--quiet")
    assert command.code == 1
    run = tmp_path / "feedrate-runs" / "toy-1"  # named as the workload is
    assert command.stderr == "feedrate: no setting worked in feedrate-runs/toy-1: RuntimeError: no model today\n"
    assert [status(record) for record in records(run)] == ["failed", "failed"]
    assert not (run / "best.json").exists()
    assert (run / "report.html").exists()


FROM_PYTHON = """
import json, os
from ray import tune
import toy
from feedrate.search import SearchOptions, run_search
from feedrate.trainables.config import LoaderConfig

environment = dict(os.environ)
result = run_search(
    toy.workload,
    options=SearchOptions(
        max_trials=3, max_trial_s=2.0, baseline=LoaderConfig(num_workers=1, batch_size=16), confirm=False, keep_going=True
    ),
    space={"num_workers": tune.randint(0, 5), "batch_size": tune.choice([16]), "prefetch_factor": 2},
    out="from-python",
    quiet=True,
)
assert dict(os.environ) == environment
print(json.dumps({
    "best": result.best, "dataloader": result.dataloader, "verdict": result.verdict, "folder": str(result.folder),
    "stop_reason": result.stop_reason, "yours": result.ranking[result.ranking["is_baseline"]]["config"].tolist(),
}))
"""


@pytest.mark.slow
def test_run_search_returns_what_the_command_prints(feedrate, tmp_path):
    """From Python: Ray Tune domains, a function as the workload, the user's own baseline; nothing is printed."""
    (tmp_path / "program.py").write_text(FROM_PYTHON)
    program = feedrate("program.py", program=[sys.executable])
    assert program.code == 0, program.stderr
    assert program.stderr == ""
    result = json.loads(program.stdout)
    written = json.loads((tmp_path / "from-python" / "best.json").read_text())
    assert result["best"] == written
    assert result["dataloader"] == written["dataloader"]
    assert result["verdict"] == written["verdict"]
    assert (result["folder"], result["yours"]) == ("from-python", ["b16 w1 p2"])
    assert result["stop_reason"] == "3 settings were tried (--max-trials)"
    assert written["baseline"]["dataloader"]["num_workers"] == 1
    kept = records(tmp_path / "from-python")
    assert len(kept) == 3
    assert all(record["num_workers"] in range(5) and record["prefetch_factor"] in (2, None) for record in kept)
