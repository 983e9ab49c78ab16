"""analysis/run_folder.py: a crash at any moment leaves a folder that can be read."""

import json
import os
from pathlib import Path

import pytest
from synthetic import record, write_run

from feedrate.analysis.run_folder import RunError, RunFolder, read_object, write_atomic


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    """In the order of writing, nothing added, nothing lost."""
    folder = RunFolder(tmp_path)
    assert folder.records() == ([], [])
    written = [record(number) for number in range(3)]
    for each in written:
        folder.append(each)
    assert folder.records() == (written, [])


def test_a_torn_last_line_is_skipped_and_named(tmp_path: Path) -> None:
    """The records before it and after it stay whole."""
    folder = RunFolder(tmp_path)
    folder.append(record(0))
    torn = json.dumps(record(1))[:100]
    with folder.trials.open("a") as stream:
        stream.write(torn)
    assert [each["number"] for each in folder.records()[0]] == [0]
    folder.append(record(2))
    records, problems = folder.records()
    assert [each["number"] for each in records] == [0, 2]
    assert problems == ["line 2 of trials.jsonl is torn or damaged and was skipped"]


@pytest.mark.parametrize("line", [b"[1]", b"3", b"\xff\xfe", b"{}", b'{"schema": 1}', b"\x00" * 9, b"[" * 100_000])
def test_a_damaged_line_does_not_sink_the_rest(tmp_path: Path, line: bytes) -> None:
    """Whatever a disk can leave there is named by its line."""
    folder = RunFolder(write_run(tmp_path, [record(0)]))
    folder.trials.write_bytes(line + b"\n\n" + folder.trials.read_bytes())
    records, problems = folder.records()
    assert [each["number"] for each in records] == [0]
    assert problems == ["line 1 of trials.jsonl is torn or damaged and was skipped"]


def test_a_record_of_the_future_is_refused_by_name(tmp_path: Path) -> None:
    """Numbers whose meaning is unknown are not shown."""
    folder = RunFolder(write_run(tmp_path, [record(0) | {"schema": "feedrate/trials/9"}]))
    with pytest.raises(RunError, match=r"line 1 has schema 'feedrate/trials/9'; .*Install the version that wrote it"):
        folder.records()


def test_a_wrong_record_is_not_written(tmp_path: Path) -> None:
    """The table stays as it was."""
    folder = RunFolder(tmp_path)
    for wrong in (record(0) | {"speed": 1}, record(0) | {"boundary_s": float("nan")}):
        with pytest.raises(ValueError, match=r"speed|JSON"):
            folder.append(wrong)
    assert not folder.trials.exists()


def test_a_write_in_parts_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system may take less than it was given; the line still arrives whole."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:100]))
    folder = RunFolder(tmp_path)
    folder.append(record(0))
    folder.append(record(1))
    assert folder.records() == ([record(0), record(1)], [])


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash before the last step leaves the old content and no other file."""
    target = tmp_path / "best.json"
    write_atomic(target, "old ü\n")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
    with pytest.raises(OSError, match="power cut"):
        write_atomic(target, b"new")
    assert target.read_bytes() == "old ü\n".encode()
    assert os.listdir(tmp_path) == ["best.json"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    """Missing, empty, a file, or with a search.json that is no object: one sentence with the way out."""
    file = tmp_path / "file"
    file.write_text("x")
    for path in (tmp_path / "none", tmp_path, file):
        with pytest.raises(RunError, match=r"(not a run folder: it has no search\.json|none does not exist)\. Name a folder"):
            RunFolder(path).read_search()
    for text in ("[]", "{", ""):
        (tmp_path / "search.json").write_text(text)
        with pytest.raises(RunError, match=r"search\.json (cannot be read|does not contain)"):
            RunFolder(tmp_path).read_search()
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "none")
