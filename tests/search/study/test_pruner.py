"""pruner.py: which trials are stopped early, after how many windows, and which never are."""

import optuna
import pytest
from optuna.trial import Trial, TrialState, create_trial

from feedrate.search.study.pruner import HALF_WIDTH, LOW, ConfidencePruner


def study_with(lows, *, num_pruned=0):
    study = optuna.create_study(direction="maximize", pruner=ConfidencePruner())
    for low in lows:
        study.add_trial(create_trial(value=low * 1.05, user_attrs={LOW: low}))
    for _ in range(num_pruned):
        study.add_trial(create_trial(state=TrialState.PRUNED, value=1.0))
    return study


def stops(study, rate, *, step=5, half_width_fraction=0.02, origin="sampler"):
    trial: Trial = study.ask()
    trial.set_user_attr("origin", origin)
    if half_width_fraction is not None:
        trial.set_user_attr(HALF_WIDTH, half_width_fraction)
    trial.report(rate, step)
    return trial.should_prune()


def test_nothing_to_compare_with():
    """The first trial runs to its end."""
    assert not stops(study_with([]), 1.0)


def test_loser_stops_and_rival_goes_on():
    """A trial stops when its upper bound is below the best lower bound, not when only its rate is."""
    study = study_with([900.0, 1000.0])
    assert stops(study, 900.0)
    assert not stops(study, 970.0)  # 3 % behind, within 2 * hypot(1 %, 1.5 %) = 3.6 %


def test_run_to_run_spread_counts():
    """A trial whose windows agree perfectly still has run-to-run spread."""
    study = study_with([1000.0])
    assert not stops(study, 975.0, half_width_fraction=0.0)
    assert stops(study, 965.0, half_width_fraction=0.0)


@pytest.mark.parametrize("step", [1, 4, 6, 12, 21])
def test_looks_at_fixed_steps_only(step):
    """Between the looks nothing stops."""
    assert not stops(study_with([1000.0]), 1.0, step=step)


@pytest.mark.parametrize("step", [5, 8, 13, 20])
def test_looks(step):
    """At 5, 8, 13 and 20 windows a hopeless trial stops."""
    assert stops(study_with([1000.0]), 1.0, step=step)


def test_baseline_always_finishes():
    """What everything is compared with is never stopped."""
    assert not stops(study_with([1000.0]), 1.0, origin="baseline")


def test_unknown_spread_never_stops():
    """Without an interval there is no bound."""
    assert not stops(study_with([1000.0]), 1.0, half_width_fraction=None)


def test_more_settings_more_caution():
    """After twenty settings the bound widens from 2 to 2.6 standard deviations."""
    assert stops(study_with([1000.0]), 960.0)
    assert not stops(study_with([1000.0], num_pruned=20), 960.0)


def test_completed_without_interval_stops_nobody():
    """A completed trial of which no lower bound is known is no incumbent."""
    study = optuna.create_study(direction="maximize", pruner=ConfidencePruner())
    study.add_trial(create_trial(value=1000.0))
    assert not stops(study, 1.0)
