"""Faults in a real search under Ray: it goes on, says what failed and why, and leaves nothing behind."""

import json
import re
import socket
import sys
import tempfile

import psutil
import pytest
from census import eventually, files
from conftest import records
from fault_workloads import PATH

RAY = [sys.executable, "-c", "from ray.scripts.scripts import main; main()"]


def failures(run):
    """The failed records by number of workers."""
    return {record["num_workers"]: record for record in records(run) if record.get("failure_kind")}


@pytest.mark.slow
def test_a_search_over_settings_that_fail_in_many_ways_finds_the_one_that_does_not(feedrate, tmp_path):
    """Exceptions, crashes, hangs and exits become failures of their settings; the others are measured."""
    before = files()
    space = ["--num-workers", "0..6", "--batch-size", "16", "--prefetch-factor", "2", "--max-trials", "13", "--keep-going", "--no-confirm"]
    command = feedrate("search", f"{PATH}:by_workers", *space, "--max-trial-s", "2", "--out", "run", timeout_s=240)
    assert command.code == 0, command.stderr
    found = failures(tmp_path / "run")
    assert {number: record["failure_kind"] for number, record in found.items()} == {
        1: "user-code",
        3: "worker-killed",
        4: "hang",
        5: "worker-killed",
    }
    assert "the header is broken" in found[1]["failure_message"]
    assert "SIGSEGV" in found[3]["failure_message"]
    assert re.search(r"hangs? in sleep|hang, one of them in sleep", found[4]["failure_message"]), found[4]["failure_message"]
    assert "in ByWorkers.__getitem__" in found[4]["failure_stacks"]
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert best["dataloader"]["num_workers"] in (0, 2, 6)
    assert eventually(lambda: not command.alive()), command.alive()
    assert eventually(lambda: not files() - before), files() - before


@pytest.mark.soak
def test_rays_memory_monitor_does_not_end_the_search(feedrate, start, tmp_path):
    """On somebody else's cluster the monitor kills the supervisor of a trial that takes too much; the search goes on."""
    memory = psutil.virtual_memory()
    if memory.available < 8e9:
        pytest.skip("needs 8 GB of memory")
    threshold = (memory.total - memory.available + 3e9) / memory.total
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="r") as folder:  # Ray's sockets are in it, whose paths are short
        check_monitor(feedrate, start, tmp_path, folder, threshold, port)


def check_monitor(feedrate, start, tmp_path, folder, threshold, port):
    head = start(
        *("start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--include-dashboard=false"),
        *("--num-cpus=2", "--object-store-memory=100000000", f"--temp-dir={folder}"),
        program=RAY,
        RAY_memory_monitor_refresh_ms="100",
        RAY_memory_usage_threshold=f"{threshold:.4f}",
    )
    head.until(lambda: "--block" in head.stdout, within_s=120)
    space = ["--num-workers", "0,2", "--batch-size", "16", "--prefetch-factor", "2", "--max-trials", "3", "--keep-going", "--no-confirm"]
    command = feedrate(
        *("search", f"{PATH}:grows", "--address", f"127.0.0.1:{port}", *space, "--max-trial-s", "10", "--out", "run"),
        timeout_s=240,
    )
    assert command.code == 0, command.stderr
    kept = records(tmp_path / "run")
    assert [record["num_workers"] for record in kept if not record.get("failure_kind")] == [0]
    assert failures(tmp_path / "run")[2]["failure_kind"] == "out-of-memory"
    assert "Ray's memory monitor ended the trial" in failures(tmp_path / "run")[2]["failure_message"]
    assert eventually(lambda: not command.alive()), command.alive()
    head.end()
