"""Training commands on the command line: `feedrate COMMAND ... -- python train.py ARGS`."""

import json
import sys
from pathlib import Path

import pytest
from answers import answer
from conftest import records
from toy_training import TRAIN

from feedrate.search.cli.main import main


@pytest.fixture(autouse=True)
def _here(mine, tmp_path):
    mine("")
    Path("train.py").write_text(TRAIN)


def test_a_setting_is_measured(capfd):
    """The line of the loader, what the script wrote, and one object; the script's own --json and --debug are its own. It starts a script."""
    command = ["measure", "--num-workers", "2", "--max-trial-s", "1", "--json", "--", sys.executable, "train.py", "--json", "--debug"]
    assert main(command) == 0
    printed = capfd.readouterr()
    facts = answer(printed.out, "measure")
    assert facts["dataloader"]["num_workers"] == 2
    assert facts["throughput"] > 0
    assert facts["measurement"]["between_epochs_s"] >= 0
    assert "train.py:20  DataLoader(Slow, batch_size=16, shuffle=True, num_workers=1)  <- measured: an optimizer steps between" in printed.err
    assert "note: the script wrote files into its folder while it was measured: first.pt." in printed.err
    assert "arguments" not in printed.err


def test_a_script_is_explained(capfd):
    assert main(["check", "--explain", "--json", "--", sys.executable, "train.py"]) == 0
    facts = answer(capfd.readouterr().out, "explain")
    assert [(each["where"], each["role"], each["num_steps"]) for each in facts["loaders"]] == [("train.py:20", "measured", 1)]
    assert facts["device"] == "cpu"


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        ("measure --", 2, "there is no command after --: write the command that starts your training"),
        ("measure", 2, "the following arguments are required: WORKLOAD, or -- and the command that starts your training"),
        ("measure images -- python train.py", 2, "there are a WORKLOAD (images) and a training command (-- ...): leave out one of them"),
        ("measure --loader 2 images", 2, "--loader is for training commands (-- ...): leave it out"),
        ("search --explain images", 2, "--explain is for training commands (-- ...): leave it out"),
        ("search --data /data -- python train.py", 2, "--data is an option of bundled workloads: write your training's own options after --"),
        ("measure -- train.py", 2, "the command 'train.py' cannot be started: there is no such program. Write `-- python train.py`"),
        ("search -- python tarin.py --lr 0.1", 2, "the script tarin.py does not exist in"),
        ("runs -- python train.py", 2, "feedrate runs takes no training command: leave out -- and what follows it"),
        ("measure -- false", 1, "the command `false` ended with exit status 1 before it had trained"),
        ("search -- true", 1, "the command `true` ended and never imported torch.utils.data"),
    ],
)
def test_a_wrong_command_gets_one_sentence(capfd, arguments, code, sentence):
    assert main(arguments.split()) == code
    said = capfd.readouterr().err
    assert sentence in said
    assert "Traceback" not in said


def test_verify_names_a_command_that_is_another_workload(capfd):
    best = Path(__file__).parents[3] / "docs" / "example-run" / "best.json"
    assert main(["verify", str(best), "--", sys.executable, "train.py"]) == 2
    assert f"is the answer for the workload 'objects', and {sys.executable} train.py is 'train': name the same" in capfd.readouterr().err


@pytest.mark.slow
def test_a_search_and_its_continuation(feedrate, tmp_path):
    """Ray, one process of the script for many settings, the command in the run folder, and resume without naming it. It starts Ray twice."""
    command = [sys.executable, "train.py", "--data", "/data"]
    asked = ["--num-workers", "1..2", "--max-trial-s", "1", "--max-trials", "1", "--no-confirm", "--time-budget", "60s", "--out", "run"]
    search = feedrate("search", *asked, "--", *command)
    assert search.code == 0, search.stderr
    assert "<- measured: an optimizer steps between its batches" in search.stderr
    assert not search.alive()
    run = tmp_path / "run"
    for name in ("search.json", "best.json"):
        assert json.loads((run / name).read_text())["workload"]["command"] == command
    assert json.loads((run / "search.json").read_text())["argv"][-5:] == ["--", *command]
    assert (run / "script.log").read_text().startswith("arguments --data /data\n")
    resumed = feedrate("resume", "run", "--max-trials", "2", "--time-budget", "60s")
    assert resumed.code == 0, resumed.stderr
    assert len(records(run)) > 1
    assert {record.get("failure_kind") for record in records(run)} == {None}
    assert not resumed.alive()
