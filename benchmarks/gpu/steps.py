"""What run.sh measures: each step appends one JSON line to --out as soon as it is known, and prints it for people.

    python benchmarks/gpu/steps.py workload float32 --out results.jsonl
    python benchmarks/gpu/steps.py pin --out results.jsonl
    python benchmarks/gpu/steps.py search --budget 80 --folder DIR --out results.jsonl
    python benchmarks/gpu/steps.py stock --budget 80 --folder DIR --out results.jsonl
    python benchmarks/gpu/steps.py judge --folder DIR --out results.jsonl
    python benchmarks/gpu/steps.py two --out results.jsonl
    python benchmarks/gpu/steps.py memory --out results.jsonl

Rates that a trial is compared with come from a plain PyTorch loop, in a fresh process without Ray or feedrate's measuring.
Exit code 1: a command failed, or what must hold does not (two trials at once, memory that runs out and is not named so).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import workloads
from workloads import AMP, BATCH_SIZES, REHEARSAL

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FEEDRATE = [sys.executable, "-P", "-m", "feedrate.search.cli.main"]
PIN_STEP_S, TRIAL_S, PLAIN_S = (3.0, 4.0, 1.5) if REHEARSAL else (6.0, 6.0, 4.0)
SEARCHED = "resnet50"


def workers() -> int:
    """Those of a person who has read that one per CPU is right, and has 16 at most."""
    return min(len(os.sched_getaffinity(0)), 16)


def record(out: Path, step: str, facts: dict[str, Any]) -> None:
    """Append a line and keep it whatever happens next."""
    with out.open("a") as stream:
        stream.write(json.dumps({"step": step, "unix_s": round(time.time(), 1)} | facts) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    print(f"{step}: {json.dumps(facts)}", flush=True)


def feedrate(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command of ours."""
    done = subprocess.run([*FEEDRATE, *words], check=False, capture_output=True, text=True)
    if check and done.returncode:
        raise SystemExit(f"feedrate {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done


def of(name: str) -> list[str]:
    """The words that name a workload, its batch size and its precision on a command line."""
    amp = ["--amp", AMP[name]] if name in AMP else []
    return [f"{HERE / 'workloads.py'}:{name}", "--batch-size", str(BATCH_SIZES[name]), *amp]


def setting(pin: bool) -> list[str]:
    """Workers as people choose them."""
    return ["--num-workers", str(workers()), "--prefetch-factor", "2", "--persistent-workers", "true", "--pin-memory", str(pin).lower()]


def plain_sps(name: str, kwargs: dict[str, Any]) -> float:
    """Samples per second of a plain loop in a fresh process."""
    command = [sys.executable, "-W", "ignore", str(HERE / "steps.py"), "plain", name, "--kwargs", json.dumps(kwargs)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the plain loop of {name} failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])


def plain(name: str, kwargs: dict[str, Any]) -> float:
    """Train as anybody would, from a second after the first batch on; samples per second over whole rounds of the workers."""
    import torch
    from torch.utils.data import DataLoader

    from feedrate.trainables.step import StepContext

    workload = getattr(workloads, name)()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = workload.make_step(StepContext(device=device, batch_size=kwargs["batch_size"], amp=AMP.get(name)))
    loader: Any = DataLoader(workload.dataset, shuffle=True, collate_fn=workload.collate_fn, **kwargs)
    each_round = max(kwargs.get("num_workers", 0), 1)
    begun = timed_from = None
    samples = batches = 0
    while True:
        for batch in loader:
            step(batch)
            now = time.perf_counter()
            begun = begun or now
            if timed_from is None:
                if now - begun >= 1.0:
                    synchronize(torch)
                    timed_from = time.perf_counter()
                continue
            samples, batches = samples + len(batch[1]), batches + 1
            if now - timed_from >= PLAIN_S and batches % each_round == 0:
                synchronize(torch)
                return samples / (time.perf_counter() - timed_from)


