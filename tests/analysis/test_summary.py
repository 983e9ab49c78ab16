"""analysis/summary.py: the settings of a run, the fastest first, with what they rest on."""

from pathlib import Path

import numpy as np
import pytest
from synthetic import dtypes_here, record, small_run, write_run

from feedrate.analysis import load_run, sections
from feedrate.analysis.estimate import Rate
from feedrate.analysis.summary import RANKING_DTYPES, best_by_batch_size, knee, may_win, pool, ranking


def test_settings_are_ranked_and_replicates_pooled(tmp_path: Path) -> None:
    """Two records of one setting are one row; a setting that only failed has none."""
    ranked = ranking(load_run(write_run(tmp_path, small_run())))
    assert {name: str(dtype) for name, dtype in ranked.dtypes.items()} == dtypes_here(RANKING_DTYPES)
    first = ranked.iloc[0]
    assert (first["config"], first["num_trials"], first["status"]) == ("b64 w5 p2 pers", 2, "complete")
    assert 1400.0 < first["throughput_sps"] < 1420.0
    assert first["tree_pss_bytes"] == 1_500_000_000
    assert ranked["throughput_sps"].is_monotonic_decreasing
    assert len(ranked) == 9
    assert not ranked["config"].str.contains("w8").any()


def test_speed_up_compares_equal_batch_sizes(tmp_path: Path) -> None:
    """Against the baseline at 64; at 32 there is none, and no number is made up."""
    ranked = ranking(load_run(write_run(tmp_path, small_run()))).set_index("config")
    assert ranked.loc["b64 w4 p2 pers", "speedup"] == pytest.approx(1200 / 400)
    assert ranked.loc["b64 w4 p2 pers", "speedup_low"] < 3.0 < ranked.loc["b64 w4 p2 pers", "speedup_high"]
    assert ranked.loc["b64 w0", "is_baseline"]
    assert ranked.loc["b64 w0", ["speedup", "speedup_low", "speedup_high"]].tolist() == [1.0, 1.0, 1.0]
    assert ranked.loc[ranked["batch_size"] == 32, "speedup"].isna().all()


def test_the_best_at_each_batch_size(tmp_path: Path) -> None:
    """In the order of batch size; a setting that was stopped early wins only where nothing else was measured, or where it was faster
    for sure (at another batch size something was faster still)."""
    lucky = record(20, num_workers=3, rate_sps=9000.0, batch_size=32, status="pruned", num_windows=1)
    alone = record(21, num_workers=3, rate_sps=10.0, batch_size=128, status="pruned")
    best = best_by_batch_size(load_run(write_run(tmp_path, [*small_run(), lucky, alone])))
    assert best["config"].tolist() == ["b32 w2 p2", "b64 w5 p2 pers", "b128 w3 p2"]
    sure = record(22, num_workers=8, rate_sps=9000.0, batch_size=32, status="pruned", num_windows=5)
    folder = tmp_path / "sure"
    folder.mkdir()
    best = best_by_batch_size(load_run(write_run(folder, [*small_run(), lucky, alone, sure])))
    assert best["config"].tolist() == ["b32 w8 p2", "b64 w5 p2 pers", "b128 w3 p2"]
    assert "late" not in best.columns


def test_trials_that_ran_to_their_end_outweigh_stopped_ones(tmp_path: Path) -> None:
    """A stopped trial's few windows are not pooled with a whole measurement of the same setting."""
    records = [record(0, rate_sps=100.0), record(1, rate_sps=50.0, status="pruned", num_windows=1)]
    only = ranking(load_run(write_run(tmp_path, records))).iloc[0]
    assert (only["throughput_sps"], only["num_trials"], only["status"]) == (pytest.approx(100.0), 1, "complete")


def test_machines_are_never_pooled_silently(tmp_path: Path) -> None:
    """The row says over how many hosts it is pooled."""
    ranked = ranking(load_run(write_run(tmp_path, [record(0), record(1, host_id="host-2")])))
    assert ranked["num_hosts"].tolist() == [2]


def test_a_superseded_attempt_is_not_pooled(tmp_path: Path) -> None:
    """The highest attempt of a trial number is the only one that counts."""
    run = load_run(write_run(tmp_path, [record(0, rate_sps=10.0), record(0, rate_sps=100.0, attempt=2)]))
    assert ranking(run)["throughput_sps"].tolist() == [pytest.approx(100.0)]


