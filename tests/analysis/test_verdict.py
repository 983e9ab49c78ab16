"""analysis/verdict.py: the verdict from made-up shares of time, and the sentences that give the evidence."""

import pytest
from synthetic import record

from feedrate.analysis.ceilings import Ceilings
from feedrate.analysis.estimate import Rate
from feedrate.analysis.verdict import Verdict, alternating_sps, busy_fraction, judge, record_facts


def judged(found):
    """The verdict of facts, with the ceiling that is known from them."""
    ceilings, sps = Ceilings(), found["steady_sps"]
    ceilings.learn(64, found["step_only_sps"], Rate(sps=sps, low_sps=0.95 * sps, high_sps=1.05 * sps), disturbed=False)
    return judge(found, ceilings.at(64), ceilings.why_not(64))


def facts(fraction, wait, busy, copy_sps=None, **more):
    """One setting with two workers on two CPUs, whose step alone does 1000/s; `busy` is of both CPUs."""
    return {
        "steady_sps": 500.0 if fraction is None else 1000.0 * fraction,
        "step_only_sps": None if fraction is None else 1000.0,
        "copy_only_sps": copy_sps,
        "wait_fraction": wait,
        "own_cpu_fraction": busy,
        "num_cpus": 2,
        "num_workers": 2,
    } | more


@pytest.mark.parametrize(
    ("fraction", "wait", "busy", "expected"),
    [
        (0.97, 0.2, 0.5, "compute-bound"),
        (0.85, 0.01, 0.99, "compute-bound"),
        (0.16, 0.01, 0.99, "step slowed by loader"),  # workers starve a step on the CPU, which then never waits
        (1.8, 0.01, 0.99, "too noisy to say"),
        (None, 0.01, None, "too noisy to say"),  # whether workers slow the step down, only its ceiling tells
        (None, 0.01, 0.99, "too noisy to say"),
        (0.6, 0.4, 0.95, "loader-bound (CPU)"),
        (0.5, 0.2, 0.95, "step slowed by loader"),  # 30 % is lost because the step takes longer than alone
        (0.6, 0.2, 0.95, "loader-bound (CPU)"),  # 20 % are not worth naming
        (0.2, 0.45, 0.95, "loader-bound (CPU)"),  # waiting costs more
        (0.5, 0.2, 0.30, "loader-bound (waiting)"),  # CPUs are free: something else slows it down
        (0.6, 0.4, 0.30, "loader-bound (waiting)"),
        (None, None, 0.30, "too noisy to say"),
        (None, 0.2, 0.30, "too noisy to say"),
        (None, 0.6, 0.30, "loader-bound (waiting)"),
        (0.6, 0.4, None, "too noisy to say"),
    ],
)
def test_the_verdict_says_where_the_time_goes(fraction, wait, busy, expected):
    """At the ceiling or never kept waiting; busy processors; or neither."""
    assert judged(facts(fraction, wait, busy)).name == expected


@pytest.mark.parametrize(
    ("fraction", "wait", "copy_sps", "expected"),
    [
        (0.5, 0.01, 1000.0, "transfer-bound"),  # step and copy take turns and explain all of it
        (0.47, 0.06, 1000.0, "transfer-bound"),  # and nearly all of it
        (0.4, 0.01, 410.0, "transfer-bound"),  # the copy overlaps with the step, and is slower
        (0.85, 0.0, 5666.0, "transfer-bound"),  # 15 % are worth having, though the step never waits
        (0.96, 0.0, 10_000.0, "compute-bound"),  # at the ceiling
        (0.85, 0.0, 50_000.0, "compute-bound"),  # the copy takes 2 % of the time
        (0.5, 0.3, 2500.0, "loader-bound (waiting)"),  # the copy takes 20 %, waiting takes 30 %
        (0.5, 0.45, 10_000.0, "loader-bound (waiting)"),
        (0.3, 0.5, 1500.0, "loader-bound (waiting)"),  # step and copy explain half of it
        (1.3, 0.0, 1000.0, "too noisy to say"),
        (0.5, None, 1000.0, "transfer-bound"),
        (0.5, 0.01, None, "loader-bound (waiting)"),  # not measured: nothing is said about it
    ],
)
def test_a_copy_that_explains_the_rate_is_the_limit(fraction, wait, copy_sps, expected):
    """Step and copy in turn explain the rate, and the copy takes more of the time than waiting for data does."""
    assert judged(facts(fraction, wait, 0.3, copy_sps)).name == expected


