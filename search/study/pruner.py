"""`ConfidencePruner`: stops a trial when, run-to-run noise included, it cannot be the best.

A trial is stopped when the upper bound of its rate lies below the highest lower bound of a completed trial
(MEASURING.md 3.2). The bounds contain the run-to-run spread, which a trial's own windows cannot show: without it, one
search in twenty would throw its best setting away. It looks only at a few fixed numbers of windows, because a rule
that may strike after every window strikes too often by chance.

Where the meanings differ from Optuna's pruners: a step is a number of windows of a steady rate, not progress along a
learning curve; the incumbent is the highest lower bound, not the highest value.
"""

from __future__ import annotations

import math

from optuna import Study
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

from feedrate.analysis.estimate import RUN_SD_FRACTION
from feedrate.search.options import LOOKS

LOW = "low_sps"
"""User attribute of a completed trial: lower end of its 95 % interval, run-to-run spread included."""
HALF_WIDTH = "half_width_fraction"
"""User attribute of a running trial: half of its windows' own 95 % interval, as a fraction of the rate."""
BASELINE = "baseline"
"""Origin whose trial is never stopped: everything is compared with it."""
MANY_SETTINGS = 20


class ConfidencePruner(BasePruner):
    """Prunes by confidence bound; for studies that maximise a rate.

    Args:
        run_sd_fraction: run-to-run standard deviation of one setting, as a fraction of its rate.
    """

    def __init__(self, run_sd_fraction: float = RUN_SD_FRACTION) -> None:
        self._run_sd_fraction = run_sd_fraction

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        half_width_fraction = trial.user_attrs.get(HALF_WIDTH)
        if step not in LOOKS or half_width_fraction is None or trial.user_attrs.get("origin") == BASELINE:
            return False
        told = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        complete = [other for other in told if other.state == TrialState.COMPLETE]
        lows = [other.user_attrs[LOW] for other in complete if LOW in other.user_attrs]
        if not lows:
            return False
        z = 2.6 if len(told) > MANY_SETTINGS else 2.0  # more comparisons, more chances to be wrong once
        spread = math.hypot(half_width_fraction / 1.96, self._run_sd_fraction)
        return bool(trial.intermediate_values[step] * (1 + z * spread) < max(lows))
