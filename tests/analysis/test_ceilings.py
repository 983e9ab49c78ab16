"""analysis/ceilings.py: no conclusion anywhere uses a ceiling that is not known."""

import io
import math

import pytest
from made_up_search import Search, measured
from synthetic import record, write_run

from feedrate.analysis import load_run, time_shares
from feedrate.analysis.ceilings import DISTURBED, NOT_TIMED, Ceilings, is_disturbed
from feedrate.analysis.estimate import Rate
from feedrate.analysis.run_folder import RunFolder
from feedrate.search.answers.wording import explain
from feedrate.search.result import conclude
from feedrate.search.study.expectation import most_promising
from feedrate.search.study.observed import Observed


def rate(sps, half=0.03):
    return Rate(sps=sps, low_sps=sps * (1 - half), high_sps=sps * (1 + half))


def test_a_ceiling_is_known_where_nothing_speaks_against_it():
    """Per batch size: the highest of the undisturbed ones."""
    found = Ceilings()
    assert (found.at(32), found.why_not(32)) == (None, NOT_TIMED)
    found.learn(32, 900.0, rate(500.0), disturbed=True)
    assert (found.at(32), found.why_not(32)) == (None, DISTURBED)
    for step_sps in (1000.0, 950.0):
        found.learn(32, step_sps, rate(500.0), disturbed=False)
    assert found.known() == {32: 1000.0}
    assert (found.at(64), found.why_not(32)) == (None, None)


@pytest.mark.parametrize("measured_rate", [rate(398.0), rate(320.0, half=0.4)])
def test_a_faster_training_makes_a_ceiling_unknown(measured_rate):
    """For sure, or by more than a tenth however wide its interval; at another batch size it says nothing."""
    found = Ceilings()
    found.learn(32, 272.0, None, disturbed=False)
    found.learn(64, 272.0, measured_rate, disturbed=False)
    assert found.known() == {32: 272.0}
    assert found.why_not(64).startswith("the step alone was measured at 272/s, less than training with loading (")
    found.learn(64, 1000.0, None, disturbed=False)  # timed again
    assert found.at(64) == 1000.0


def test_no_ceiling_is_below_a_measured_rate():
    """One that is above it within its own noise raises it: nothing trains faster than its ceiling."""
    found = Ceilings()
    found.learn(32, 1000.0, rate(1020.0), disturbed=False)
    assert found.at(32) == 1020.0


@pytest.mark.parametrize("name", ["foreign_cpu_fraction", "foreign_gpu_fraction", "steal_fraction"])
def test_load_from_elsewhere_is_a_disturbance(name):
    assert is_disturbed({name: 0.1})
    assert not is_disturbed({name: 0.09})
    assert not is_disturbed({name: math.nan})
    assert not is_disturbed({})


def contradicted():
    """The baseline's step alone read 410/s, and another setting of its batch size trains 800/s."""
    return [
        record(0, num_workers=0, rate_sps=400.0, origin="baseline", step_only_sps=410.0, own_cpu_fraction=0.1),
        record(1, num_workers=4, rate_sps=800.0),
    ]


@pytest.mark.parametrize(
    "records",
    [contradicted(), [record(0, num_workers=0, rate_sps=400.0, origin="baseline", step_only_sps=410.0, foreign_cpu_fraction=0.5), record(1, num_workers=4, rate_sps=300.0)]],
    ids=["contradicted", "disturbed"],
)  # fmt: skip
def test_an_unknown_ceiling_is_in_no_answer_table_or_sentence(tmp_path, records):
    """No verdict from it, no share in best.json or in the table of time, no firm word."""
    result = conclude(RunFolder(write_run(tmp_path / "run", records)), "it is over")
    assert result.best["ceiling"] is None
    assert result.best["verdict"] != "compute-bound"
    text = "\n".join(explain(result))
    assert "of the ceiling" not in text
    assert "the ceiling is not known, because " in text
    assert "training step is the limit" not in text
    run = load_run(result.folder)
    assert run.ceilings == {}
    assert time_shares(run)["compute_fraction"].isna().all()


def test_a_batch_that_could_not_be_read_leaves_no_ceiling(tmp_path):
    """Its columns are null: the search goes on, times the step again, and answers without it."""
    search = Search(tmp_path / "run", max_trials=3)
    none = {"step_only_num_items": None, "step_only_duration_s": None}
    for _ in range(3):
        request = search.ask()
        assert request.measure_step
        search.session.completed(request.number, measured(request) | none, None)
    assert search.session.ceilings.known() == {}


def test_a_batch_size_without_a_ceiling_may_gain_whatever_another_one_has(tmp_path):
    """At b64 the step is the limit. Nothing is known of b32, which no trial timed: more may be gained there."""
    search = Search(tmp_path / "run")
    for _ in range(8):
        request = search.ask()
        ceiling = {"step_only_num_items": [1000], "step_only_duration_s": [1.0]} if request.config.batch_size == 64 else {}
        none = {"step_only_num_items": None, "step_only_duration_s": None}
        search.session.completed(request.number, measured(request, rate_sps=1000.0) | none | ceiling, None)
    observed = Observed()
    observed.learn(search.brain.study.get_trials(deepcopy=False))
    found = most_promising(search.brain._sampler.space, observed, search.brain.tried(), seed=0)
    assert found.config.batch_size == 32


def test_a_ceiling_below_the_rate_is_not_printed(tmp_path):
    """And nothing is said to be gained from it."""
    text = io.StringIO()
    search = Search(tmp_path / "run", text=text)
    request = search.ask()
    search.session.completed(request.number, measured(request, rate_sps=398.0) | timed(272), None)
    assert "ceiling at b64 (no loading): not known, because the step alone was measured at 272/s, less than training with loading (398/s)" in text.getvalue()
    assert "to gain" not in text.getvalue()


def test_a_ceiling_that_proves_wrong_is_taken_back(tmp_path):
    """Said when a setting trains faster than it."""
    text = io.StringIO()
    search = Search(tmp_path / "run", text=text)
    first = search.ask()
    search.session.completed(first.number, measured(first, rate_sps=398.0) | timed(500), None)
    assert "ceiling at b64 (no loading): 500 samples/s" in text.getvalue()
    while (request := search.ask()).config.batch_size != 64:
        search.session.completed(request.number, measured(request), None)
    search.session.completed(request.number, measured(request, rate_sps=900.0), None)
    assert "ceiling at b64 (no loading): not known, because the step alone was measured at 500/s" in text.getvalue()


def timed(step_sps):
    return {"step_only_num_items": [step_sps], "step_only_duration_s": [1.0]}