def test_evidence_is_in_words():
    """What was compared, in numbers, the ceiling first; what is not known or does not matter is not named."""
    verdict = judged(facts(0.59, 0.41, 0.23, throttled_fraction=0.3, psi_io_fraction=0.04, cache_state="mixed"))
    assert verdict.evidence == (
        "59% of the ceiling (1,000/s without loading)",
        "the step waits 41% of the time",
        "loading and training used 23% of the time of 2 CPUs",
        "samples came from storage",
        "the container's CPU quota ran out in 30% of its periods",
    )
    assert str(verdict) == "loader-bound (waiting): " + "; ".join(verdict.evidence)
    copied = judged(facts(0.5, 0.01, 0.1, 1000.0, steal_fraction=0.2, psi_io_fraction=0.5))
    assert "copying to the accelerator takes 50% of the time (1,000/s at most)" in copied.evidence
    assert copied.evidence[-2:] == (
        "the hypervisor took 20% of the CPU time away",
        "processes of this machine waited for storage 50% of the time",
    )
    assert judge({}, None) == Verdict("too noisy to say")
    assert str(judge({}, None)) == "too noisy to say"


def test_a_ceiling_of_other_trials_counts():
    """The step alone is measured once a batch size: its rate is passed in, and the trial's own counts for nothing."""
    assert judge(facts(None, 0.5, 0.3) | {"steady_sps": 500.0}, 510.0).name == "compute-bound"
    assert judge(facts(0.5, 0.5, 0.3), 510.0).name == "compute-bound"
    assert judge(facts(0.97, 0.2, 0.3), None, "nobody timed it").name == "too noisy to say"


def test_a_trainer_without_workers_that_does_not_wait_needs_no_ceiling():
    """Loading is a part of its own time: 1 % of it is the most that any setting gains."""
    assert judge(facts(None, 0.01, 0.9, num_workers=0), None).name == "compute-bound"
    assert judge(facts(None, 0.6, 0.3, num_workers=0), None).name == "loader-bound (waiting)"


def test_nothing_is_concluded_from_a_rate_that_still_changes():
    """The verdict holds for any distance from the ceiling; the evidence mentions the changing rate first."""
    verdict = judged(facts(0.97, 0.01, 0.9, change_fraction=1.5))
    assert verdict.name == "too noisy to say"
    assert verdict.evidence[0] == "the rate was still rising (2.5 times the rate of its first windows)"
    falling = judged(facts(0.97, 0.01, 0.9, change_fraction=-0.5))
    assert falling.evidence[0] == "the rate was still falling (0.5 times the rate of its first windows)"


def test_busy_is_of_the_cpus_that_loading_can_use():
    """One worker on 32 CPUs can use one of them; more workers than CPUs can use all."""
    assert busy_fraction(1 / 32, 32, 1) == pytest.approx(1.0)
    assert busy_fraction(1 / 32, 32, 0) == pytest.approx(1.0)
    assert busy_fraction(0.5, 2, 8) == pytest.approx(0.5)
    assert busy_fraction(0.9, 4, 2) == 1.0
    assert busy_fraction(None, 4, 2) is busy_fraction(0.5, None, 2) is None


def test_things_that_take_turns():
    """Twice the time is half the rate."""
    assert alternating_sps(100.0) == pytest.approx(100.0)
    assert alternating_sps(100.0, 100.0) == pytest.approx(50.0)
    assert alternating_sps(100.0, 50.0, 100.0) == pytest.approx(25.0)


def test_a_record_says_it_all():
    """The rates that the verdict compares come from the record's raw observations."""
    raw = record(
        0, num_workers=2, rate_sps=600.0, step_only_sps=1000.0, own_cpu_fraction=0.2, num_cpus=4,
        copy_only_num_items=[640, 640, 640], copy_only_duration_s=[1.0, 0.5, 2.0],
    )  # fmt: skip
    raw["window_wait_s"] = [0.4 * each for each in raw["window_duration_s"]]
    found = record_facts(raw)
    assert found["steady_sps"] == pytest.approx(600.0)
    assert found["change_fraction"] == 0.0
    assert found["copy_only_sps"] == pytest.approx(640.0)
    assert found["wait_fraction"] == pytest.approx(0.4)
    assert judge(found, 1000.0).name == "transfer-bound"
    verdict = judge(found | {"copy_only_sps": None}, 1000.0)
    assert verdict.name == "loader-bound (waiting)"
    assert "loading and training used 40% of the time of 2 CPUs" in verdict.evidence
    failed = record_facts(record(1, status="failed"))
    assert failed["steady_sps"] is failed["wait_fraction"] is None


def test_a_ceiling_below_what_was_trained_is_no_share():
    """Something else ran while the step alone was timed: 3300 % of it is no evidence for anything."""
    verdict = judged({"steady_sps": 3300.0, "step_only_sps": 100.0, "wait_fraction": 0.01})
    assert verdict.evidence[0] == (
        "the ceiling is not known, because the step alone was measured at 100/s, less than training with loading (3,300/s), so something slowed it down"
    )
    assert "%" not in verdict.evidence[0]


def test_a_slowed_step_is_told_how_much():
    """80 % of the time in steps, at half the rate of steps alone: each takes 1.6 times as long."""
    verdict = judge(facts(0.5, 0.2, 0.95), 1000.0)
    assert verdict.name == "step slowed by loader"
    assert "a step takes 1.6 times as long as without loading" in verdict.evidence
