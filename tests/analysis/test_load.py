"""analysis/load.py: a run folder becomes tables, whatever state it is in."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from synthetic import EXAMPLE_BEST, dtypes_here, record, small_run, write_run

import feedrate.analysis
from feedrate.analysis import load_run
from feedrate.analysis.load import config_text
from feedrate.analysis.run_folder import RunError
from feedrate.analysis.schema import COLUMNS
from feedrate.analysis.tables import TRIAL_DTYPES, WINDOW_DTYPES
from feedrate.trainables.config import LoaderConfig


def test_every_record_is_a_row_with_its_rates(tmp_path: Path) -> None:
    """The scalar columns as recorded, and what is derived from the windows beside them."""
    run = load_run(write_run(tmp_path, small_run(), best=EXAMPLE_BEST))
    assert len(run.trials) == 12
    assert {name: str(dtype) for name, dtype in run.trials.dtypes.items()} == dtypes_here(TRIAL_DTYPES)
    assert {column.name for column in COLUMNS if column.dtype in ("str", "int", "float", "bool")} <= set(run.trials)
    row = run.trials.iloc[5]
    assert row["config"] == "b64 w5 p2 pers"
    assert row["steady_sps"] == pytest.approx(1400.0)
    assert row["steady_low_sps"] < 1400.0 < row["steady_high_sps"]
    assert row["naive_sps"] == pytest.approx(1400.0)
    assert row["throughput_sps"] == pytest.approx(1400.0)
    assert row["wait_fraction"] == pytest.approx(0.25)
    assert run.trials["status"].value_counts().to_dict() == {"complete": 8, "pruned": 2, "failed": 2}
    assert run.failures["number"].tolist() == [10, 11]
    assert run.failures["throughput_sps"].isna().all()
    assert run.ceilings == {64: pytest.approx(2000.0), 32: pytest.approx(1500.0)}
    assert run.best == EXAMPLE_BEST
    assert run.problems == []
    assert not run.unfinished


def test_windows_are_one_row_each(tmp_path: Path) -> None:
    """The raw durations come back in order; a failed trial has none."""
    written = record(0)
    run = load_run(write_run(tmp_path, [written, record(1, status="failed"), record(2, num_windows=3)]))
    assert {name: str(dtype) for name, dtype in run.windows.dtypes.items()} == dtypes_here(WINDOW_DTYPES)
    assert run.windows["number"].tolist() == [0] * 8 + [2] * 3
    assert run.windows["duration_s"].tolist()[:8] == written["window_duration_s"]
    assert run.windows["window"].tolist()[8:] == [0, 1, 2]


@pytest.mark.parametrize("objective", ["epoch", "steady", None])
def test_throughput_is_what_the_run_maximised(tmp_path: Path, objective: str | None) -> None:
    """The epoch-amortised rate unless search.json says steady."""
    slow_boundary = record(0, rate_sps=100.0, boundary_s=2.5, epoch_samples=1000)
    search: dict[str, Any] = {} if objective is None else {"objective": objective}
    run = load_run(write_run(tmp_path, [slow_boundary], **search))
    assert run.trials["throughput_sps"][0] == pytest.approx(100.0 if objective == "steady" else 80.0)
    assert run.trials["steady_sps"][0] == pytest.approx(100.0)


def test_records_of_an_older_feedrate_are_read(tmp_path: Path) -> None:
    """They lack the settings of the process, which were what they are by default: the setting reads the same."""
    older = small_run()
    for each in older:
        del each["sharing_strategy"], each["trainer_cpus"]
    run, now = load_run(write_run(tmp_path / "older", older)), load_run(write_run(tmp_path / "now", small_run()))
    assert run.problems == []
    assert run.trials["config"].tolist() == now.trials["config"].tolist()
    assert run.trials[["sharing_strategy", "trainer_cpus"]].isna().all(axis=None)


def test_an_empty_run_has_every_column_and_no_row(tmp_path: Path) -> None:
    """Before the first trial ends there is no trials.jsonl at all."""
    (write_run(tmp_path, []) / "trials.jsonl").unlink()
    run = load_run(tmp_path)
    assert (len(run.trials), len(run.windows), len(run.failures), run.ceilings) == (0, 0, 0, {})
    assert {name: str(dtype) for name, dtype in run.trials.dtypes.items()} == dtypes_here(TRIAL_DTYPES)
    assert {name: str(dtype) for name, dtype in run.windows.dtypes.items()} == dtypes_here(WINDOW_DTYPES)
    assert run.best is None
    assert run.unfinished


def test_a_run_that_goes_on_is_read(tmp_path: Path) -> None:
    """A line that is being written is left out and named; the next reading has it."""
    folder = write_run(tmp_path, [record(0)])
    line = json.dumps(record(1)) + "\n"
    with (folder / "trials.jsonl").open("a") as stream:
        stream.write(line[:200])
        stream.flush()
        run = load_run(folder)
        assert len(run.trials) == 1
        assert run.problems == ["line 2 of trials.jsonl is torn or damaged and was skipped"]
        stream.write(line[200:])
    assert load_run(folder).problems == []
    assert len(load_run(folder).trials) == 2


def test_the_highest_attempt_counts(tmp_path: Path) -> None:
    """A trial that was asked again keeps both rows, and the last attempt is the one that counts."""
    lost = record(3, status="failed", failure_message="node lost")
    run = load_run(write_run(tmp_path, [lost, record(4), record(3, attempt=2, rate_sps=900.0)]))
    assert run.trials["superseded"].tolist() == [True, False, False]
    assert run.latest["number"].tolist() == [4, 3]
    assert run.failures["failure_message"].tolist() == ["node lost"]


def test_a_confirmation_round_is_one_trial_with_several_records(tmp_path: Path) -> None:
    """Its records differ in position and all count; a true duplicate does not count twice."""
    rounds = [record(9, kind="confirm", round=1, position=place, num_workers=place) for place in range(3)]
    run = load_run(write_run(tmp_path, [*rounds, rounds[0]]))
    assert run.trials["superseded"].tolist() == [True, False, False, False]
    assert run.problems == ["round 9 position 0 was recorded twice; the last record is used"]


@pytest.mark.parametrize(
    ("column", "value", "sentence"),
    [
        ("boundary_s", math.nan, "trial 1: nan is no possible value of boundary_s and was left out"),
        ("boundary_s", math.inf, "trial 1: inf is no possible value of boundary_s and was left out"),
        ("setup_s", -1.0, "trial 1: -1.0 is no possible value of setup_s and was left out"),
        ("tree_pss_bytes", 2**80, f"trial 1: {2**80} is no possible value of tree_pss_bytes and was left out"),
        ("device", 3, "trial 1: 3 is no possible value of device and was left out"),
        ("mystery", 3, "trial 1: unknown columns were ignored: mystery"),
    ],
)
def test_one_senseless_value_costs_that_value(tmp_path: Path, column: str, value: object, sentence: str) -> None:
    """The rest of the record is used, the gap is named."""
    run = load_run(write_run(tmp_path, [record(0), record(1) | {column: value}]))
    assert run.problems == [sentence]
    assert run.trials["throughput_sps"].notna().tolist() == [True, True]


@pytest.mark.parametrize("value", ["four", None, math.nan, -2, 1.5])
def test_a_record_without_its_setting_is_skipped(tmp_path: Path, value: object) -> None:
    """A required column that makes no sense costs the record, and only that one."""
    run = load_run(write_run(tmp_path, [record(0), record(1) | {"num_workers": value}, record(2)]))
    assert run.trials["number"].tolist() == [0, 2]
    assert run.problems[-1] == "trial 1 was skipped: it has no usable num_workers"


@pytest.mark.parametrize(
    "windows",
    [
        {"window_duration_s": [1.0, math.nan]},
        {"window_duration_s": [1.0]},
        {"window_duration_s": [0.0] * 8},
        {"window_duration_s": [1e-308] * 8},
        {"window_produced_batches": [0] * 8},
        {"window_num_batches": None},
        {"window_wait_s": [0.1]},
    ],
)
def test_senseless_windows_give_no_rate(tmp_path: Path, windows: dict[str, Any]) -> None:
    """The trial keeps its row; its rate is missing, and the run's problems name the reason."""
    run = load_run(write_run(tmp_path, [record(0), record(1) | windows]))
    assert run.trials["throughput_sps"].notna().tolist() == [True, False]
    assert any(problem.startswith("trial 1: ") for problem in run.problems)


