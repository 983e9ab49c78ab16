"""How much sooner a search ends on more nodes: 1, 2 and 4 raylets of one machine, each a host of its own by FEEDRATE_HOST_ID.

    python benchmarks/scaling.py --trials 16

The workload only waits, so that nodes which share this machine's processors do not share what is measured: two loader
workers sleep for each sample. All settings are equally fast, so that every search measures the same number of equally long
trials. Prints wall time from the first trial's begin to the last one's end and of the whole command, and the efficiency
(time on one node) / (nodes x time on that many); exit code 1 below 0.9 at four, by the first.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SLEEP_S = 0.1
LEAST_EFFICIENCY = 0.9
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "feed" * 12, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def waiting() -> Any:
    """The workload: sleep for each sample, next to no training."""
    import torch

    from feedrate.trainables import Workload

    class Sleeping(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return 100_000

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            time.sleep(SLEEP_S)
            return torch.zeros(4), index % 2

    return Workload(
        name="waiting",
        dataset=Sleeping,
        model=lambda: torch.nn.Linear(4, 2),
        loss=torch.nn.CrossEntropyLoss(),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    )


def search(num_nodes: int, num_trials: int, folder: Path) -> dict[str, float]:
    """Return the seconds that one search takes on a cluster of this number of nodes."""
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})  # type: ignore[no-untyped-call]
    try:
        for number in range(num_nodes):
            nodes.add_node(num_cpus=2, resources={"trial_slot": 1}, env_vars={"FEEDRATE_HOST_ID": f"node-{number}"}, **small)  # type: ignore[no-untyped-call]
        nodes.wait_for_nodes()  # type: ignore[no-untyped-call]
        out = folder / f"on-{num_nodes}"
        command = [sys.executable, "-m", "feedrate.search.cli.main", "search", f"{Path(__file__).resolve()}:waiting", "--address", nodes.address]
        command += ["--num-workers", "2", "--batch-size", "8", "--persistent-workers", "true,false", "--in-order", "true,false"]
        command += ["--sharing-strategy", "file_descriptor,file_system", "--prefetch-factor", ",".join(map(str, range(1, num_trials // 8 + 1)))]
        command += ["--baseline", "num_workers=2,batch_size=8,prefetch_factor=1", "--out", str(out), "--wait", "0", "--no-confirm"]
        command += ["--max-trials", str(num_trials), "--keep-going", "--time-budget", "1h", "--epoch-samples", "100000", "--max-trial-s", "10"]
        begun = time.monotonic()
        done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
        wall_s = time.monotonic() - begun
        if done.returncode:
            raise SystemExit(f"the search on {num_nodes} nodes failed:\n{done.stdout}{done.stderr}")
    finally:
        nodes.shutdown()  # type: ignore[no-untyped-call]
    records = [json.loads(line) for line in (out / "trials.jsonl").read_text().splitlines()]
    measured = [record for record in records if not record.get("failure_kind")]
    assert len(measured) == num_trials, f"{len(measured)} of {num_trials} trials were measured"
    assert len({record["host_id"] for record in measured}) == num_nodes
    trials_s = max(record["host_ended_unix_s"] for record in measured) - min(record["host_began_unix_s"] for record in measured)
    one_s = sum(record["host_ended_unix_s"] - record["host_began_unix_s"] for record in measured) / num_trials
    return {"trials_s": trials_s, "wall_s": wall_s, "one_s": one_s, "pruned": sum(record["stopped_early"] for record in measured)}


def main() -> int:
    """Searches on 1, 2 and 4 nodes, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16, help="a multiple of 8")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    args = parser.parse_args()
    os.environ.update(TOKEN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the cluster ends with this process
    found: dict[int, dict[str, float]] = {}
    print(f"{'nodes':>6}{'trials':>8}{'one trial':>11}{'first to last':>15}{'efficiency':>12}{'whole command':>15}{'efficiency':>12}{'stopped early':>15}")
    with tempfile.TemporaryDirectory() as folder:
        for number in args.nodes:
            found[number] = now = search(number, args.trials, Path(folder))
            first = found[args.nodes[0]]
            shares = [first[name] * args.nodes[0] / (number * now[name]) for name in ("trials_s", "wall_s")]
            print(
                f"{number:>6}{args.trials:>8}{now['one_s']:>10.1f}s{now['trials_s']:>14.1f}s{shares[0]:>12.2f}{now['wall_s']:>14.1f}s{shares[1]:>12.2f}"
                f"{now['pruned']:>15.0f}",
                flush=True,
            )
    return 0 if shares[0] >= LEAST_EFFICIENCY else 1


if __name__ == "__main__":
    sys.exit(main())
