"""A search whose driver is killed again and again ends with the trials that were asked for, on each storage.

The driver is a process with a real study and run folder; what Ray would measure is made up, so that it is killed at every
place of the bookkeeping. tests/end_to_end/test_kills.py kills a search under Ray.
"""

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from feedrate.analysis.run_folder import RunFolder
from feedrate.analysis.schema import check_record, status
from feedrate.search.study.storage import close_storage, open_storage

NUM_TRIALS = 40
DRIVER = """
import sys, time
from pathlib import Path
from made_up_search import Search, measured
from feedrate.trainables.failure import Failure

path, storage, num_trials = Path(sys.argv[1]), sys.argv[2] or None, int(sys.argv[3])
search = Search(path, storage=storage, max_trials=num_trials, confirm=True)
print("ready", flush=True)
while (request := search.ask()) is not None:
    time.sleep(0.005)
    if request.kind == "confirm":
        for position in range(len(request.configs)):
            search.session.confirmation.measured(request.number, position, measured(request), None)
        search.session.confirmation.over(request.number)
    elif request.number % 7 == 3:
        failure = Failure(kind="user-code", phase="measure", message=f"no luck {chr(65 + request.number)}").columns()
        search.session.completed(request.number, {}, failure)
    else:
        search.session.completed(request.number, measured(request), None)
print("finished", flush=True)
"""


def drive(path, storage):
    command = [sys.executable, "-c", DRIVER, str(path), storage, str(NUM_TRIALS)]
    tests = Path(__file__).parents[1]
    return subprocess.Popen(command, cwd=tests, stdout=subprocess.PIPE, text=True)


def killed(path, storage, num_kills):
    """Drive, kill at a random moment after the start, again and again; then let it finish."""
    rng = random.Random(3)
    for _ in range(num_kills):
        with drive(path, storage) as driver:
            assert driver.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.0, 0.25))
            driver.kill()
    with drive(path, storage) as driver:
        assert driver.communicate(timeout=120)[0] == "ready\nfinished\n"
    assert driver.returncode == 0


def check(path, storage):
    """Records and study have as many trials as were asked for, each once and with the same outcome."""
    kept, problems = RunFolder(path).records()
    assert problems == []
    for record in kept:
        check_record(record)
    keys = Counter((record["kind"], record["number"], record.get("position")) for record in kept)
    assert set(keys.values()) == {1}
    searched = {record["number"]: status(record) for record in kept if record["kind"] == "search"}
    assert len(searched) == NUM_TRIALS
    opened = open_storage(storage or None, path / "study.journal")
    (study,) = opened.get_all_studies()
    trials = {trial.number: trial for trial in opened.get_all_trials(study._study_id)}
    close_storage(opened)
    states = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    assert {number: trials[number].state.name for number in searched} == {
        number: states[outcome] for number, outcome in searched.items()
    }
    others = [trial for number, trial in trials.items() if number not in searched]
    assert all(trial.user_attrs.get("lost") for trial in others), "what is in no record was lost, and asked for again"
    assert any(record["kind"] == "confirm" for record in kept)


@pytest.mark.slow
@pytest.mark.parametrize("num_kills", [5, pytest.param(20, marks=pytest.mark.soak)])
def test_a_search_that_is_killed_often_loses_and_repeats_nothing(tmp_path, storage_url, num_kills):
    path, storage = tmp_path / "run", storage_url or ""
    killed(path, storage, num_kills)
    check(path, storage)
