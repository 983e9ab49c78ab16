"""How much other processes use a trial's GPUs, from nvidia-smi, which comes with the driver; torch would need another package."""

from __future__ import annotations

import os
import shutil
import subprocess

ANSWER_S = 10.0


def gpu_busy_fraction() -> float | None:
    """Return the share of the last moment in which a kernel ran on the busiest GPU that this process may use (0..1).

    Call it before this process uses the GPU, so that all load is foreign. Returns None without a GPU, or if it reports no load (MIG).
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    program = shutil.which("nvidia-smi")
    if program is None or visible == "":
        return None
    only = [f"--id={visible}"] if visible is not None else []
    command = [program, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", *only]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=True, stdin=subprocess.DEVNULL)
        return max(float(line) for line in done.stdout.splitlines()) / 100
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
