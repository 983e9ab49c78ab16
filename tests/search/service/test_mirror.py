"""mirror.py: --out s3://... on a real S3-speaking server (moto's) with the study in a real PostgreSQL."""

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from conftest import QUICK, records
from ray_head import free_port
from synthetic import search_json

from feedrate.analysis.load import load_run
from feedrate.analysis.run_folder import RunError, RunFolder
from feedrate.search.options import SearchOptions, UsageError
from feedrate.search.service.mirror import Mirror, bring, check_url, write_url

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def s3():
    """The environment that leads to an S3 server with the bucket `runs`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{url}/runs", method="PUT"), timeout=2).close()
                break
            except OSError:
                time.sleep(0.1)
        yield {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "key", "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    finally:
        server.terminate()
        server.wait()


@pytest.mark.slow
def test_a_search_is_copied_and_carried_on_elsewhere(s3, postgresql, start, feedrate, tmp_path, monkeypatch):
    """The driver and its disk are lost; another machine resumes from the copy and the database, with nothing lost or twice."""
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    url, storage = "s3://runs/mine", postgresql.database()
    first = start("search", "toy.py:workload", *QUICK, "--out", url, "--storage", storage, **s3)
    local = tmp_path / "feedrate-runs" / "mine"
    first.until(lambda: len(records(local)) >= 3, within_s=150)
    first.until(lambda: copied(url) >= 3, within_s=150)
    first.process.send_signal(signal.SIGKILL)
    first.wait()
    first.end()
    known = copied(url)
    shutil.rmtree(tmp_path / "feedrate-runs")
    refused = feedrate("search", "toy.py:workload", "--out", url, "--storage", storage, **s3)
    assert refused.code == 2
    assert f"--out {url} already has a run: continue it with feedrate resume {url}" in refused.stderr
    second = feedrate("resume", url, "--max-trials", str(known + 3), "--storage", storage, timeout_s=240, **s3)
    assert second.code == 0, second.stderr
    run = load_run(url)
    numbers = [record["number"] for record in records(local)]
    assert sorted(numbers) == sorted(set(numbers))
    assert len([record for record in records(local) if not record.get("failure_kind")]) >= known + 3
    assert len(run.trials) == len(numbers)
    assert run.search["finished"] is True
    assert run.best is not None


def copied(url):
    try:
        return len(load_run(url).trials)
    except RunError:
        return 0


@pytest.mark.parametrize(
    ("url", "storage", "reason"),
    [
        ("s3://runs/x", None, "add --storage postgresql://"),
        ("s3://runs/x", "sqlite:///x.db", "add --storage postgresql://"),
        ("s3://me:secret@runs/x", "postgresql://ann@db/x", "--out contains a password"),
        ("nonsense://runs/x", "postgresql://ann@db/x", "--out nonsense://runs/x"),
        ("file:///proc/x", "postgresql://ann@db/x", "--out file:///proc/x"),
    ],
)
def test_addresses_that_cannot_work_are_refused(url, storage, reason):
    with pytest.raises(UsageError, match=reason) as refused:
        check_url(url, SearchOptions(storage=storage), False)
    assert "secret" not in str(refused.value)


def test_only_what_changed_is_copied_and_a_failure_is_told_once(tmp_path):
    """The copy is tried again the next time, and the message says that the local folder is complete."""
    folder, there = tmp_path / "run", tmp_path / "there"
    folder.mkdir()
    said = []
    (folder / "search.json").write_text("{}")
    mirror = Mirror(folder, there.as_uri(), said.append)
    mirror.push()
    (there / "search.json").write_text("touched")
    mirror.push()
    assert (there / "search.json").read_text() == "touched"
    (folder / "trials.jsonl").write_text("1\n")
    there.rename(tmp_path / "gone")
    there.touch()
    mirror.push()
    mirror.push()
    assert len(said) == 1
    assert said[0].startswith("the run could not be copied to ")
    there.unlink()
    with mirror:
        pass
    assert (there / "trials.jsonl").read_text() == "1\n"
    assert len(said) == 1


def test_a_copy_becomes_a_folder_once(tmp_path, monkeypatch):
    """A folder that is here already is used as it is; one of another run is not."""
    monkeypatch.chdir(tmp_path)
    url = (tmp_path / "there" / "mine").as_uri()
    with pytest.raises(RunError, match="is not a run folder"):
        bring(url)
    write_url(f"{url}/search.json", json.dumps(search_json(mirror=url)).encode())
    write_url(f"{url}/trials.jsonl", b"1\n")
    folder = bring(url)
    assert (folder / "trials.jsonl").read_text() == "1\n"
    (folder / "trials.jsonl").write_text("1\n2\n")
    assert bring(url) == folder
    assert (folder / "trials.jsonl").read_text() == "1\n2\n"
    RunFolder(folder).write_search(search_json(mirror="s3://other"))
    with pytest.raises(RunError, match="contains another run, not that of"):
        bring(url)
    assert bring("here") == Path("here")
