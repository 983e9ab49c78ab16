"""warm_start.py: settings of an earlier run, taken over or refused with the reason."""

import json

import pytest
from synthetic import record, search_json, small_run, write_run

from feedrate.search.options import UsageError
from feedrate.search.record import SearchRecord
from feedrate.search.setup.warm_start import MAX_REMEMBERED, remembered
from feedrate.search.space.search_space import Choice, Range, SearchSpace

SPACE = SearchSpace.default(
    num_cpus=8, has_accelerator=False, given={"num_workers": Range(0, 16), "batch_size": Choice((32, 64))}
)


@pytest.fixture
def earlier(tmp_path):
    """A run of twelve records; 5 workers were the best at its end."""
    return write_run(tmp_path / "earlier", small_run())


def record_of(run, **changed):
    return SearchRecord.from_json(json.loads((run / "search.json").read_text()) | changed)


def test_the_best_settings_of_the_same_work_come_first(earlier):
    """Without the baseline, which is measured anyway, and no more than two: a stale memory costs no more."""
    found, said = remembered(earlier, record_of(earlier), SPACE)
    assert [(config.num_workers, config.batch_size) for config in found] == [(5, 64), (4, 64)]
    assert len(found) == MAX_REMEMBERED
    assert "b64 w5 p2 pers and b64 w4 p2 pers are tried first" in said


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"hardware": {"hostname": "other", "cpu_model": "Test CPU", "num_cpus": 16, "gpus": []}}, "number of CPUs"),
        ({"hardware": {"hostname": "other", "cpu_model": "Test CPU", "num_cpus": 8, "gpus": ["H200"]}}, "GPUs"),
        ({"workload": {"name": "toy", "target": "toy.py:workload", "options": {}, "unit": "samples", "epoch_samples": 7}}, "items in an epoch"),
        ({"objective": "steady"}, "objective"),
    ],
)
def test_other_work_or_other_hardware_is_announced_and_not_used(earlier, changed, named):
    found, said = remembered(earlier, record_of(earlier, **changed), SPACE)
    assert found == []
    assert "has no effect" in said
    assert named in said


def test_another_host_of_the_same_make_is_the_same_hardware(earlier):
    hardware = {"hostname": "node-2", "cpu_model": "Test CPU", "num_cpus": 8, "gpus": []}
    assert remembered(earlier, record_of(earlier, hardware=hardware), SPACE)[0]


def test_settings_outside_of_this_search_are_passed_over(earlier):
    small = SearchSpace.default(
        num_cpus=8, has_accelerator=False, given={"num_workers": Range(0, 2), "batch_size": Choice((64,))}
    )
    assert [config.num_workers for config in remembered(earlier, record_of(earlier), small)[0]] == [2, 1]
    none = SearchSpace.default(
        num_cpus=8, has_accelerator=False, given={"num_workers": Range(0, 2), "batch_size": Choice((512,))}
    )
    found, said = remembered(earlier, record_of(earlier), none)
    assert found == []
    assert "no setting of" in said


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--warm-start: "):
        remembered(tmp_path, SearchRecord.from_json(search_json()), SPACE)


def test_a_run_in_which_nothing_worked_teaches_nothing(tmp_path):
    run = write_run(tmp_path / "failed", [record(0, status="failed")])
    assert remembered(run, record_of(run), SPACE)[0] == []
