"""A training with ranks: how long each waits, as a table and as a heat map."""

import pytest
from synthetic import example_best, record, write_run

from feedrate.analysis import load_run, rank_shares, ranking
from feedrate.analysis.page import render_page
from feedrate.analysis.question_sections import TABLES
from feedrate.analysis.ranks_figure import ranks_figure


def ranks_record(number, shares, **columns):
    """A record whose ranks wait for these shares of each window; shares has a row per rank and a value per window."""
    made = record(number, num_windows=len(shares[0]), **columns)
    durations_s = made["window_duration_s"]
    made["ranks"] = [
        {
            "rank": rank, "window_wait_s": [share * s for share, s in zip(mine, durations_s, strict=True)],
            "window_step_s": [(1 - share) * s for share, s in zip(mine, durations_s, strict=True)], "window_num_items": [320] * len(mine),
        }
        for rank, mine in enumerate(shares)
    ]  # fmt: skip
    return made


@pytest.fixture
def run(tmp_path):
    persistent = [[0.1] * 6, [0.5] * 6]
    in_turn = [[0.6, 0.1] * 3, [0.1, 0.6] * 3]
    records = [ranks_record(0, in_turn, num_workers=2, rate_sps=500.0), ranks_record(1, persistent, num_workers=4, rate_sps=900.0)]
    return load_run(write_run(tmp_path / "run", records))


def test_a_slow_rank_is_told_from_ranks_that_take_turns(run):
    assert len(run.rank_windows) == 24
    table = rank_shares(run)
    assert table["config"].tolist() == ["b64 w4 p2"] * 2 + ["b64 w2 p2"] * 2
    assert table["wait_fraction"].tolist() == pytest.approx([0.1, 0.5, 0.35, 0.35], abs=0.01)
    assert table["slowest_fraction"].tolist() == [0.0, 1.0, 0.5, 0.5]
    assert table["is_slowest"].tolist() == [False, True, False, False]
    assert TABLES["ranks"][1](run).rows[1] == ("b64 w4 p2", "rank 1", "50%", "100% (persistent)", "6")


def test_the_heat_map_has_a_row_for_each_rank_of_the_answer(run):
    (heat,) = ranks_figure(run, ranking(run)).data
    assert list(heat.y) == ["rank 0", "rank 1"]
    assert list(heat.x) == [1, 2, 3, 4, 5, 6]
    assert heat.z[0] == pytest.approx([0.1] * 6)
    assert heat.z[1] == pytest.approx([0.5] * 6)
    page = render_page(run)
    assert "Which rank waits" in page and "How long each rank waits" in page


def test_a_training_in_one_process_has_neither(tmp_path):
    run = load_run(write_run(tmp_path / "run", [record(0), record(1, num_workers=2)], best=example_best()))
    assert run.rank_windows.empty and rank_shares(run).empty
    assert ranks_figure(run, ranking(run)) is None
    assert TABLES["ranks"][1](run).why_empty == "the training has one process"
    assert "Which rank waits" not in render_page(run)


def test_ranks_that_were_recorded_senselessly_are_left_out(tmp_path):
    broken = record(0)
    broken["ranks"] = [{"rank": 0, "window_wait_s": [0.1]}]
    assert load_run(write_run(tmp_path / "run", [broken])).rank_windows.empty
