"""`ConfidencePruner`: stops a trial that cannot be the best, even with the run-to-run spread taken into account.

A trial is stopped if the upper bound of its rate lies below the highest lower bound of a completed trial. The bounds include
the run-to-run spread, which a trial's own windows cannot show: without it, one search in twenty would discard its best setting. The
rule is applied only after a few fixed numbers of windows, because a rule that is tested after every window stops too many trials by
chance.

The meanings differ from those of Optuna's pruners: a step is a number of windows of a steady rate, not progress along a
learning curve; a trial is compared with the highest lower bound, not with the highest value.
"""

from __future__ import annotations

import math

from optuna import Study
from optuna.pruners import BasePruner
from optuna.trial import FrozenTrial, TrialState

from feedrate.analysis.estimate import RUN_SD_FRACTION, sd_of
from feedrate.search.options import LOOKS

LOW = "low_sps"
"""User attribute of a completed trial: lower end of its 95 % interval, which includes the run-to-run spread."""
HALF_WIDTH = "half_width_fraction"
"""User attribute of a running trial: half of the 95 % interval from its windows alone, as a fraction of the rate."""
BASELINE = "baseline"
"""Origin of baselines, which are never stopped because every setting is compared with them."""
MANY_SETTINGS = 20


class ConfidencePruner(BasePruner):
    """An Optuna pruner that compares confidence bounds; for studies that maximise a rate.

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
        z = 2.6 if len(told) > MANY_SETTINGS else 2.0  # with more comparisons, one of them is more likely to be wrong
        spread = math.hypot(sd_of(half_width_fraction), self._run_sd_fraction)
        return bool(trial.intermediate_values[step] * (1 + z * spread) < max(lows))
