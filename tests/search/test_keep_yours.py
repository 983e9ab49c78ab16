"""result.py: a change that does not certainly gain anything is not recommended."""

from synthetic import record, write_run

from feedrate.analysis import load_run, sections
from feedrate.analysis.run_folder import RunFolder
from feedrate.search.answers.wording import explain
from feedrate.search.result import conclude


def concluded(folder, records):
    return conclude(RunFolder(write_run(folder, records)), "it is over")


def test_what_gains_nothing_for_sure_and_costs_more_is_no_answer(tmp_path):
    """One uncertain trial above the baseline: the baseline stays the answer, and the trial is named; a cheaper setting would be the answer."""
    baseline = record(0, num_workers=0, rate_sps=400.0, origin="baseline")
    wide = record(1, num_workers=4, rate_sps=600.0, num_windows=1)
    result = concluded(tmp_path / "wide", [baseline, wide])
    assert result.dataloader["num_workers"] == 0
    text = "\n".join(explain(result))
    assert "No setting was shown to be faster than yours, but this is not certain: keep yours until it is settled." in text
    assert "b64 w4 p2 was measured faster, at 600/s, but not significantly faster than the baseline." in text
    assert "b64 w4 p2 was measured faster" in str(sections.answer(load_run(result.folder), result.ranking).rows)
    cheaper = [record(0, num_workers=8, rate_sps=1000.0, origin="baseline"), record(1, num_workers=4, rate_sps=1003.0)]
    assert concluded(tmp_path / "cheaper", cheaper).dataloader["num_workers"] == 4


def in_rounds(cpu_fractions):
    """Records of six rounds, in which two workers are as fast as none: number of workers -> share of the CPUs that is used."""
    return [
        record(
            number, num_workers=workers, rate_sps=(1003.0 if workers else 1000.0) * (1 + 0.004 * (-1) ** number), kind="confirm",
            round=number, position=position, origin="finalist" if workers else "baseline", own_cpu_fraction=used,
        )
        for number in range(1, 7)
        for position, (workers, used) in enumerate(cpu_fractions.items())
    ]  # fmt: skip


def test_as_fast_with_much_less_cpu_time_is_worth_a_change(tmp_path):
    """Yours without workers spins on all CPUs; two workers reach the same rate with a third less CPU time. One trial of each does not show that."""
    trials = [record(0, num_workers=0, rate_sps=1000.0, origin="baseline", own_cpu_fraction=0.6)]
    trials += [record(7, num_workers=2, rate_sps=1003.0, own_cpu_fraction=0.4)]
    assert concluded(tmp_path / "trials", trials).dataloader["num_workers"] == 0
    result = concluded(tmp_path / "rounds", [*trials, *in_rounds({0: 0.6, 2: 0.4})])
    assert result.dataloader["num_workers"] == 2
    assert "No significant gain over yours, but it takes 34 % less CPU time." in "\n".join(explain(result))
    assert concluded(tmp_path / "alike", [*trials, *in_rounds({0: 0.6, 2: 0.55})]).dataloader["num_workers"] == 0