def test_an_own_batch_sampler_and_an_empty_run_are_ranked_too(tmp_path: Path) -> None:
    """A batch size of null is a batch size like the others; no record gives no row and every column."""
    run = load_run(write_run(tmp_path, [record(0, batch_size=None, origin="baseline"), record(1, batch_size=64)]))
    assert best_by_batch_size(run)["config"].tolist() == ["b64 w4 p2", "w4 p2"]
    assert ranking(run).set_index("config").loc["w4 p2", "speedup"] == 1.0
    empty = load_run(write_run(tmp_path / "empty", []))
    assert list(ranking(empty)) == list(RANKING_DTYPES)
    assert len(best_by_batch_size(empty)) == 0


def test_pooling_narrows_the_interval_of_equal_starts_and_widens_that_of_unlike_ones() -> None:
    """Four equal starts: half the width. Two that exclude each other: an interval that reaches both."""
    one = Rate(sps=100.0, low_sps=96.0, high_sps=104.0)
    assert pool([one]) == one
    assert pool([one] * 4).high_sps == pytest.approx(102.0)
    apart = pool([Rate(sps=90.0, low_sps=89.0, high_sps=91.0), Rate(sps=110.0, low_sps=109.0, high_sps=111.0)])
    assert apart.low_sps < 90.0
    assert apart.high_sps > 110.0


def test_the_pooled_interval_covers_the_truth() -> None:
    """Three fresh starts that scatter as their intervals say, 2,000 repetitions: at least 94 % hold the truth."""
    generator = np.random.default_rng(3)
    covered = 0
    for starts in generator.normal(1000.0, 15.0, size=(2000, 3)):
        rate = pool([Rate(sps=sps, low_sps=0.9706 * sps, high_sps=1.0294 * sps) for sps in starts.tolist()])
        covered += rate.low_sps <= 1000.0 <= rate.high_sps
    assert covered / 2000 > 0.94


def test_what_leaves_no_memory_of_the_accelerator_is_no_answer(tmp_path):
    """95 of 100 GB taken: a longer sample would not fit. Half of it, or a CPU, is no matter."""
    full = record(1, num_workers=4, rate_sps=2000.0, gpu_free_bytes=5 * 10**9, gpu_peak_bytes=95 * 10**9)
    half = record(2, num_workers=2, rate_sps=1500.0, gpu_free_bytes=50 * 10**9, gpu_peak_bytes=50 * 10**9)
    run = load_run(write_run(tmp_path / "run", [full, half, record(3, num_workers=1)]))
    ranked = ranking(run)
    assert ranked[may_win(run, ranked)]["num_workers"].tolist() == [2, 1]
    assert best_by_batch_size(run)["num_workers"].tolist() == [2]


def test_the_knee_is_the_smallest_batch_size_that_is_nearly_as_fast(tmp_path):
    """32: 700/s, 64: 960/s, 128: 1,000/s, 256: 1,005/s."""
    rates = {32: 700.0, 64: 960.0, 128: 1000.0, 256: 1005.0}
    records = [record(number, batch_size=size, rate_sps=sps) for number, (size, sps) in enumerate(rates.items())]
    assert knee(best_by_batch_size(load_run(write_run(tmp_path / "run", records)))) == 64
    assert knee(best_by_batch_size(load_run(write_run(tmp_path / "one", records[:1])))) is None


def test_a_few_rounds_do_not_replace_what_was_measured(tmp_path):
    """Two rounds of a resumed search are pooled with the rest; from the third on they alone count."""
    searched = [record(1, num_workers=4, rate_sps=1100.0), record(2, num_workers=0, rate_sps=500.0, origin="baseline")]
    rounds = [
        record(number, num_workers=workers, rate_sps=sps, kind="confirm", round=number, position=position)
        for number in (1, 2, 3)
        for position, (workers, sps) in enumerate([(4, 1000.0), (0, 500.0)])
    ]
    two = ranking(load_run(write_run(tmp_path / "two", searched + rounds[:4])))
    three = ranking(load_run(write_run(tmp_path / "three", searched + rounds)))
    assert two.iloc[0]["num_trials"] == 3
    assert 1000.0 < two.iloc[0]["throughput_sps"] < 1100.0
    assert three.iloc[0]["num_trials"] == 3
    assert three.iloc[0]["throughput_sps"] == pytest.approx(1000.0)
    assert three.iloc[0]["speedup"] == pytest.approx(2.0)
    assert three["num_rounds"].tolist() == [3, 3]


def test_a_rate_that_had_not_settled_is_marked(tmp_path):
    """In the ranking, and in its table."""
    records = [record(1, num_workers=2, rate_sps=700.0, settled=False), record(2, num_workers=4, rate_sps=600.0)]
    run = load_run(write_run(tmp_path / "run", records))
    ranked = ranking(run)
    assert ranked["settled"].tolist() == [False, True]
    assert [row[-1] for row in sections.ranking_section(run, ranked).rows] == ["complete, not settled", "complete"]
