"""disqualified.py: which settings of a run may be the answer, as search.json says."""

import pandas as pd
import pytest

from feedrate.analysis.disqualified import NOTHING, Disqualified

TABLE = pd.DataFrame(
    {"num_workers": [0, 1, 1, 4, 4], "persistent_workers": pd.array([False, False, True, False, True], dtype="boolean")}
)


@pytest.mark.parametrize(
    ("left_out", "allowed"),
    [
        (NOTHING, [True] * 5),
        (Disqualified(max_num_workers=1), [True, True, True, False, False]),
        (Disqualified(max_num_workers=0), [True, False, False, False, False]),
        (Disqualified(persistent_workers=False), [True, True, False, True, False]),
        (Disqualified(persistent_workers=True), [True, False, True, False, True]),
        (Disqualified(max_num_workers=1, persistent_workers=True), [True, False, True, False, False]),
    ],
)
def test_rows_and_settings_are_judged_alike(left_out, allowed):
    """Without workers nothing is left out."""
    assert left_out.allowed(TABLE).tolist() == allowed
    assert [left_out.allows(*row) for row in TABLE.itertuples(index=False)] == allowed
    assert left_out.is_nothing == all(allowed)


def test_only_repeated_samples_make_a_rate_untrue():
    """A setting that repeats its first epoch is as fast as it reads."""
    assert Disqualified(persistent_workers=False).true_rates(TABLE).all()
    assert not Disqualified(max_num_workers=1).true_rates(TABLE).all()


def test_earlier_runs_are_read():
    """Their search.json knows nothing of epochs; null is nothing."""
    assert Disqualified.of({"disqualified": None}) == Disqualified.of({}) == NOTHING
    old = Disqualified.of({"disqualified": {"max_num_workers": 1, "reason": "they repeat", "later": 1}})
    assert old.in_words() == [("settings with more than 1 worker", "they repeat")]
    both = Disqualified(max_num_workers=0, reason="a", persistent_workers=False, epochs_reason="b")
    assert Disqualified.from_json(both.to_json()) == both
    assert both.in_words() == [("settings with workers", "a"), ("settings with workers and persistent_workers=True", "b")]
