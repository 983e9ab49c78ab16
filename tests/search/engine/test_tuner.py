"""tuner.py: what a trial is asked for."""

import json

import pytest

from feedrate.analysis.estimate import RUN_SD_FRACTION
from feedrate.search.engine.reservation import Placement
from feedrate.search.engine.tuner import _to_config
from feedrate.search.options import ENOUGH_FRACTION, SearchOptions
from feedrate.search.session.trial_request import TrialRequest
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.resolve import WorkloadRef


@pytest.mark.parametrize(("kind", "enough_fraction"), [("search", ENOUGH_FRACTION), ("confirm", RUN_SD_FRACTION)])
def test_rounds_measure_more_precisely_than_trials(kind, enough_fraction):
    """The intervals of rounds count on it."""
    placement = Placement(cpus=2, gpus=0, trial_slot=False, num_slots=1, where="")
    to_config = _to_config(placement, WorkloadRef(target="table"), SearchOptions(), "run", None, "feedrate search table")
    config = LoaderConfig(num_workers=0, batch_size=32)
    request = TrialRequest(kind=kind, number=1, configs=(config,), origin="seed", measure_step=False, max_trial_s=20.0)
    assert json.loads(to_config(request, set())["request"])["options"]["enough_fraction"] == enough_fraction