def synchronize(torch: Any) -> None:
    """Wait for the GPU where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def one_workload(name: str, out: Path) -> None:
    """Ceilings and verdict; then one trial between two plain loops at the same setting."""
    words = [*of(name), *setting(pin=True), "--max-trial-s", str(TRIAL_S), "--json"]
    ceilings = json.loads(feedrate("ceilings", *words).stdout)
    kwargs = ceilings["dataloader"]
    record(out, f"ceilings {name}", {key: ceilings[key] for key in ("step_only_sps", "copy_only_sps", "together_sps", "loader_only_sps", "verdict", "verdict_evidence", "dataloader")})
    plains = [plain_sps(name, kwargs)]
    trial = json.loads(feedrate("measure", *words, "--objective", "steady").stdout)
    plains.append(plain_sps(name, kwargs))
    columns = trial["measurement"]
    reference = sum(plains) / len(plains)
    record(out, f"honesty {name}", {
        "plain_sps": plains, "trial_sps": trial["throughput"], "ci95": trial["ci95"], "error_fraction": trial["throughput"] / reference - 1,
        "covered": trial["ci95"][0] <= reference <= trial["ci95"][1], "settled": columns["settled"], "wait_fraction": trial["wait_fraction"],
        "step_event_s": sum(columns["window_step_s"] or []), "windows_s": sum(columns["window_duration_s"]),
        "gpu_peak_bytes": columns["gpu_peak_bytes"], "setup_s": columns["setup_s"], "device_name": columns["device_name"],
    })  # fmt: skip


def pin(out: Path) -> None:
    """pin_memory on and off, twice each, ABBA, on the workload that copies most."""
    rates: dict[str, list[float]] = {"true": [], "false": []}
    for pinned in (True, False, False, True):
        words = [*of("float32"), *setting(pin=pinned), "--max-trial-s", str(PIN_STEP_S), "--objective", "steady", "--json"]
        rates[str(pinned).lower()].append(json.loads(feedrate("measure", *words).stdout)["throughput"])
    record(out, "pin_memory float32", {"pinned_sps": rates["true"], "pageable_sps": rates["false"], "ratio": sum(rates["true"]) / sum(rates["false"])})


def search(budget_s: float, folder: Path, out: Path) -> None:
    """One whole search on a local Ray."""
    begun = time.time()
    more = ["--max-trial-s", "2", "--num-workers", "0..2"] if REHEARSAL else ["--max-trial-s", "8"]
    feedrate("search", *of(SEARCHED), "--time-budget", f"{budget_s:g}s", *more, "--out", str(folder / "run"), "--force")
    best = json.loads((folder / "run" / "best.json").read_text())
    kept = {key: best[key] for key in ("dataloader", "throughput", "verdict", "confirmed", "baseline", "search") if key in best}
    record(out, "search", kept | {"wall_s": time.time() - begun})


def stock(budget_s: float, folder: Path, out: Path) -> None:
    """Ray Tune with OptunaSearch as a user would write it, in the same time; the answer is the highest reading."""
    os.environ.update({"RAY_AIR_NEW_OUTPUT": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_USAGE_STATS_ENABLED": "0"})
    import ray
    import torch
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    begun, gpus = time.time(), min(torch.cuda.device_count(), 1)
    cpus = len(os.sched_getaffinity(0))
    ray.init("local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False, object_store_memory=100 * 1024**2, log_to_driver=False, logging_level="ERROR")
    results = tune.Tuner(
        tune.with_resources(_stock_trial, {"cpu": cpus, "gpu": gpus}),
        param_space={
            "num_workers": tune.choice(list(range(3 if REHEARSAL else 33))),
            "prefetch_factor": tune.choice([1, 2, 4, 8]),
            "persistent_workers": tune.choice([True, False]),
            "pin_memory": tune.choice([True, False]) if gpus else False,
        },
        tune_config=tune.TuneConfig(
            metric="sps", mode="max", search_alg=OptunaSearch(seed=0), num_samples=-1, time_budget_s=budget_s, max_concurrent_trials=1
        ),
        run_config=tune.RunConfig(storage_path=str(folder / "stock"), verbose=0),
    ).fit()
    ray.shutdown()
    read = [result.metrics for result in results if result.metrics and "sps" in result.metrics]
    if not read:
        raise SystemExit("stock Tune finished no trial in its time")
    best = max(read, key=lambda metrics: metrics["sps"])
    record(out, "stock", {"dataloader": json.loads(best["kwargs"]), "read_sps": best["sps"], "settings": len(read), "wall_s": time.time() - begun})


def _stock_trial(config: dict[str, Any]) -> None:
    """A trial as a user of Ray Tune would write it: this file's plain loop in the worker."""
    from ray import tune

    sys.path.insert(0, str(HERE))
    kwargs = {"batch_size": BATCH_SIZES[SEARCHED], "num_workers": config["num_workers"], "pin_memory": config["pin_memory"]}
    if config["num_workers"]:
        kwargs |= {name: config[name] for name in ("prefetch_factor", "persistent_workers")}
    tune.report({"sps": plain(SEARCHED, kwargs), "kwargs": json.dumps(kwargs)})


