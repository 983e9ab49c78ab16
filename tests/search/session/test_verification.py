"""search/session/verification.py: what rounds on this machine say about an earlier answer."""

import re

import pytest
from synthetic import example_best

from feedrate.analysis.best import BestConfig
from feedrate.analysis.rounds import Round
from feedrate.search.session.verification import baseline_of, differences, setting_of, verified

SETTING, BASELINE = "b64 w6 p4 pin pers", "b64 w0"


def best(**changed):
    return BestConfig(example_best(**changed))


def rounds(speedup, *, number=4, spread=0.004, names=(SETTING, BASELINE)):
    """Rounds in which the setting is so much faster than the baseline."""
    signs = [(-1) ** index for index in range(number)]
    return [Round(number=n, sps={names[0]: 100.0 * speedup * (1 + sign * spread), names[1]: 100.0 * (1 - sign * spread)}) for n, sign in enumerate(signs)]


def test_settings_of_a_best_json():
    """With what the process needs; torch's default where no baseline was measured."""
    assert setting_of(best()).short() == SETTING
    assert setting_of(best(process={"trainer_cpus": 1, "torch_num_threads": 3})).trainer_cpus == 1
    assert baseline_of(best(baseline=None)).short() == BASELINE


@pytest.mark.parametrize(
    ("speedup", "holds", "words"),
    [
        (4.4, True, "the answer holds: 4.40x the baseline here .*, 4.46x in the search"),
        (2.0, True, "still faster, but gains less: 2.00x"),
        (1.001, False, "no significant gain"),
        (0.7, False, "which is slower than recorded"),
    ],
)
def test_what_is_said(speedup, holds, words):
    found = verified(best(), rounds(speedup))
    assert found.holds is holds
    assert re.search(words, found.sentence), found.sentence
    assert found.speedup.low_sps < speedup < found.speedup.high_sps


def test_no_gain_there_and_none_here_holds():
    """What was as fast as the baseline may be so here too."""
    baseline = example_best()["baseline"] | {"speedup": 1.01, "speedup_ci95": [0.99, 1.03]}
    found = verified(best(baseline=baseline), rounds(1.0))
    assert found.holds
    assert "no significant gain over the baseline in the search, and none here" in found.sentence
    assert "here it gains over the baseline, which it did not" in verified(best(baseline=baseline), rounds(2.0)).sentence


def test_the_baseline_itself():
    itself = best(dataloader={"batch_size": 64, "num_workers": 0})
    found = verified(itself, [Round(number=n, sps={BASELINE: 400.0 + n}) for n in range(3)])
    assert found.holds
    assert found.speedup is None
    assert found.throughput.sps == pytest.approx(401.0, abs=1)


def test_too_few_rounds_say_nothing():
    assert verified(best(), rounds(2.0, number=2)) is None


def test_what_differs_from_there_is_named():
    """Versions that matter, machine; what is not known on one side is not named."""
    there = best(
        measured_on={"versions": {"python": "3.11.7", "torch": "2.13.0", "ray": "2.60.0"}, "num_cpus": 8, "device_name": "H100", "hostname": "a"},
    )
    here = {"versions": {"python": "3.11.7", "torch": "2.14.0", "ray": "2.61.0"}, "num_cpus": 2, "device_name": "H100", "cpu_model": "x"}
    assert differences(there, here) == [
        "torch was 2.13.0, and is 2.14.0 here",
        "the number of CPUs was 8, and is 2 here",
    ]
