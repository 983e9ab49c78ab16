"""main.py and the commands: help that teaches, one sentence for what is wrong, exit codes, and what each command prints."""

import csv
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from importlib.metadata import version

import pandas as pd
import pytest
import torch
from answers import answer
from conftest import TOY
from synthetic import record

from feedrate.analysis.best import check_best
from feedrate.search.cli.main import COMMANDS, main
from feedrate.search.cli.search import Search
from feedrate.trainables.resolve import BUNDLED

NAMES = [type(command).__name__.lower() for command in COMMANDS]
WORKLOADS = (
    TOY
    + """

def raises():
    raise RuntimeError("the disk is not mounted")

def hopeless():
    def fail():
        raise RuntimeError("no model today")
    return workload(model=fail)

def not_a_workload():
    return 42
"""
)


@pytest.fixture(autouse=True)
def _here(mine):
    mine(WORKLOADS)


@pytest.fixture
def refused(tmp_path, capfd):
    """Runs a command that must be refused, and returns what it says; nothing may be written."""

    def run(*arguments, code=2):
        before = {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
        ended = main([str(argument) for argument in arguments])
        printed = capfd.readouterr()
        after = {path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts}
        assert ended == code, printed.err
        assert printed.out == ""
        assert after == before
        return complaint(printed.err)

    return run


def complaint(stderr):
    """What is wrong, without the lines before it that tell what is going on."""
    progress, found, said = f"\n{stderr}".partition("\nfeedrate: ")
    assert found
    assert all(line.startswith((f"feedrate {version('feedrate')}: ", "joining ")) for line in progress.split("\n")[1:])
    return said.removesuffix("\n")


@pytest.fixture
def says(capfd):
    """Runs a command that must succeed, and returns what it prints."""

    def run(*arguments, code=0):
        assert main([str(argument) for argument in arguments]) == code, capfd.readouterr().err
        return capfd.readouterr().out

    return run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            "search imagse",
            "unknown workload 'imagse': name a bundled one (images, objects, table), package.module:function, or path/to/file.py:function",
        ),
        ("search absent.py:workload", "workload file absent.py does not exist"),
        ("measure imagse", "unknown workload 'imagse': name a bundled one"),
        ("ceilings imagse", "unknown workload 'imagse': name a bundled one"),
        ("search mine.py:workload --num-workers -1", "--num-workers '-1': must be 0 or more, not -1: 0 loads"),
        ("search mine.py:workload --prefetch-factor 0", "--prefetch-factor '0': must be 1 or more, not 0: torch fails"),
        ("search mine.py:workload --batch-size 0", "--batch-size '0': must be 1 or more, not 0: a batch has"),
        ("search mine.py:workload --num-workers 8..2", "--num-workers '8..2': the range 8..2 is backwards; write 2..8"),
        ("search mine.py:workload --batch-size ''", "--batch-size '': the list is empty; name at least one value"),
        ("search mine.py:workload --num-workers ,", "--num-workers ',': the list is empty; name at least one value"),
        ("search mine.py:workload --num-workers many", "--num-workers 'many': 'many' is not a whole number"),
        ("search mine.py:workload --pin-memory perhaps", "--pin-memory 'perhaps': 'perhaps' is not one of true, false"),
        ("measure mine.py:workload --num-workers -1", "argument --num-workers: must be 0 or more, not -1"),
        ("measure mine.py:workload --prefetch-factor 0", "argument --prefetch-factor: must be 1 or more, not 0"),
        ("measure mine.py:workload --batch-size 0", "argument --batch-size: must be 1 or more, not 0"),
        ("search mine.py:workload --max-trials 0", "argument --max-trials: must be 1 or more, not 0"),
        ("search mine.py:workload --time-budget 0", "argument --time-budget: must be positive, not 0"),
        ("search mine.py:workload --time-budget -5s", "argument --time-budget: must be positive, not -5s"),
        ("search mine.py:workload --max-trial-s -.5", "argument --max-trial-s: must be positive, not -.5"),
        ("search mine.py:workload --wait -5s", "argument --wait: must be 0 or more, not -5s"),
        ("search mine.py:workload --num-workers -2..4", "--num-workers '-2..4': must be 0 or more, not -2"),
        ("search mine.py:workload --max-trials -3", "argument --max-trials: must be 1 or more, not -3"),
        ("resume . --time-budget -1h", "argument --time-budget: must be positive, not -1h"),
        ("check mine.py:workload --time-budget -15s", "argument --time-budget: must be positive, not -15s"),
        ("search mine.py:workload --time-budget soon", "argument --time-budget: 'soon' is not a duration: write 90s"),
        ("search mine.py:workload --baseline workers=4", "argument --baseline: 'workers=4' is not a setting: write"),
        ("search mine.py:workload --sampler grid", "argument --sampler: invalid choice: 'grid'"),
        ("search mine.py:workload --cpu-count 4", "unknown argument --cpu-count (see feedrate search --help)"),
        (
            "search mine.py:workload --address auto --storage postgresql://ann:pw@host/db",
            "--storage contains a password, and Ray shows the command line of a driver to everybody on the cluster, as ps does on this machine. Put the password",
        ),
        ("search", "the following arguments are required: WORKLOAD"),
        ("sarch images", "argument COMMAND: invalid choice: 'sarch' (choose from"),
        ("resume .", ". is not a run folder: it has no search.json. Name a folder that feedrate search wrote"),
        ("resume absent", "absent does not exist. Name a folder that feedrate search wrote"),
        ("report .", ". is not a run folder: it has no search.json"),
        ("report mine.py", "mine.py is not a run folder: it has no search.json"),
        ("export .", ". is not a run folder: it has no search.json"),
    ],
)
def test_wrong_usage_is_one_sentence(refused, arguments, sentence):
    """Exit code 2; it says what is wrong and what to write, and nothing was started or written."""
    said = refused(*shlex.split(arguments))
    assert said.startswith(sentence)
    assert len(said.splitlines()) == 1