def judge(out: Path) -> None:
    """torch's default and both answers in plain loops, ABBA."""
    lines = {line["step"]: line for line in map(json.loads, out.read_text().splitlines()) if "step" in line}
    sides = {"default": {"batch_size": BATCH_SIZES[SEARCHED]}}
    sides |= {name: lines[name]["dataloader"] for name in ("search", "stock") if name in lines}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for side in [*sides, *reversed(sides)]:
        rates[side].append(plain_sps(SEARCHED, sides[side]))
    record(out, "judge", {"plain_sps": rates})


def two(out: Path) -> None:
    """Two trials at once: the second waits for the first, so that they never share the GPU; --share host is refused here."""
    words = ("measure", *of("float32"), "--max-trial-s", str(2 * TRIAL_S), "--json")
    both = [subprocess.Popen([*FEEDRATE, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [each.communicate() for each in both]
    times = sorted((facts["host_began_unix_s"], facts["host_ended_unix_s"]) for facts in (json.loads(text)["measurement"] for text, _ in said))
    apart = times[0][1] <= times[1][0]
    shared = feedrate("search", *of("float32"), "--share", "host", "--out", str(out.parent / "shared"), check=False)
    facts = {
        "apart": apart,
        "second_said_it_waits": any("waiting: another feedrate trial is measuring on this host" in text for _, text in said),
        "share_host_exit_code": shared.returncode,
        "share_host_said": shared.stderr.strip().splitlines()[-1],
    }
    record(out, "two trials", facts)
    if not apart or shared.returncode != 2:
        raise SystemExit("two trials shared the GPU, or --share host was not refused")


def memory(out: Path) -> None:
    """A batch for which the device has too little memory is a failure with its kind and the batch size; on a CPU that is not tried."""
    import torch

    if not torch.cuda.is_available():
        record(out, "out of memory", {"skipped": "no GPU"})
        return
    words = [f"{ROOT / 'tests' / 'fault_workloads.py'}:fills_the_accelerator", "--num-workers", "0", "--batch-size", "4096", "--max-trial-s", "2", "--json"]
    done = feedrate("measure", *words, check=False)
    failure = json.loads(done.stdout)["failure"]
    record(out, "out of memory", {"exit_code": done.returncode, "kind": failure["kind"], "message": failure["message"]})
    if failure["kind"] != "cuda-out-of-memory":
        raise SystemExit("memory ran out and was not named so")


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("workload", "plain", "pin", "search", "stock", "judge", "two", "memory"))
    parser.add_argument("name", nargs="?", choices=tuple(BATCH_SIZES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--budget", type=float)
    parser.add_argument("--kwargs", type=json.loads)
    args = parser.parse_args()
    match args.step:
        case "plain":
            print(plain(args.name, args.kwargs))
        case "workload":
            one_workload(args.name, args.out)
        case "search":
            search(args.budget, args.folder, args.out)
        case "stock":
            stock(args.budget, args.folder, args.out)
        case _:
            {"pin": pin, "judge": judge, "two": two, "memory": memory}[args.step](args.out)


if __name__ == "__main__":
    main()
