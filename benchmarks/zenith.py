"""The ZenithTune side of live.py; runs in an environment of its own, which has aibooster and neither torch nor feedrate.

    python -m venv zenith && zenith/bin/pip install aibooster==0.5.0
    python benchmarks/live.py images --zenith zenith/bin/python

As in its own DataLoader example: ten trials, 4 to 16 workers, 1 to 10 batches ahead, each trial one run of the training command, its
printed rate the objective, the highest reading the answer. The command is live.py's judge, plain_train.py, itself.
"""

import json
import shlex
import sys
import time

NUM_TRIALS = 10


def main(name: str, python: str, script: str, seconds: str, folder: str) -> None:
    """Prints the answer as the last line."""
    from aibooster.intelligence.zenith_tune import CommandOutputTuner

    def kwargs_of(params: dict) -> dict:
        return {"batch_size": 32, **params}

    def command(trial, **context) -> str:
        params = {"num_workers": trial.suggest_int("num_workers", 4, 16), "prefetch_factor": trial.suggest_int("prefetch_factor", 1, 10)}
        return shlex.join([python, "-W", "ignore", script, name, "-", "--seconds", seconds, "--once", json.dumps(kwargs_of(params))])

    def value(log_path: str) -> float:
        with open(log_path) as log:
            return float(log.read().split()[-1])

    begun = time.time()
    tuner = CommandOutputTuner(output_dir=folder, maximize=True)
    sps, params = tuner.optimize(command, value, n_trials=NUM_TRIALS)
    print(json.dumps({"kwargs": kwargs_of(params), "read_sps": sps, "settings": NUM_TRIALS, "wall_s": time.time() - begun}))


if __name__ == "__main__":
    main(*sys.argv[1:])