def test_feedrate_alone_lists_its_commands(capsys):
    assert main([]) == 2
    out, err = capsys.readouterr()
    assert not out
    for name in NAMES:
        assert re.search(rf"^    {name}\s", err, re.MULTILINE)


def test_a_folder_that_is_taken_or_cannot_be_written_is_refused(refused, tmp_path):
    """--out is looked at before the workload is."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "search.json").write_text("{}")
    (tmp_path / "file").write_text("")
    search = ("search", "mine.py:workload", "--out")
    assert refused(*search, "taken") == (
        "--out taken exists and is not empty: name another folder, or replace the run in it with --force"
    )
    assert refused(*search, "file") == "--out file is a file: name a folder"
    assert refused(*search, "file/run").startswith("--out file/run cannot be written: file is not a folder")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            "search mine.py:absent",
            "mine.py has no function 'absent'; it defines: workload, raises, hopeless, not_a_workload",
        ),
        ("search mine.py:not_a_workload", "mine.py:not_a_workload returned int, not a feedrate.trainables.Workload"),
        ("search no_such_package.train:workload", "no module named 'no_such_package.train' is importable from"),
        ("search images --data absent", "absent"),
        ("search images --data nothing", "nothing"),
        (
            f"search mine.py:workload --gpus-per-trial {torch.cuda.device_count() + 1}",
            f"--gpus-per-trial {torch.cuda.device_count() + 1}: this machine has {torch.cuda.device_count()} GPUs.",
        ),
    ],
)
def test_what_only_the_workload_can_tell_is_one_sentence_too(refused, tmp_path, arguments, sentence):
    """A file without that function, data that is not there, more GPUs than there are: known before Ray is started."""
    (tmp_path / "nothing").mkdir()
    said = refused(*shlex.split(arguments))
    assert sentence in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("command", ["search", "measure"])
def test_the_users_own_traceback_is_shown_when_their_function_raises(refused, command):
    """Theirs, not ours; the command line was right, so that the exit code is 1."""
    lines = refused(command, "mine.py:raises", code=1).splitlines()
    assert lines[0] == "the workload's function 'raises' raised:"
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "RuntimeError: the disk is not mounted"
    assert len([line for line in lines if line.startswith("  File ")]) == 1


def test_an_address_without_ray_is_refused_soon(feedrate, tmp_path):
    """Nothing listens there, or something that is not Ray; Ray itself would try for many minutes."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port, reason in ((1, "Connection refused"), (silent.getsockname()[1], "timed out")):
            search = ("search", "toy.py:workload", "--address", f"127.0.0.1:{port}")
            command = feedrate(*search, timeout_s=60, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")  # 127.0.0.1 as it is
            assert command.code == 2
            assert complaint(command.stderr) == (
                f"no Ray cluster answers at --address 127.0.0.1:{port} ({reason}): start one there with "
                "`ray start --head`, or search on this machine only with --address local"
            )
    assert not (tmp_path / "feedrate-runs").exists()


def test_the_console_script_is_this_command(tmp_path):
    """`feedrate` is on the path of the environment, and gives exit codes."""
    script = os.path.join(os.path.dirname(sys.executable), "feedrate")
    said = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"feedrate {version('feedrate')}\n"
    assert subprocess.run([script, "search"], capture_output=True, check=False).returncode == 2


def test_help_answers_without_torch_or_ray():
    """Every command's; it tells what is done and shows an example. Heavy imports would make people wait for it."""
    code = """
import contextlib, io, json, sys
from feedrate.search.cli.main import main
said = {}
for name in ("", *sys.argv[1:]):
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main([name, "--help"] if name else ["--help"])
    said[name] = text.getvalue()
print(json.dumps([said, [name for name in ("torch", "ray", "optuna", "pandas", "numpy", "rich") if name in sys.modules]]))
"""
    printed = subprocess.run([sys.executable, "-c", code, *NAMES], capture_output=True, text=True, check=True).stdout
    said, heavy = json.loads(printed)
    assert heavy == []
    assert all(name in said[""] for name in NAMES)
    assert "Exit codes: 0 done, 1 failed (the message says why), 2 wrong usage, 130 interrupted (129 by SIGHUP, 143 by SIGTERM)." in " ".join(said[""].split())
    for name, text in said.items():
        assert name in ("", "workloads") or f"  feedrate {name} " in text
    for flag in ("--num-workers 0..32", "--batch-size 32,64,128", "--time-budget TIME", "--address ADDR", "--storage URL"):
        assert flag in said["search"]
    assert Search.__doc__.splitlines()[0] in said["search"]


def test_debug_shows_where(capfd):
    """The traceback of ours is shown when it is asked for, and only then."""
    assert main(["report", ".", "--debug"]) == 2
    assert "Traceback (most recent call last)" in capfd.readouterr().err
    assert main(["report", "."]) == 2
    assert "Traceback" not in capfd.readouterr().err


def test_workloads_are_listed(says):
    """Each with its bottleneck, and how to name one's own."""
    text = says("workloads")
    assert [line.split()[0] for line in text.splitlines()[: len(BUNDLED)]] == list(BUNDLED)
    assert "path/to/file.py:function" in text


def test_measure_prints_one_object(says):
    """One setting, without Ray: throughput, its interval, the setting as DataLoader takes it, and everything measured."""
    facts = answer(
        says("measure", "mine.py:workload", "--num-workers", 1, "--batch-size", 8, "--max-trial-s", 1.5, "--threads", 1, "--json"), "measure"
    )
    assert facts["ci95"][0] < facts["throughput"] < facts["ci95"][1]
    assert 0 < facts["throughput"] < 600  # a worker sleeps 2 ms for each
    assert facts["dataloader"]["num_workers"] == 1
    assert facts["step_only_sps"] is None or facts["step_only_sps"] >= facts["throughput"]  # others may use the machine
    assert 0 <= facts["wait_fraction"] <= 1
    assert (facts["unit"], facts["measurement"]["hostname"]) == ("samples", socket.gethostname())


def test_measure_says_why_a_setting_failed(says, capfd):
    """Exit code 1; one object with the failure, or a sentence and the user's traceback."""
    setting = ("measure", "mine.py:hopeless", "--num-workers", 0, "--batch-size", 8)
    failure = answer(says(*setting, "--json", code=1), "failure")["failure"]
    assert (failure["kind"], failure["phase"]) == ("user-code", "setup")
    assert failure["message"] == "RuntimeError: no model today"
    assert failure["traceback"].splitlines()[-1] == "RuntimeError: no model today"
    assert main([str(argument) for argument in setting]) == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[0] == "b8 w0 failed in phase setup (user-code): RuntimeError: no model today"


def test_report_writes_what_is_asked_for(says, refused, copied, tmp_path):
    """A page, or tables of the trials in three formats, into the run folder or another; each path is printed."""
    (copied / "report.html").unlink()
    assert says("report", copied).splitlines() == [str(copied / "report.html")]
    assert (copied / "report.html").stat().st_size > 1000
    written = says("report", copied, "--format", "csv,parquet,markdown", "-o", tmp_path / "deep" / "tables").splitlines()
    assert all(os.path.dirname(path) == str(tmp_path / "deep" / "tables") for path in written)
    suffixes = {os.path.splitext(path)[1] for path in written}
    assert suffixes == {".csv", ".parquet", ".md"}
    (table,) = [path for path in written if path.endswith("trials.csv")]
    with open(table) as stream:
        assert [row["kind"] for row in csv.DictReader(stream)].count("search") == 4
    (table,) = [path for path in written if path.endswith("trials.parquet")]
    assert (pd.read_parquet(table)["kind"] == "search").sum() == 4
    assert refused("report", copied, "--format", "pdf") == (
        "--format takes any of html, csv, parquet, markdown, not 'pdf'"
    )
    assert refused("report", copied, "-o", tmp_path / "mine.py").startswith("the report cannot be written to ")


def test_export_prints_or_saves_the_best_setting(says, refused, copied, tmp_path):
    """As JSON or as Python to paste; a file is not replaced without --force."""
    best = json.loads(says("export", copied))
    check_best(best)
    assert best == json.loads((copied / "best.json").read_text())
    pasted = says("export", copied, "--format", "python")
    loader = eval(pasted, {"DataLoader": dict, "dataset": {}})
    assert loader == best["dataloader"]
    assert says("export", copied, "-o", "best-of-all.json") == "best-of-all.json\n"
    assert json.loads((tmp_path / "best-of-all.json").read_text()) == best
    (tmp_path / "best-of-all.json").write_text("mine")
    assert refused("export", copied, "-o", "best-of-all.json") == (
        "best-of-all.json exists: name another file, or replace it with --force"
    )
    assert (tmp_path / "best-of-all.json").read_text() == "mine"
    says("export", copied, "-o", "best-of-all.json", "--force")
    assert json.loads((tmp_path / "best-of-all.json").read_text()) == best
    assert refused("export", copied, "-o", "absent/best.json").startswith("absent/best.json cannot be written: ")


def test_export_of_a_run_that_goes_on_or_found_nothing(says, copied, capfd):
    """The best so far, and nothing is written into the run; exit code 1 where nothing worked."""
    best = json.loads((copied / "best.json").read_text())
    (copied / "best.json").unlink()
    assert json.loads(says("export", copied))["dataloader"] == best["dataloader"]
    assert not (copied / "best.json").exists()
    (copied / "trials.jsonl").unlink()
    assert main(["export", str(copied)]) == 1
    assert "feedrate: nothing was measured yet in the search in " in capfd.readouterr().err
    (copied / "trials.jsonl").write_text(json.dumps(record(0, status="failed", failure_message="broken")) + "\n")
    assert main(["export", str(copied)]) == 1
    assert "no setting worked in the search in " in capfd.readouterr().err


def test_resume_refuses_a_run_of_another_version(refused, copied):
    """By the version's name, instead of failing in the middle."""
    search = json.loads((copied / "search.json").read_text())
    (copied / "search.json").write_text(json.dumps(search | {"schema": "feedrate/search/99"}))
    assert "schema 'feedrate/search/99'" in refused("resume", copied)


def test_resume_says_that_there_is_nothing_to_do(refused, copied):
    """A finished run whose settings were all tried is not begun again; the ways out are a larger number and rounds."""
    said = refused("resume", copied, "--max-trials", "3")
    assert said.startswith(f"{copied} is finished: 4 settings were tried, and --max-trials counts these, too. Resume it with --max-trials 5 or more")


def test_resume_refuses_a_copy_of_a_submitted_search(refused, copied):
    """Its workload was in a folder of a job on the cluster; the way out is the command for there."""
    search = json.loads((copied / "search.json").read_text())
    search["submission"] = {"owner": "", "workload": "train.py:workload", "command": "", "way_on": "feedrate resume mine --address URL"}
    (copied / "search.json").write_text(json.dumps(search))
    said = refused("resume", copied, "--max-trials", "9")
    assert said == f"{copied} is the run folder of a submitted search, which can only be continued on its cluster: feedrate resume mine --address URL"


def test_resume_asks_for_a_password_that_was_not_stored(refused, copied):
    """It is not in search.json: the address is needed again."""
    search = json.loads((copied / "search.json").read_text())
    search["options"]["storage"] = "postgresql://ann:***@host/db"
    (copied / "search.json").write_text(json.dumps(search))
    assert refused("resume", copied).startswith(
        "the run's database needs its password, which is not stored: pass --storage again"
    )


def test_resume_takes_no_password_where_others_would_see_it(refused, copied):
    """A run on a cluster: Ray shows the driver's command line."""
    search = json.loads((copied / "search.json").read_text())
    search["options"] |= {"storage": "postgresql://ann:***@host/db", "address": "auto"}
    (copied / "search.json").write_text(json.dumps(search))
    assert refused("resume", copied, "--storage", "postgresql://ann:pw@host/db").startswith("--storage contains a password, and Ray shows")
