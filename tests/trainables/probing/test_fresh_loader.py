"""fresh_loader.py: every probe begins with the loader as in the user's own program, made once in its process."""

import atexit
import os
import signal
from functools import partial
from pathlib import Path

import pytest
from looks import found, levels, step
from torch.utils.data import DataLoader
from workloads import AnsweredByThread, Rows, general, short

from feedrate.trainables.checking.check import check
from feedrate.trainables.checking.describe import describe
from feedrate.trainables.checking.disqualify import disqualified
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import Failure, TrialFailed, user_traceback
from feedrate.trainables.probing.fresh_loader import CannotBeMade, FreshLoader
from feedrate.trainables.workload import WorkloadRaised


class Counted(Rows):
    """Writes down the process that makes it."""

    def __init__(self, path):
        super().__init__()  # also of another parent
        with path.open("a") as file:
            print(os.getpid(), file=file)


def made_by(path):
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def dataset_pid(parts):
    return parts.dataset.num_rows, os.getpid()


def test_looks_are_forked_from_one_making_that_leaves_nothing(tmp_path):
    """Making can take long; each look has a process of its own all the same."""
    path = tmp_path / "made"
    with FreshLoader(lambda: short(lambda: Counted(path))) as loader:
        looks = [loader.look(dataset_pid, 10) for _ in range(3)]
    assert len(made_by(path)) == 1
    assert {rows for rows, _ in looks} == {64}
    assert len({pid for _, pid in looks} | {os.getpid()}) == 4


class WithThread(Counted, AnsweredByThread):
    """Both."""


def first_row(parts):
    return float(parts.dataset[3][0][0])


def test_looks_make_for_themselves_what_a_fork_would_change(tmp_path):
    """The thread that answers is there in each of them, and the survey names it."""
    path = tmp_path / "made"
    with FreshLoader(lambda: short(lambda: WithThread(path))) as loader:
        assert loader.survey.left.threads == ("answers",)
        assert [loader.look(first_row, 10) for _ in range(2)] == [3.0, 3.0]
    assert len(set(made_by(path))) == len(made_by(path)) == 3


def once(path, *, removes=True):
    """A loader whose dataset needs a name for itself alone, as named shared memory or a port is."""

    def make_loader(**overrides):
        Path(path).touch(exist_ok=False)
        if removes:
            atexit.register(os.unlink, path)
        return DataLoader(Rows(64), **({"batch_size": 4, "num_workers": 2} | overrides))

    return general(make_loader, step)


def test_what_exists_once_is_looked_at_whole(tmp_path):
    """Each process ends before the next one makes the loader again, and lets go of the name."""
    make = partial(once, tmp_path / "name")
    findings = levels(found(make, budget_s=4))
    assert findings["content"] == findings["epochs"] == "ok"
    assert not (tmp_path / "name").exists()
    assert disqualified(make).reason is None


def test_what_cannot_be_made_again_is_said_in_one_sentence(tmp_path):
    """The first process left its name behind: that is it, and what to do."""
    with pytest.raises(CannotBeMade) as raised:
        check(partial(once, tmp_path / "name", removes=False), budget_s=4)
    assert "a second process could not make it again: FileExistsError" in raised.value.failure.message
    assert "Remove it when the process ends (atexit)" in raised.value.failure.message


def test_a_workload_function_that_works_once_is_said_to_be_that(tmp_path):
    """Such as one that makes a folder, which must not exist; a check and the description of a workload say the same."""
    folder = tmp_path / "experiment"

    def make():
        try:
            folder.mkdir()
        except FileExistsError as error:
            raise WorkloadRaised(f"the workload's function 'make' raised:\n{user_traceback(error)}") from None
        return general(lambda **overrides: DataLoader(Rows(), **overrides), step)

    words = r"^a process made the loader and ended, .* could not make it again: FileExistsError: .*experiment'\. Something that the first process"
    with pytest.raises(WorkloadRaised, match=words):
        describe(make, lambda: None)
    folder.rmdir()
    with pytest.raises(CannotBeMade, match=words) as raised:
        check(make)
    assert raised.value.failure.traceback.startswith("Traceback")
    assert "in _loader" not in raised.value.failure.traceback


def test_a_setting_that_the_loader_does_not_take_is_the_settings_fault():
    """The user's own loader can be made again, so that nothing is in the way."""

    def make_loader(num_workers=0, batch_size=4, **more):
        if num_workers == 3:
            raise ValueError("no licence for three workers")
        return DataLoader(Rows(), num_workers=num_workers, batch_size=batch_size)

    with pytest.raises(TrialFailed, match="no licence for three workers") as raised:
        check(general(make_loader, step), num_workers=3, budget_s=4)
    assert not isinstance(raised.value, CannotBeMade)


def crash(parts):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_look_that_crashes_is_a_failure_and_the_next_one_works():
    """The process that made the loader is not the one that looks."""
    with FreshLoader(lambda: short(Rows())) as loader:
        crashed = loader.look(crash, 10)
        assert isinstance(crashed, Failure)
        assert "was killed by SIGKILL" in crashed.message
        assert loader.look(first_row, 10) == 3.0


def test_the_loader_of_a_setting_is_the_users():
    """With the number of workers that was asked for, and the generator that the user gave."""
    workload = general(lambda **overrides: DataLoader(Rows(), **({"batch_size": 4, "num_workers": 2} | overrides)), step)
    with FreshLoader(lambda: workload) as own:
        assert own.survey.setting == LoaderConfig(num_workers=2, batch_size=4, prefetch_factor=2)
        assert not own.survey.has_generator
    with FreshLoader(lambda: workload, LoaderConfig(num_workers=1, batch_size=4), own.survey) as other:
        assert other.survey.setting.num_workers == 1
        assert other.look(has_generator, 10) is False


def has_generator(parts):
    return parts.generator is not None
