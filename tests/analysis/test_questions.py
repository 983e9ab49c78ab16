"""analysis/questions.py: each question's table, from records whose answer is known."""

import math

import pandas as pd
import pytest
from synthetic import example_best, record, small_run, write_run

from feedrate.analysis import effects, failures_by_reason, load_costs, load_run, noise, pareto, ranking, time_shares
from feedrate.analysis.question_sections import TABLES


@pytest.fixture
def run_of(tmp_path):
    """A loaded run with these records."""
    return lambda records, **more: load_run(write_run(tmp_path / "run", records, **more))


def rows(table, *names):
    return list(table[list(names)].itertuples(index=False, name=None))


def test_effects_are_the_best_found_with_each_value(run_of):
    """Batch size over all settings, the others at the best one's; a dimension that never varied has no row."""
    records = [
        record(0, num_workers=0, rate_sps=400.0),
        record(1, num_workers=4, rate_sps=1000.0, prefetch_factor=2),
        record(2, num_workers=4, rate_sps=900.0, prefetch_factor=4),
        record(3, num_workers=8, rate_sps=800.0, prefetch_factor=4),
        record(4, num_workers=8, rate_sps=950.0, prefetch_factor=2, batch_size=32),
    ]
    table = effects(run_of(records))
    told = {(row["dimension"], row["value"]): row for row in table.to_dict("records")}
    assert set(table["dimension"]) == {"batch_size", "num_workers", "prefetch_factor"}
    assert told["batch_size", "32"]["config"] == "b32 w8 p2"
    assert told["batch_size", "32"]["fraction_of_best"] == pytest.approx(0.95, abs=1e-3)
    assert told["num_workers", "8"]["config"] == "b64 w8 p4", "at the best one's batch size"
    assert told["num_workers", "0"]["fraction_of_best"] == pytest.approx(0.4, abs=1e-3)
    assert told["prefetch_factor", "4"]["fraction_of_best"] == pytest.approx(0.9, abs=1e-3)
    assert told["prefetch_factor", "4"]["num_settings"] == 2
    assert told["prefetch_factor", "4"]["differs_in"] == 1, "a clean comparison: nothing else differs"
    assert told["num_workers", "8"]["differs_in"] == 2
    assert ("prefetch_factor", "none") not in told, "it does not exist without workers"


def test_the_pareto_front_holds_what_nothing_beats_in_both(run_of):
    """Memory grows with workers in these records: w6 is slower than w4 and larger."""
    records = [record(n, num_workers=n, rate_sps=rate) for n, rate in ((0, 400.0), (2, 700.0), (4, 1000.0), (6, 900.0), (8, 1001.0))]
    front = pareto(run_of(records))
    assert rows(front, "config") == [("b64 w0",), ("b64 w2 p2",), ("b64 w4 p2",), ("b64 w8 p2",)]
    same = [record(0, num_workers=2, rate_sps=700.0, tree_pss_bytes=5), record(1, num_workers=3, rate_sps=900.0, tree_pss_bytes=5)]
    assert rows(pareto(run_of(same)), "config") == [("b64 w3 p2",)]


def test_the_time_is_shared_out(run_of):
    """Waiting is measured, step and copy are what they take alone, the rest is lost to each other; epochs begin."""
    records = [
        record(0, num_workers=4, rate_sps=1000.0, step_only_sps=2000.0, boundary_s=5.0, copy_only_num_items=[1000], copy_only_duration_s=[0.1]),
        record(1, num_workers=2, rate_sps=700.0),
        record(2, num_workers=1, rate_sps=10.0, status="pruned"),
    ]
    table = time_shares(run_of(records))
    assert list(table["config"]) == ["b64 w4 p2", "b64 w2 p2"]
    first = table.iloc[0]
    assert first["wait_fraction"] == pytest.approx(0.25)
    assert first["compute_fraction"] == pytest.approx(0.5)
    assert first["copy_fraction"] == pytest.approx(0.1)
    assert first["slowed_fraction"] == pytest.approx(0.15)
    assert first["boundary_fraction"] == pytest.approx(5 / 55)
    assert (first["startup_s"], first["setup_s"]) == (pytest.approx(0.15), 1.0)
    assert table.iloc[1]["compute_fraction"] == pytest.approx(0.35)


