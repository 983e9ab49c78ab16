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
