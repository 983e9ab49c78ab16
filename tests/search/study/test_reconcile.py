"""reconcile.py: after a crash, the study learns what the records say, and lost trials are measured again."""

import pytest
from optuna.trial import TrialState

from feedrate.analysis.estimate import record_rate
from feedrate.analysis.schema import SCHEMA, check_record
from feedrate.search.space.search_space import Choice, Range, SearchSpace
from feedrate.search.study.brain import Counts
from feedrate.search.study.compat import constraints
from feedrate.search.study.reconcile import reconcile
from feedrate.trainables.config import LoaderConfig

SPACE = SearchSpace.default(num_cpus=8, has_accelerator=True)
BASELINE = LoaderConfig(num_workers=0, batch_size=32)


def record(number, config, rate_sps=100.0, **columns):
    made = {
        "schema": SCHEMA, "study": "s", "number": number, "attempt": 1, "kind": "search", "origin": "sampler",
        **config.to_dict(), "stopped_early": False, "window_duration_s": [1.0, 1.0, 1.0],
        "window_num_batches": [10] * 3, "window_num_items": [int(rate_sps)] * 3, "window_produced_batches": [10] * 3,
    } | columns  # fmt: skip
    check_record({name: value for name, value in made.items() if value is not None})
    return made


def best_value(brain):
    """Of the complete trials; Study.best_value of Optuna 4 with SQLAlchemy 2.1 cannot ask PostgreSQL."""
    return max(trial.value for trial in brain.study.get_trials(states=(TrialState.COMPLETE,)))


def test_records_are_told(opened):
    """The study is told every recorded trial with its outcome: measured, stopped early, failed, infeasible."""
    asks = [opened().ask() for _ in range(1)] + [(brain := opened()).ask(), brain.ask(), brain.ask()]
    unmeasured = dict.fromkeys(
        ("window_duration_s", "window_num_batches", "window_num_items", "window_produced_batches")
    )
    records = [
        record(0, asks[0].config, 200),
        record(1, asks[1].config, 50, stopped_early=True),
        record(2, asks[2].config, **unmeasured, failure_kind="user-code", failure_message="it raised"),
        record(3, asks[3].config, **unmeasured, failure_kind="shm-full", failure_message="too small"),
    ]
    brain = opened()
    result = reconcile(brain, records)
    assert (result.num_told, result.requeued) == (4, [])
    assert brain.counts() == Counts(complete=1, pruned=1, failed=2)
    trials = opened().study.trials
    assert trials[0].value == 200.0
    assert trials[0].user_attrs["low_sps"] == record_rate(records[0]).low_sps
    assert trials[1].intermediate_values == {3: 50.0}
    assert trials[2].user_attrs["failure"] == "it raised"
    assert constraints(trials[3]) == {"fits": 1.0}
    assert reconcile(opened(), records).num_told == 0


def test_settings_of_the_process_survive_a_resume(opened):
    """Their records tell the study which setting it was; those of a feedrate that had no such columns still count."""
    given = {"trainer_cpus": Choice((None, 1)), "sharing_strategy": Choice(("file_system",)), "num_workers": Range(1, 2)}
    space = SearchSpace.default(num_cpus=8, has_accelerator=False, given=given)
    placed = LoaderConfig(num_workers=2, batch_size=32, sharing_strategy="file_system", trainer_cpus=1)
    older = record(1, LoaderConfig(num_workers=2, batch_size=32))
    del older["sharing_strategy"], older["trainer_cpus"]
    brain = opened(space=space)
    assert brain.enqueue(placed, "seed")
    brain.ask()
    again = opened(space=space)
    assert reconcile(again, [record(0, placed, 200), older]).num_told == 2
    assert [past.config for past in again.history()] == [placed, LoaderConfig(num_workers=2, batch_size=32)]
    assert opened(space=space).study.trials[0].params["trainer_cpus"] == 1
    assert placed in again.tried()


def test_running_without_record_is_measured_anew(opened):
    """A trial that nobody recorded is marked lost and its setting waits under a new number; once."""
    brain = opened()
    brain.enqueue(BASELINE, "baseline")
    brain.ask()
    brain = opened()
    assert reconcile(brain, []).requeued == [BASELINE]
    assert brain.counts() == Counts(lost=1, waiting=1)
    assert reconcile(opened(), []).requeued == []
    ask = opened().ask()
    assert (ask.number, ask.config, ask.origin) == (1, BASELINE, "baseline")


def test_a_told_trial_whose_record_was_lost(opened):
    """Its setting is measured again under a new number, and it is not counted; once that is recorded, nothing more is done."""
    brain = opened()
    brain.enqueue(BASELINE, "baseline")
    brain.tell_complete(brain.ask().number, 10.0)
    brain = opened()
    reconcile(brain, [])
    assert brain.counts() == Counts(lost=1, waiting=1)
    ask = brain.ask()
    assert (ask.number, ask.config, ask.origin) == (1, BASELINE, "baseline")
    brain.tell_complete(1, 11.0)
    brain = opened()
    reconcile(brain, [record(1, BASELINE)])
    assert brain.counts() == Counts(lost=1, complete=1)


def test_crash_inside_reconcile(opened):
    """A crash between enqueueing a lost setting and marking its trial does not enqueue it twice."""
    brain = opened()
    config = brain.ask().config
    brain.tell_failed = lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        reconcile(brain, [])
    brain = opened()
    assert brain.counts() == Counts(running=1, waiting=1)
    assert reconcile(brain, []).requeued == []
    assert brain.counts() == Counts(lost=1, waiting=1)
    assert brain.tried() == {config}


def test_trials_of_another_program_are_left_alone(opened):
    """Running trials that somebody made with Optuna alone carry no run id: they are not ours to end."""
    opened().study.ask()
    brain = opened()
    assert reconcile(brain, []).requeued == []
    assert brain.counts().running == 1


def test_lost_study_is_rebuilt(opened):
    """Without its journal a study is rebuilt from the records, numbers kept, later draws go on from there."""
    configs = list(SPACE.configs())
    records = [
        record(0, configs[5], 100),
        record(3, configs[900], 300, origin="seed"),
        record(1, configs[7], 70, stopped_early=True),
        record(2, configs[9], 1, study="another"),
        record(2, configs[9], 1, kind="confirm", round=1, position=0),
    ]
    brain = opened()
    assert reconcile(brain, records).num_told == 3
    assert brain.counts() == Counts(complete=2, pruned=1, lost=1)
    assert [past.config for past in brain.history()] == [configs[5], configs[7], None, configs[900]]
    assert brain.history()[3].origin == "seed"
    assert best_value(brain) == 300.0
    assert brain.ask().number == 4
    assert opened().tried() >= {configs[5], configs[7], configs[900]}


def test_last_attempt_counts(opened):
    """Of several records of one trial the last one is the truth."""
    config = opened().ask().config
    brain = opened()
    reconcile(brain, [record(0, config, 100), record(0, config, 150, attempt=2)])
    assert best_value(brain) == 150.0


def test_told_after_reconcile(opened):
    """A straggler that tells a trial which reconcile already marked changes nothing."""
    opened().ask()
    brain = opened()
    reconcile(brain, [])
    brain.tell_complete(0, 5.0)
    assert brain.counts() == Counts(lost=1, waiting=1)