def test_file_names_that_are_no_text_are_written_out(tmp_path: Path) -> None:
    """Arrow and UTF-8 refuse lone surrogates; a message with one is still a message."""
    run = load_run(write_run(tmp_path, [record(0, status="failed", failure_message="cannot read \udcff.jpg")]))
    assert run.failures["failure_message"].tolist() == ["cannot read \\udcff.jpg"]


@pytest.mark.parametrize("content", ["{", "[]", "{}", json.dumps(EXAMPLE_BEST | {"schema": "feedrate/best-config/9"})])
def test_a_broken_best_json_is_named(tmp_path: Path, content: str) -> None:
    """The tables are still there."""
    folder = write_run(tmp_path, [record(0)])
    (folder / "best.json").write_text(content)
    run = load_run(folder)
    assert run.best is None
    assert len(run.trials) == 1
    assert run.problems[0].startswith("best.json was left out: ")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    """No folder, or a search.json of another version."""
    with pytest.raises(RunError, match="not a run folder"):
        load_run(tmp_path)
    with pytest.raises(RunError, match=r"schema 'feedrate/search/2'; .*Install the version that wrote it"):
        load_run(write_run(tmp_path, [], schema="feedrate/search/2"))


def test_search_json_may_hold_nothing_but_schema_and_study(tmp_path: Path) -> None:
    """Every other field may be missing or of another type."""
    folder = write_run(tmp_path, [record(0)])
    for search in ({}, {"workload": [], "objective": [], "hardware": 3, "finished": "yes"}):
        (folder / "search.json").write_text(json.dumps({"schema": "feedrate/search/1", "study": "s"} | search))
        run = load_run(folder)
        assert run.unit == "samples"
        assert run.unfinished
        assert len(run.trials) == 1


