"""prepare.py: the workload is described, the run folder chosen and held, and nothing is written before that."""

import os
import subprocess
import sys

import pytest
import workloads

from feedrate.analysis.run_folder import RunFolder
from feedrate.search.options import UsageError
from feedrate.search.setup.prepare import choose_folder, clear, describe_workload, held
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.resolve import make_ref


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_next_free_number_is_taken(tmp_path):
    """Under feedrate-runs, named after the workload; nothing is made yet."""
    assert str(choose_folder(None, "train", False).path) == "feedrate-runs/train-1"
    assert os.listdir(tmp_path) == []
    for taken in ("train-1", "train-2", "train-4", "other-3"):
        (tmp_path / "feedrate-runs" / taken).mkdir(parents=True)
    assert str(choose_folder(None, "train", False).path) == "feedrate-runs/train-3"


@pytest.mark.parametrize(
    ("name", "folder"), [("my model", "my-model-1"), ("../../etc", "etc-1"), ("..", "run-1"), ("größe_2.0", "größe_2.0-1")]
)
def test_a_name_cannot_lead_out_of_the_folder(name, folder):
    """What is no letter, digit, dash, dot or underscore becomes a dash."""
    assert str(choose_folder(None, name, False).path) == f"feedrate-runs/{folder}"


def test_out_is_taken_as_it_is(tmp_path):
    """A folder that does not exist yet, or is empty."""
    assert choose_folder("a/b/c", "train", False).path.as_posix() == "a/b/c"
    (tmp_path / "empty").mkdir()
    assert choose_folder(tmp_path / "empty", "train", False).path == tmp_path / "empty"


def test_a_folder_that_holds_something_needs_force(tmp_path):
    """The refusal names the folder and the ways out."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"--out run exists and is not empty: name another folder, or .* with --force"):
        choose_folder("run", "train", False)
    assert choose_folder("run", "train", True).path.as_posix() == "run"


@pytest.mark.parametrize("force", [False, True])
def test_a_place_that_cannot_be_a_folder_is_refused(tmp_path, force):
    """A file, something below a file, and a place where the system lets nobody write, root neither."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="--out file is a file: name a folder"):
        choose_folder("file", "train", force)
    with pytest.raises(UsageError, match="--out file/run cannot be written: file is not a folder that you may write to"):
        choose_folder("file/run", "train", force)
    with pytest.raises(UsageError, match="cannot be written"), held(choose_folder("/proc/feedrate", "train", force)):
        pass
    (tmp_path / "feedrate-runs").write_text("a file where the runs would go")
    with pytest.raises(UsageError, match="feedrate-runs is not a folder that you may write to"):
        choose_folder(None, "train", force)


def test_force_removes_the_run_and_keeps_everything_else(tmp_path):
    """Files that no run writes are somebody's."""
    run = RunFolder(tmp_path / "run")
    run.tune.mkdir(parents=True)
    for file in (run.search, run.trials, run.best, run.report, run.journal, run.tune / "x", run.path / "study.journal.lock"):
        file.write_text("old")
    (run.path / "notes.txt").write_text("mine")
    clear(run, force=True)
    left = {path.name for path in run.path.iterdir()}
    assert left == {"notes.txt"}
    clear(run, force=True)


def test_a_run_that_came_meanwhile_is_not_removed(tmp_path):
    """Two searches that chose the same free folder: the second does not throw the first one's records away."""
    run = RunFolder(tmp_path / "run")
    with held(run):
        clear(run, force=False)
        run.search.write_text("{}")
    with held(run), pytest.raises(UsageError, match=r"another search has started in .*run meanwhile: start this one again"):
        clear(run, force=False)
    assert run.search.exists()


def test_one_driver_at_a_time_holds_a_run(tmp_path):
    """A second process gets an error while the first one runs, and may use the folder after the first one was killed."""
    run = RunFolder(tmp_path / "deep" / "run")
    code = (
        "import sys, time; from feedrate.analysis.run_folder import RunFolder; from feedrate.search.setup.prepare import held\n"
        f"with held(RunFolder({str(run.path)!r})): print('held', flush=True); time.sleep(100)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match="run is in use: another feedrate is searching into it"), held(run):
            pass
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    with held(run):
        pass


def test_a_workload_is_described_by_a_clean_child():
    """Its name, unit, size, own setting and what its check says; the dataset is not made in this process."""
    described = describe_workload(make_ref(f"{workloads.PATH}:mine"))
    assert (described.name, described.unit, described.epoch_samples) == ("mine", "samples", 64)
    assert described.baseline == LoaderConfig(num_workers=2, batch_size=4, prefetch_factor=3)
    assert described.fixed == ()
    assert described.facts.num_cpus >= 1


def test_a_workload_that_cannot_be_made_is_refused():
    """In one sentence."""
    with pytest.raises(UsageError, match=r"^the dataset of workload 'rows' is empty$"):
        describe_workload(make_ref(f"{workloads.PATH}:empty"))


def test_the_users_own_traceback_is_shown():
    """From their first line on, without a frame of feedrate."""
    with pytest.raises(UsageError) as refused:
        describe_workload(make_ref(f"{workloads.PATH}:raises_in_dataset"))
    lines = str(refused.value).splitlines()
    assert lines[-1] == "RuntimeError: the disk is not mounted"
    assert "workloads.py" in str(refused.value)
    assert not [line for line in lines if "/trainables/" in line or "/search/" in line]
