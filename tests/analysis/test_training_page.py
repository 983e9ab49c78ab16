"""The folder of a training: read whatever is in it, and shown as a page that works offline."""

import json
import re

import pytest
from test_page import HOSTILE, Page, scripts_with_the_library
from training_folder import LINES, decision, folder_of, rate

from feedrate.analysis.run_folder import RunError
from feedrate.analysis.training import by_setting, load_training
from feedrate.analysis.training_figure import training_figure
from feedrate.analysis.training_page import render_training_page, write_training_page


def test_the_tables_have_rate_waiting_workers_and_decisions(tmp_path):
    training = load_training(folder_of(tmp_path / "run"))
    assert training.course["batches_per_s"].tolist() == [5.0, 9.6, 9.5]
    assert training.course["wait_fraction"].tolist() == [0.5, 0.05, 0.05]
    assert training.decisions["kind"].tolist() == ["baseline", "try", "adopt", "settled"]
    settings = by_setting(training)
    assert settings["num_workers"].tolist() == [1, 3] and settings["num_batches"].tolist() == [50, 143]
    assert settings["trained_s"].tolist() == [10.0, 15.0]
    assert training.problems == [] and training.is_over


def test_the_page_has_the_answer_first_and_the_timeline(tmp_path):
    text = render_training_page(load_training(folder_of(tmp_path / "run")))
    page = Page(text)
    assert "3 workers trained 1.90x as fast as your own 1" in page.text["p"]
    assert [each.get("id") for each in page.all("h2")] == ["answer", "timeline", "settings", "decisions", "machine"]
    assert {"b64 w1 p2", "b64 w3 p2", "trying 3 workers", "node-1", "2.13.0"} <= set(page.text["td"])
    assert "1.90x [1.85-1.95], measured while the settings took turns" in page.text["td"]
    assert scripts_with_the_library(page) == 1
    assert not [each for each in page.all("meta") if each.get("http-equiv") == "refresh"]
    (shown,) = [each for each in page.all("div") if each.get("role") == "img"]
    assert "3 workers: 9.53 batches/s, waiting 5.0%" in shown["aria-label"]


def test_the_timeline_has_each_stretch_and_each_decision(tmp_path):
    figure = training_figure(load_training(folder_of(tmp_path / "run")))
    traces = {trace.name: trace for trace in figure.data}
    assert list(traces["batches/s"].x) == [0, 10, 10, 15, 15, 25]
    assert list(traces["batches/s"].y) == [5.0, 5.0, 9.6, 9.6, 9.5, 9.5]
    assert list(traces["waiting, %"].y) == [50, 50, 5, 5, 5, 5]
    assert list(traces["workers"].y) == [1, 1, 3, 3, 3, 3]
    assert list(traces["decisions"].x) == [10, 10, 15, 25] and list(traces["decisions"].y) == [1, 3, 3, 3]


def test_hostile_words_stay_text(tmp_path):
    lines = [*LINES, decision(HOSTILE, 3, 26.0, 200, HOSTILE)]
    training = load_training(folder_of(tmp_path / "run", lines, loader=HOSTILE, measured_on={HOSTILE: HOSTILE}))
    text = render_training_page(training)
    page = Page(text)
    assert page.all("img") == [] and "alert(1)</script>" not in text
    assert HOSTILE in page.text["td"]
    assert not re.search(r"<(?!br>)[a-z/]", "".join(training_figure(training).data[-1].text))


def test_a_folder_of_a_notebook_has_no_report_and_is_shown_all_the_same(tmp_path):
    """`live(loader, folder=...)` writes live.jsonl only."""
    training = load_training(folder_of(tmp_path / "run", best=False, has_report=False))
    page = Page(render_training_page(training))
    assert training.is_over
    assert "3 workers, 608 samples/s" in page.text["p"]
    assert "193 batches in 25 s" in page.text["td"]


def test_only_the_latest_training_of_a_folder_is_shown(tmp_path):
    training = load_training(folder_of(tmp_path / "run", [*LINES, *LINES[:3]]))
    assert len(training.course) == 1 and len(training.decisions) == 2
    assert training.problems == ["1 earlier training(s) in live.jsonl: only the latest one is shown"]


def test_a_training_that_goes_on_reloads_its_page(tmp_path):
    page = Page(render_training_page(load_training(folder_of(tmp_path / "run", LINES[:1], best=False, is_over=False))))
    assert [each["content"] for each in page.all("meta") if each.get("http-equiv") == "refresh"] == ["10"]


@pytest.mark.parametrize(
    "line",
    ["{", "[]", '{"kind":"rate"}', json.dumps(rate(1, 1.0, 1, -1.0, 0.0, 1)), json.dumps(rate(True, 1.0, 1, 1.0, 0.0, 1)), json.dumps(decision("try", 3, 1e400, 1))],
)
def test_a_line_that_makes_no_sense_is_skipped_and_named(tmp_path, line):
    folder = folder_of(tmp_path / "run")
    with (folder / "live.jsonl").open("a") as file:
        file.write(line + "\n")
    training = load_training(folder)
    assert training.problems == ["line 8 of live.jsonl is torn or damaged and was skipped"]
    assert "Left out" in Page(render_training_page(training)).text["h2"]


def test_an_empty_training_and_wrong_facts_give_a_page(tmp_path):
    folder = folder_of(tmp_path / "run", [], best=False, summary={"speedup": "fast", "best": 3, "speedup_ci95": "x"}, measured_on=[], dataloader=7, loader=None)
    page = Page(render_training_page(load_training(folder)))
    assert "Nothing was decided" in page.text["p"] and scripts_with_the_library(page) == 0


def test_other_folders_and_versions_are_refused(tmp_path):
    with pytest.raises(RunError, match=r"neither train\.json nor live\.jsonl"):
        load_training(tmp_path)
    with pytest.raises(RunError, match="Install the version that wrote it"):
        load_training(folder_of(tmp_path / "run", schema="feedrate/train/9"))
    with pytest.raises(RunError, match="cannot be written"):
        write_training_page(load_training(folder_of(tmp_path / "other")), tmp_path / "none" / "report.html")
