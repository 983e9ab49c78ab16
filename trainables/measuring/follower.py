"""`Follower`: what a rank other than rank 0 does while rank 0 measures: the same steps on batches of its own, when rank 0 allows them."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import TrialFailed
from feedrate.trainables.isolation.leaving import leave
from feedrate.trainables.loader.build_loader import seed_everything
from feedrate.trainables.loader.process_settings import placed
from feedrate.trainables.machine.accelerator import pick_device
from feedrate.trainables.machine.process import tree_pids
from feedrate.trainables.measurement import Measurement
from feedrate.trainables.measuring.cached_batch import read_apart
from feedrate.trainables.measuring.measure import prepare_training, watched_loader
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.measuring.step_and_loader_alone import loading_step
from feedrate.trainables.ranks.rank_link import RankGone, RankLink
from feedrate.trainables.step import Step, StepContext, to_device
from feedrate.trainables.workload import Workload

SEED_PER_RANK = 1_000_003
"""Added to the seed for each rank, so that ranks whose loaders shuffle by themselves do not read the same samples at the same time."""


class Follower:
    """One rank that follows rank 0.

    Args:
        link: to rank 0.
        rank: this rank's number.
        workload: its loader and its step.
        device: where its model is; None takes the accelerator if there is one.
        pids: its processes that belong to no setting.
    """

    def __init__(self, link: RankLink, rank: int, workload: Workload, device: str | None, pids: frozenset[int]) -> None:
        self.link, self.rank, self.workload = link, rank, workload
        self.phase = "setup"
        self.config: LoaderConfig | None = None
        self._device, self._pids = device, pids

    def serve(self) -> None:
        """Do what rank 0 says. When rank 0 has ended, end this process.

        Raises:
            Exception: the loader or the step failed; rank 0 is not told.
        """
        try:
            self.link.send({"pid": os.getpid()})
            while True:
                message = self.link.receive()
                if message["do"] == "clock":
                    self.link.send({"clock_s": time.perf_counter()})
                    continue
                assert message["do"] == "set up"
                self._set_up(message)
        except RankGone:
            leave()

    def _set_up(self, message: dict[str, Any]) -> None:
        """Measure with one setting, from the preparation of its step to the end of its loader."""
        config, options = LoaderConfig.from_dict(message["config"]), MeasureOptions.from_json(message["options"])
        self.phase, self.config = "setup", config
        seed = options.seed + SEED_PER_RANK * self.rank
        seed_everything(seed)
        device = pick_device(self._device)
        context = StepContext(device=device, batch_size=config.batch_size, amp=options.amp, compile=options.compile)
        step = self.workload.make_step(context)
        batch = None
        if message["has_batch"]:
            cached = read_apart(lambda: self.workload, config, seed=seed, path=Path(message["batch_path"]))
            if cached.failure is not None:
                raise TrialFailed(cached.failure)
            batch = to_device(cached.batch, device)
        self.phase = "warm"
        self._until("load", lambda: step(batch))
        self.phase = "loader"
        if options.loader_only:
            step = loading_step(self.workload, None, step, device)
        with placed(config):
            self._train(config, options, seed, step)
        gc.collect()  # a persistent loader's workers end with the last reference
        self.link.send({"is_clean": self._pids.issuperset(tree_pids())})

    def _train(self, config: LoaderConfig, options: MeasureOptions, seed: int, step: Step) -> None:
        device = pick_device(self._device)
        watch = watched_loader(self.workload, config, seed)
        training = prepare_training(watch, self.workload, options, step, device, Measurement())
        self.link.send({"loaded": True})
        self._until("start", _nothing)
        training.start()
        self.link.send(training.mark().to_list())
        self.phase = "measure"

        def train_next() -> None:
            training.train_next()
            self.link.send(training.mark().to_list())

        while (message := self._until("end", train_next, or_to="epochs"))["do"] == "epochs":
            training.set_epoch_batches(message["num_batches"])

    def _until(self, last: str, act: Callable[[], object], or_to: str | None = None) -> dict[str, Any]:
        """Act whenever rank 0 allows a step, until it says `last` or `or_to`, and return that message."""
        while True:
            message = self.link.receive()
            if message is None:
                act()
                continue
            found: dict[str, Any] = message
            assert found["do"] in (last, or_to), found
            return found


def _nothing() -> None:
    pass
