"""What reading a run costs as it grows, beside plain pandas on the same file.

    python benchmarks/analysis_scale.py

For 100, 1,000 and 10,000 trials (made up, 13 windows each), each figure in a fresh process, the median of three: seconds and
the process's peak memory for `pandas.read_json(lines=True)`, `load_run`, and `load_run` with the report page. With
Chromium and its driver installed, also the seconds until a browser has drawn the page.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NUM_TRIALS = (100, 1_000, 10_000)
WORK = {
    "import only": "import pandas",
    "pandas.read_json": "import pandas; pandas.read_json(f'{run}/trials.jsonl', lines=True)",
    "load_run": "from feedrate.analysis import load_run; load_run(run)",
    "load_run, page": "from feedrate.analysis import load_run; from feedrate.analysis.page import write_page; write_page(load_run(run), f'{run}/report.html')",
}
TIMED = """
import resource, sys, time
run = sys.argv[1]
begun = time.perf_counter()
{work}
print(time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
"""


def made_up_run(folder: Path, num_trials: int) -> None:
    """Make a run folder with this number of records."""
    from feedrate.analysis.run_folder import RunFolder
    from feedrate.analysis.schema import SCHEMA, check_record

    rng, run = random.Random(0), RunFolder(folder)
    run.write_search({"schema": "feedrate/search/1", "study": "s", "workload": {"name": "scale"}, "finished": True})
    with run.trials.open("w") as stream:
        for number in range(num_trials):
            workers, size = number % 33, (32, 64, 128)[number % 3]
            rate = 500.0 * (1 + workers) ** 0.5
            record: dict[str, Any] = {
                "schema": SCHEMA, "study": "s", "number": number, "attempt": 1, "kind": "search", "origin": "sampler",
                "num_workers": workers, "batch_size": size, "pin_memory": number % 2 == 0, "in_order": True,
                "prefetch_factor": (1, 2, 4, 8)[number % 4] if workers else None, "persistent_workers": workers > 0,
                "stopped_early": number % 3 == 0, "settled": True, "boundary_s": 0.1, "epoch_samples": 50_000, "setup_s": 1.0,
                "window_duration_s": [rng.gauss(10 * size / rate, 0.3 * size / rate) for _ in range(13)],
                "window_num_batches": [10] * 13, "window_num_items": [10 * size] * 13, "window_produced_batches": [10] * 13,
                "window_wait_s": [0.1] * 13, "tree_pss_bytes": 300_000_000 + 100_000_000 * workers, "num_cpus": 8,
                "started_unix_s": 1.7e9 + 10 * number, "finished_unix_s": 1.7e9 + 10 * number + 8, "host_id": "h", "hostname": "h",
            }  # fmt: skip
            if number < 3:
                record |= {"step_only_num_items": [6400] * 3, "step_only_duration_s": [1.0] * 3}
            check_record(record)
            stream.write(json.dumps(record) + "\n")


def measured(name: str, run: Path) -> tuple[float, float]:
    """Seconds and peak MB, the medians of three fresh processes."""
    command = [sys.executable, "-W", "ignore", "-c", TIMED.format(work=WORK[name]), str(run)]
    outputs = [subprocess.run(command, check=True, capture_output=True, text=True).stdout.split() for _ in range(3)]
    seconds, megabytes = zip(*((float(one), float(two)) for one, two in outputs), strict=True)
    return statistics.median(seconds), statistics.median(megabytes)


def opened_s(page: Path) -> float | None:
    """Seconds from asking a browser for a page until its plots are drawn, the median of three; None without a browser."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        return None
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or ""
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver") or ""))
    try:
        taken = []
        for _ in range(3):
            begun = time.perf_counter()
            driver.get(page.as_uri())  # returns once the page has loaded, its scripts run
            driver.execute_async_script("const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))")
            taken.append(time.perf_counter() - begun)
        return statistics.median(taken)
    finally:
        driver.quit()


def main() -> None:
    """Print the table."""
    print(f"{'trials':>8}  {'file':>8}  {'what':18}{'seconds':>9}{'peak MB':>9}")
    for num_trials in NUM_TRIALS:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder)
            made_up_run(run, num_trials)
            size = f"{(run / 'trials.jsonl').stat().st_size / 1e6:.1f} MB"
            for name in WORK:
                seconds, megabytes = measured(name, run)
                print(f"{num_trials:>8,}  {size:>8}  {name:18}{seconds:>9.2f}{megabytes:>9.0f}", flush=True)
            seconds_open = opened_s(run / "report.html")
            page = f"{(run / 'report.html').stat().st_size / 1e6:.1f} MB"
            print(f"{num_trials:>8,}  {page:>8}  {'opened in Chromium':18}" + ("        -" if seconds_open is None else f"{seconds_open:>9.2f}"), flush=True)


if __name__ == "__main__":
    main()
