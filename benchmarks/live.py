"""feedrate beside stock Ray Tune + OptunaSearch on this machine, the same time for both; a plain script judges the winners.

    python benchmarks/live.py images objects table --time-budget 300 --rounds 2
    python benchmarks/live.py images --zenith zenith/bin/python         with ZenithTune beside them, see zenith.py
    python benchmarks/live.py images --loadtune loadtune_0.3            with loadtune beside them, see loadtune_workload.py

For each bundled workload: `feedrate search WORKLOAD --time-budget T`, then a Tune run of the same length as a user
would write it (a function trainable that builds model and loader, warms up half a second and times 3 s; OptunaSearch
with its defaults; the answer is the highest reading). Then torch's default at each winner's batch size, and both
winners, are trained by plain_train.py's plain PyTorch loop in interleaved rounds, fresh processes. Prints what each side
claims, what the plain loops say, and how long each side took (feedrate may end before its budget). With `--runs` the
whole is done so many times, each with another seed, and each side's answers are summed up at the end: the plain loop's
rate as a share of the fastest answer of the same run, since the machine's speed changes between runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WORKERS, BATCH_SIZES, PREFETCH = tuple(range(33)), (32, 64, 128), (1, 2, 4, 8)


def ours(name: str, seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    """What `feedrate search` answers."""
    begun = time.time()
    command = [sys.executable, "-m", "feedrate.search.cli.main", "search", name]
    command += ["--time-budget", f"{seconds:g}s", "--seed", str(seed), "--out", str(folder / "run")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"feedrate search {name} failed:\n{done.stdout}{done.stderr}")
    best = json.loads((folder / "run" / "best.json").read_text())
    return {
        "kwargs": best["dataloader"],
        "claimed": best["baseline"]["speedup"],
        "settings": best["search"]["num_trials"],
        "wall_s": time.time() - begun,
    }


def _stock_trial(config: dict[str, Any]) -> None:
    """A trial as a user of Ray Tune would write it."""
    import torch
    from ray import tune
    from torch.utils.data import DataLoader

    from feedrate.trainables.step import StepContext

    workload = _workload(config["workload"])
    step = workload.make_step(StepContext(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"), batch_size=None))
    number = config["num_workers"]
    kwargs = {"batch_size": config["batch_size"], "num_workers": number}
    if number:
        kwargs |= {"prefetch_factor": config["prefetch_factor"], "persistent_workers": config["persistent_workers"]}
    loader = DataLoader(workload.dataset, shuffle=True, collate_fn=workload.collate_fn, **kwargs)
    batches, begun, timed_from, samples = iter(loader), time.time(), None, 0
    while timed_from is None or time.time() - timed_from < 3.0:
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            continue
        step(batch)
        if timed_from is None:
            timed_from = time.time() if time.time() - begun > 0.5 else None
        else:
            samples += len(batch[1])
    tune.report({"sps": samples / (time.time() - timed_from), "kwargs": json.dumps(kwargs)})


def _workload(name: str) -> Any:
    import importlib

    return getattr(importlib.import_module(f"feedrate.trainables.bundled.{name}"), name)()


def stock(name: str, seconds: float, seed: int, folder: Path) -> dict[str, Any]:
    """What Tune with OptunaSearch reads highest; run in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, name, "--stock", str(seconds), "--seed", str(seed), "--folder", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"Tune on {name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def zenith(name: str, python: str, seconds: float, folder: Path) -> dict[str, Any]:
    """What ZenithTune reads highest; `python` is of the environment that has it."""
    here = Path(__file__).parent
    command = [python, str(here / "zenith.py"), name, sys.executable, str(here / "plain_train.py"), str(seconds), str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ZenithTune on {name} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def loadtune(name: str, packages: str, folder: Path) -> dict[str, Any]:
    """What loadtune, with its defaults, reads highest; `packages` is the folder that it was installed to."""
    folder.mkdir()
    raw, begun = folder / "raw.json", time.time()
    script = str(Path(__file__).with_name("loadtune_workload.py").resolve())
    command = [sys.executable, "-W", "ignore", "-m", "loadtune.cli", "tune", script, "--no-plots", "--save-raw", str(raw)]
    environment = os.environ | {"PYTHONPATH": str(Path(packages).resolve()), "FEEDRATE_WORKLOAD": name}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, env=environment)
    if done.returncode:
        raise SystemExit(f"loadtune on {name} failed:\n{done.stdout}{done.stderr[-3000:]}")
    wall_s, found = time.time() - begun, json.loads(raw.read_text())
    results = [found["baseline"], *(each["result"] for each in found["trials"] if each["result"] and not each["result"]["error"])]
    best = max(results, key=lambda result: result["throughput"])
    return {
        "kwargs": _kwargs(best["knobs"], best["batch_size"]),
        "threads": best["knobs"]["num_threads"],
        "claimed": best["throughput"] / found["baseline"]["throughput"],
        "settings": len(results),
        "wall_s": wall_s,
    }


def _kwargs(knobs: dict[str, Any], batch_size: int) -> dict[str, Any]:
    names = ("num_workers", "pin_memory", *(("prefetch_factor", "persistent_workers") if knobs["num_workers"] else ()))
    return {"batch_size": batch_size, **{name: knobs[name] for name in names if knobs[name] is not None}}