def test_the_noise_of_each_host(run_of):
    """Between windows, between fresh starts in rounds, and what other processes took."""
    records = [record(n, num_workers=n, rate_sps=500.0 + n, noise_fraction=0.05, num_windows=50) for n in (1, 2, 3)]
    records[0]["foreign_cpu_fraction"] = 0.5
    records[1]["foreign_cpu_fraction"] = 0.01
    place = 0
    for number in (1, 2, 3, 4):
        for position, workers in enumerate((1, 2, 3)):
            place += 1
            rate = (500.0 + workers) * math.exp(0.02 if place % 2 else -0.02)
            records.append(record(number, num_workers=workers, rate_sps=rate, kind="confirm", origin="finalist", round=number, position=position))
    records.append(record(9, num_workers=4, rate_sps=500.0, host_id="host-2", hostname="node-2"))
    table = noise(run_of(records))
    assert rows(table, "hostname", "num_measurements", "num_disturbed") == [("node-1", 15, 1), ("node-2", 1, 0)]
    first, second = table.iloc[0], table.iloc[1]
    assert first["max_foreign_cpu_fraction"] == 0.5
    assert first["window_sd_fraction"] == pytest.approx(0.01, rel=0.5), "most trials are rounds with 1 %"
    assert first["run_sd_fraction"] == pytest.approx(0.024, abs=0.01)
    assert math.isnan(second["run_sd_fraction"])


@pytest.mark.parametrize("off_s", [-7200.0, -0.2, 0.0, 0.2, 3600.0])
def test_a_host_whose_clock_is_off(run_of, off_s):
    """Its times contradict the driver's by at least so much, and nothing else is different."""
    records = [record(n, num_workers=n, rate_sps=500.0 + n) for n in (1, 2, 3)]
    for each in records:
        each["host_began_unix_s"] = each["started_unix_s"] + 0.3 + off_s
        each["host_ended_unix_s"] = each["finished_unix_s"] - 0.4 + off_s
    run = run_of(records)
    assert list(ranking(run)["config"]) == ["b64 w3 p2", "b64 w2 p2", "b64 w1 p2"]
    found = noise(run).iloc[0]["clock_off_s"]
    assert found == pytest.approx({-7200.0: -7199.7, 3600.0: 3599.6}.get(off_s, 0.0))
    (row,) = TABLES["noise"][1](run).rows
    assert row[5] == {-7200.0: "-7,200 s", 3600.0: "+3,600 s"}.get(off_s, "")


def test_failures_of_one_reason_are_together(run_of):
    records = [record(n, num_workers=n, status="failed") for n in (1, 2)]
    records.append(record(3, num_workers=3, status="failed", failure_message="out of luck"))
    table = failures_by_reason(run_of(records))
    assert rows(table, "failure_message", "num_trials", "configs") == [
        ("the worker was killed", 2, "b64 w1 p2, b64 w2 p2"),
        ("out of luck", 1, "b64 w3 p2"),
    ]


def test_what_loading_costs(run_of):
    """The rest of an item's time is waiting; settings whose processes were not timed have no row."""
    timed = {
        "load_item_s": 0.010, "load_cpu_item_s": 0.004, "load_delay_item_s": 0.001, "collate_item_s": 0.002,
        "sample_p50_s": 0.007, "sample_p90_s": 0.008, "sample_p99_s": 0.05, "sample_max_s": 2.0,
        "handover_cpu_item_s": 2e-5, "batch_bytes": 1_200_000,
    }  # fmt: skip
    batches_only = {"load_item_s": 0.01, "load_cpu_item_s": 0.004}
    run = run_of([record(0, num_workers=0), record(1, num_workers=2, rate_sps=2000.0, **timed), record(2, num_workers=4, **batches_only)])
    first, second = load_costs(run).to_dict("records")
    assert first["config"] == "b64 w2 p2"
    assert first["load_wait_item_s"] == pytest.approx(0.005)
    assert first["sample_max_s"] == 2.0
    assert pd.isna(second["load_wait_item_s"]) and second["load_cpu_item_s"] == 0.004
    shown = TABLES["loading"][1](run).rows
    assert shown[0] == ("b64 w2 p2", "10 ms", "4 ms", "1 ms", "5 ms", "2 ms", "20 us", "7 ms", "50 ms", "2 s", "1.2 MB")
    assert shown[1][3:] == ("",) * 8


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("what", ["small", "empty", "only failures"])
def test_every_table_of_every_run_has_a_text(run_of, name, what):
    """Also where there is nothing to show: headers without rows."""
    records = {"small": small_run(), "empty": [], "only failures": [record(0, status="failed")]}[what]
    run = run_of(records, best=example_best() if what == "small" else None)
    question, build = TABLES[name]
    section = build(run)
    assert question
    assert all(len(row) == len(section.headers) for row in section.rows)
    assert all(isinstance(cell, str) for row in section.rows for cell in row)
    assert set(section.numeric) <= set(section.headers)
    if name == "what-if":  # it has rows where the model of loading fits the run (test_outlook.py)
        assert section.why_empty.startswith("nothing is predicted: ")
    elif name == "loading":  # only where the processes that load were timed (test_what_loading_costs)
        assert section.why_empty.startswith("no process that loads could be timed" if what == "small" else "no setting was measured")
    elif name == "ranks":
        assert section.why_empty == "the training has one process"
    elif what == "small" or (what, name) == ("only failures", "failures"):
        assert section.rows
    else:
        assert not section.rows