@pytest.mark.parametrize(
    "setting",
    [
        {"num_workers": 0, "batch_size": 64},
        {"num_workers": 8, "batch_size": 64, "prefetch_factor": 4, "pin_memory": True, "persistent_workers": True},
        {"num_workers": 2, "batch_size": None, "in_order": False, "multiprocessing_context": "spawn"},
        {"num_workers": 2, "batch_size": 8, "sharing_strategy": "file_system", "trainer_cpus": 3},
    ],
)
def test_a_setting_reads_the_same_everywhere(setting: dict[str, Any]) -> None:
    """The fields of a trial's record and the arguments in a best.json give the text of `LoaderConfig.short`."""
    config = LoaderConfig(**setting)
    assert config_text(config.to_dict()) == config.short()
    assert config_text(config.to_kwargs() | config.to_process()) == config.short()


def test_thousands_of_records_are_read(tmp_path: Path) -> None:
    """4,000 records are read whole, and tell no problem."""
    folder = write_run(tmp_path, (record(number, num_workers=number % 33) for number in range(4000)))
    run = load_run(folder)
    assert (len(run.trials), len(run.windows), run.problems) == (4000, 32000, [])
    assert isinstance(run.trials, pd.DataFrame)


def test_analysis_needs_neither_torch_nor_ray_nor_optuna() -> None:
    """Every module of the package is imported in a fresh interpreter that then holds none of the three."""
    folder = Path(feedrate.analysis.__file__).parent
    modules = sorted(f"feedrate.analysis.{path.stem}" for path in folder.glob("*.py") if path.stem != "__init__")
    assert "feedrate.analysis.page" in modules
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "print(*[n for n in ('torch', 'ray', 'optuna', 'feedrate.search', 'feedrate.trainables') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == ""
