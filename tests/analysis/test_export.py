"""analysis/export.py: a run as files that other tools read."""

import os
import re
from pathlib import Path

import pandas as pd
import pytest
from synthetic import example_best, record, small_run, write_run

from feedrate.analysis import load_run
from feedrate.analysis.export import FORMATS, export_tables, markdown
from feedrate.analysis.run_folder import RunError


def test_every_format_is_written_and_read_back(tmp_path: Path) -> None:
    """CSV and Parquet hold the whole table; the folder is made; the paths come back in order."""
    run = load_run(write_run(tmp_path / "run", small_run()))
    out = tmp_path / "a" / "b"
    paths = export_tables(run, out, ["csv", "parquet", "markdown", "csv"])
    assert [path.name for path in paths] == ["trials.csv", "trials.parquet", "report.md"]
    assert sorted(os.listdir(out)) == ["report.md", "trials.csv", "trials.parquet"]
    from_csv, from_parquet = pd.read_csv(paths[0]), pd.read_parquet(paths[1])
    pd.testing.assert_frame_equal(from_parquet, run.trials)
    assert list(from_csv) == list(run.trials)
    assert from_csv["throughput_sps"].tolist() == pytest.approx(run.trials["throughput_sps"].tolist(), nan_ok=True)
    assert from_csv["failure_message"].iloc[10] == "the worker was killed"


def test_an_empty_run_is_exported_too(tmp_path: Path) -> None:
    """An empty run has every column and no row, and the report mentions it."""
    run = load_run(write_run(tmp_path / "run", []))
    csv, parquet, report = export_tables(run, tmp_path, list(FORMATS))
    assert csv.read_text().startswith("schema,study,number,")
    assert list(pd.read_parquet(parquet)) == list(run.trials)
    text = report.read_text()
    assert "**No trial was measured yet.**" in text
    assert "The search is not finished" in text


def test_bad_requests_are_refused_in_one_sentence(tmp_path: Path) -> None:
    """An unknown format lists the known ones; a folder that cannot be made is named; nothing is written."""
    run = load_run(write_run(tmp_path / "run", small_run()))
    with pytest.raises(RunError, match=r"unknown format 'xlsx'; the formats are csv, parquet, markdown"):
        export_tables(run, tmp_path / "out", ["csv", "xlsx"])
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file cannot be written: .*Name another folder"):
        export_tables(run, tmp_path / "file", ["csv"])


def test_markdown_has_the_answer_first(tmp_path: Path) -> None:
    """Then the ranking, the failures, the machine, and how to repeat it."""
    text = markdown(load_run(write_run(tmp_path, small_run(), best=example_best())))
    assert text.splitlines()[0].startswith("# feedrate: toy")
    assert text.splitlines()[2] == "**b64 w6 p4 pin pers trains 1,843 samples/s, 4.46x the baseline.**"
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == ["Ranking", "Failures", "Machine and versions", "How to repeat it"]
    assert "```python\nDataLoader(dataset, batch_size=64, num_workers=6, " in text
    assert "```sh\nfeedrate search toy.py:workload --num-workers 0..8\n```" in text
    assert r"4.46x \[4.31-4.62\] the baseline b64 w0 at 413 samples/s" in text
    assert "| b64 w0 (baseline) | 400 |" in text
    assert "| 10 | b64 w8 p2 | node-1 | worker_killed | loader | the worker was killed |" in text
    assert "The search is not finished" not in text


def test_user_text_stays_text(tmp_path: Path) -> None:
    """Pipes, line ends, HTML, links and fences in names and messages cannot change the document."""
    hostile = "a|b\n# <script>x</script> ![i](http://evil.example/i.png) `code` ```"
    workload = {"name": hostile, "unit": "sa|mples"}
    records = [record(0), record(1, status="failed", failure_message=hostile)]
    argv = ["feedrate", "search", "``````\n## x"]
    text = markdown(load_run(write_run(tmp_path, records, workload=workload, argv=argv)))
    prose = re.sub(r"(`{3,}).*?\n\1", "", text, flags=re.DOTALL)
    assert "<script" not in text
    assert "![i]" not in text
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    tables = re.findall(r"(?:^\|.*\|\n)+", prose, re.MULTILINE)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    assert "\n```````sh\nfeedrate search '``````\n## x'\n```````\n" in text


def test_what_was_left_out_is_told(tmp_path: Path) -> None:
    """A report with gaps names them."""
    text = markdown(load_run(write_run(tmp_path, [record(0), record(1) | {"setup_s": float("nan")}])))
    assert "## Left out\n\n- trial 1: nan is no possible value of setup_s and was left out" in text
