"""best.json while a search goes on."""

import json
from pathlib import Path

from feedrate.analysis.best import load_best
from feedrate.analysis.load import load_run
from feedrate.analysis.run_folder import RunFolder
from feedrate.search.interim_answer import PERIOD_S, InterimAnswer
from feedrate.search.result import conclude

EXAMPLE = Path(__file__).parents[2] / "docs" / "example-run"


def going_on(tmp_path):
    """A run folder as it is in the middle of a search."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / "trials.jsonl").write_text("".join(line + "\n" for line in (EXAMPLE / "trials.jsonl").read_text().splitlines()[:5]))
    content = json.loads((EXAMPLE / "search.json").read_text())
    folder.search.write_text(json.dumps(content | {"finished": False, "stop_reason": None}))
    return folder


def test_the_best_setting_so_far_is_there_now_and_then_and_is_not_the_answer(tmp_path):
    folder, now_s, notes = going_on(tmp_path), 0.0, []
    answer = InterimAnswer(folder, notes.append, clock=lambda: now_s)
    answer.update()
    best = load_best(folder.path)
    assert best.raw["search"]["is_final"] is False and best.raw["confirmed"] is False and best["num_workers"] >= 0
    run = load_run(folder.path)
    assert run.best is None and run.unfinished
    folder.best.unlink()
    answer.update()
    assert not folder.best.exists()
    answer.update(at_last=True)
    assert folder.best.exists()
    folder.best.unlink()
    now_s += PERIOD_S
    answer.update()
    assert folder.best.exists() and notes == []


def test_the_answer_replaces_it(tmp_path):
    folder = going_on(tmp_path)
    InterimAnswer(folder, print).update()
    conclude(folder, "the time was over")
    assert load_run(folder.path).best["search"]["is_final"] is True


def test_nothing_is_written_before_a_setting_works(tmp_path):
    folder = going_on(tmp_path)
    folder.trials.write_text("")
    notes = []
    InterimAnswer(folder, notes.append).update()
    assert not folder.best.exists() and notes == []


def test_a_search_does_not_end_because_it_cannot_be_written(tmp_path):
    folder, notes = going_on(tmp_path), []
    folder.best.mkdir()
    InterimAnswer(folder, notes.append).update()
    assert len(notes) == 1 and notes[0].startswith("best.json is not written before the end of the search (")
