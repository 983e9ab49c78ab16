"""The folder of a training, as `feedrate train` or `live(loader)` would write it, with figures that are easy to check."""

import json

from synthetic import example_best

from feedrate.analysis.best import write_best

OWN = {"batch_size": 64, "num_workers": 1, "prefetch_factor": 2, "pin_memory": False, "persistent_workers": False}
SUMMARY = {
    "num_batches": 900, "items_per_batch": 64, "wait_s": 30.0, "step_s": 70.0, "aside_s": 0.0, "wait_fraction": 0.3,
    "own": {"num_workers": 1, "batches_per_s": 5.0, "ci95": [4.9, 5.1], "wait_fraction": 0.5},
    "best": {"num_workers": 3, "batches_per_s": 9.5, "ci95": [9.4, 9.6], "wait_fraction": 0.05},
    "speedup": 1.9, "speedup_ci95": [1.85, 1.95], "confirmed": True, "lost_s": 4.5, "left_alone": None,
}  # fmt: skip


def rate(num_workers, time_s, num_batches, wait_s, step_s, step):
    return {"kind": "rate", "num_workers": num_workers, "time_s": time_s, "step": step, "num_batches": num_batches, "wait_s": wait_s, "step_s": step_s, "aside_s": 0.0}


def decision(kind, num_workers, time_s, step, reason="because"):
    return {"kind": kind, "num_workers": num_workers, "reason": reason, "step": step, "time_s": time_s, "numbers": {}}


LINES = [
    rate(1, 10.0, 50, 5.0, 5.0, 50),
    decision("baseline", 1, 10.0, 50, "1 worker: 320 samples/s"),
    decision("try", 3, 10.0, 50, "trying 3 workers"),
    rate(3, 15.0, 48, 0.25, 4.75, 98),
    decision("adopt", 3, 15.0, 98, "3 workers: 1.90x"),
    rate(3, 25.0, 95, 0.5, 9.5, 193),
    decision("settled", 3, 25.0, 193, "3 workers, 608 samples/s"),
]


def folder_of(path, lines=LINES, *, best=True, has_report=True, **report):
    """Write a folder; `report` replaces fields of train.json."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "live.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if has_report:
        content = {
            "schema": "feedrate/train/1", "loader": "DataLoader(Photos)", "dataloader": OWN, "best": OWN | {"num_workers": 3}, "summary": SUMMARY,
            "num_decisions": 4, "measured_on": {"hostname": "node-1", "num_cpus": 8, "versions": {"torch": "2.13.0"}}, "is_over": True,
        }  # fmt: skip
        (path / "train.json").write_text(json.dumps(content | report))
    if best:
        write_best(path / "best.json", example_best())
    return path