def _tune(name: str, seconds: float, seed: int, folder: str) -> dict[str, Any]:
    os.environ.update({"RAY_AIR_NEW_OUTPUT": "0", "RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_USAGE_STATS_ENABLED": "0"})
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    begun = time.time()
    cpus = len(os.sched_getaffinity(0))
    ray.init("local", num_cpus=cpus, include_dashboard=False, object_store_memory=100 * 1024**2, log_to_driver=False, logging_level="ERROR")
    tuner = tune.Tuner(
        tune.with_resources(_stock_trial, {"cpu": cpus}),
        param_space={
            "workload": name,
            "num_workers": tune.choice(list(WORKERS)),
            "batch_size": tune.choice(list(BATCH_SIZES)),
            "prefetch_factor": tune.choice(list(PREFETCH)),
            "persistent_workers": tune.choice([True, False]),
        },
        tune_config=tune.TuneConfig(
            metric="sps", mode="max", search_alg=OptunaSearch(seed=seed), num_samples=-1, time_budget_s=seconds, max_concurrent_trials=1
        ),
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    )
    results = tuner.fit()
    ray.shutdown()
    read = [result.metrics for result in results if result.metrics and "sps" in result.metrics]
    best = max(read, key=lambda metrics: metrics["sps"])
    return {"kwargs": json.loads(best["kwargs"]), "read_sps": best["sps"], "settings": len(read), "wall_s": time.time() - begun}


def plain(name: str, kwargs: dict[str, Any], seconds: float, threads: int | None = None) -> float:
    """Samples per second of a plain loop in a fresh process; `threads` of torch, None for its default."""
    script = Path(__file__).with_name("plain_train.py")
    command = [sys.executable, "-W", "ignore", str(script), name, "-", "--seconds", str(seconds), "--once", json.dumps(kwargs)]
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.split()[-1])


def answers(name: str, seed: int, args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What each side answers for a workload, by side."""
    with tempfile.TemporaryDirectory() as folder:
        found = {"feedrate": ours(name, args.time_budget, seed, Path(folder)), "Tune": stock(name, args.time_budget, seed, Path(folder) / "tune")}
        if args.zenith:
            found["ZenithTune"] = zenith(name, args.zenith, args.seconds, Path(folder) / "zenith")
        if args.loadtune:
            found["loadtune"] = loadtune(name, args.loadtune, Path(folder) / "loadtune")
    return found


def judge(name: str, found: dict[str, dict[str, Any]], args: argparse.Namespace) -> dict[str, float]:
    """Samples per second of each side's answer in plain loops; prints a line for each."""
    sides = {side: each["kwargs"] for side, each in found.items()}
    for size in {each["kwargs"]["batch_size"] for each in found.values()}:
        sides[f"default b{size}"] = {"batch_size": size}
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side in [*sides, *reversed(sides)]:
            threads = found[side].get("threads") if side in found else None
            rates[side].append(plain(name, sides[side], args.seconds, threads))
    medians = {side: statistics.median(values) for side, values in rates.items()}
    for side, each in found.items():
        default = medians[f"default b{each['kwargs']['batch_size']}"]
        claimed = each["claimed"] if "claimed" in each else each["read_sps"] / default
        print(
            f"{name:10}{side:11}{each['settings']:>9}{each['wall_s']:>7.0f}s{medians[side]:>12,.1f}{medians[side] / default:>10.2f}x"
            f"{claimed:>8.2f}x  {each['kwargs']}" + (f" threads={each['threads']}" if each.get("threads") else ""),
            flush=True,
        )
    return {side: medians[side] for side in found}


def main() -> None:
    """Search with each side, then judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="+", choices=("images", "objects", "table"))
    parser.add_argument("--time-budget", type=float, default=300.0, metavar="S")
    parser.add_argument("--rounds", type=int, default=2, help="ABBA rounds, two measurements of each side a round")
    parser.add_argument("--seconds", type=float, default=8.0, help="timed part of one plain loop")
    parser.add_argument("--zenith", metavar="PYTHON", help="of an environment with aibooster")
    parser.add_argument("--loadtune", metavar="FOLDER", help="that loadtune was installed to")
    parser.add_argument("--runs", type=int, default=1, help="of everything, each with another seed")
    parser.add_argument("--seed", type=int, default=0, help="of the first run")
    parser.add_argument("--stock", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stock:
        print(json.dumps(_tune(args.workloads[0], args.stock, args.seed, args.folder)))
        return
    print(f"{'workload':10}{'side':11}{'settings':>9}{'wall':>8}{'plain loop':>12}{'true gain':>11}{'claimed':>9}  setting")
    shares: dict[tuple[str, str], list[float]] = {}
    for seed in range(args.seed, args.seed + args.runs):
        for name in args.workloads:
            judged = judge(name, answers(name, seed, args), args)
            fastest = max(judged.values())
            for side, sps in judged.items():
                shares.setdefault((name, side), []).append(sps / fastest)
    if args.runs > 1:
        print("\nThe plain loop's rate of each answer, as a share of the fastest answer of its run:")
        for (name, side), each in shares.items():
            print(f"{name:10}{side:11} median {statistics.median(each):4.0%}  each {', '.join(f'{share:.0%}' for share in each)}")


if __name__ == "__main__":
    main()
