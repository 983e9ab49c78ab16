"""`TrainedScript`: finds the loader that a training command trains on, and lets it be tuned while the training goes on."""

from __future__ import annotations

import atexit
import os
import platform
import sys
import time
import weakref
from pathlib import Path
from typing import Any, Protocol

import torch

from feedrate.analysis.run_folder import RunFolder, write_atomic
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.deciding.budget import Budget
from feedrate.trainables.deciding.policy import Policy
from feedrate.trainables.diagnose.origin import Origin
from feedrate.trainables.loader.baseline import read_baseline
from feedrate.trainables.machine.accelerator import device_name
from feedrate.trainables.machine.host import cpu_budget, cpu_model
from feedrate.trainables.ranks.rank import Rank
from feedrate.trainables.tuning.decision_log import DecisionLog
from feedrate.trainables.tuning.live import Live, log_of, policy_of
from feedrate.trainables.tuning.suitable import why_left_alone
from feedrate.trainables.tuning.training_report import OBSERVES, TrainingReport
from feedrate.trainables.tuning.tuned_loader import TunedLoader

CLAIM = "claim"
"""File in the run folder with the process whose loader is tuned: the first one that trains."""
SAVE_PERIOD_S = 30.0


class Watching(Protocol):
    """What counts the optimizer's steps, and knows who made which loader."""

    num_steps: int
    origins: weakref.WeakKeyDictionary[Any, Origin]


class TrainedScript:
    """The part of `feedrate train` in the script's process: it tunes the training loader, or observes it, and writes the report at exit.

    Args:
        watching: counts the optimizer's steps, and knows who made which loader.
        options: folder, observe, and the fields of the budget.
    """

    def __init__(self, watching: Watching, options: dict[str, Any]) -> None:
        self.watching = watching
        self.folder, self.observes = Path(options["folder"]), bool(options["observe"])
        self.budget = Budget(**options["budget"])
        self.policy: Policy | None = None
        """Decides which setting the training loader has, also if the script makes a new loader for every epoch."""
        self.trained: TunedLoader | None = None
        self._shape: tuple[Any, ...] = ()
        self._may_train = True
        self._loaders: weakref.WeakKeyDictionary[Any, Live] = weakref.WeakKeyDictionary()
        self._facts: dict[str, Any] = {}
        self._own: LoaderConfig | None = None
        self._name = ""
        self._origin: dict[str, Any] | None = None
        self._saved_s = 0.0
        atexit.register(self._at_exit, os.getpid())

    def opened(self, loader: Any) -> Live | None:
        """Return what iterates a loader for the script; None for torch's own iterator."""
        if not self._may_train:
            return None
        if loader not in self._loaders:
            why = OBSERVES if self.observes else why_left_alone(loader, reached_torch=True)
            policy = policy_of(loader, budget=self.budget, leave=why, folder=self.folder)
            self._loaders[loader] = Live(_ScriptLoader(self, loader, policy, log_of(policy, self.folder)))
        return self._loaders[loader]

    def trains_on(self, tuned: TunedLoader) -> bool:
        """Return whether a loader between whose batches an optimizer has stepped is the one to tune, the first time that this is asked."""
        loader = tuned.loader
        shape = (type(loader.dataset), loader.num_workers, loader.batch_size)
        if self.policy is None:
            if not tuned.policy.follows and not self._claims():
                self._may_train = False
                return False
            self.policy, self._shape = tuned.policy, shape
            made = self.watching.origins.get(loader)
            self._origin = None if made is None else {"where": made.where, "function": made.function, "framework": made.framework}
            self._own, self._name = read_baseline(loader), f"{type(loader).__name__}({type(loader.dataset).__name__})"
        elif self._shape != shape or (self.trained is not None and self.trained.loader is not None):
            return False
        tuned.policy, self.trained = self.policy, tuned
        return True

    def save(self, *, is_over: bool = False) -> None:
        """Write train.json, in rank 0 if there are several. A full disk must not end a training."""
        if self.policy is None or self.policy.follows or self.trained is None or self._own is None:
            return
        self._saved_s = time.monotonic()
        own, best = self._own, self.policy.best
        fields = own.to_dict() | {"num_workers": best}
        if not own.num_workers:
            fields |= {"prefetch_factor": None, "persistent_workers": False}
        report = TrainingReport(
            loader=self._name,
            origin=self._origin,
            dataloader=own.to_kwargs(),
            best=LoaderConfig.from_dict(fields).to_kwargs(),
            summary=self.trained.summary(),
            num_decisions=len(self.policy.decisions),
            measured_on=self._machine(),
            is_over=is_over,
            command=tuple(sys.orig_argv),
        )
        try:
            write_atomic(RunFolder(self.folder).training, report.to_json())
        except OSError:
            return

    def save_now_and_then(self) -> None:
        """Write train.json if the latest one is old."""
        if time.monotonic() - self._saved_s > SAVE_PERIOD_S:
            self.save()

    def end(self) -> None:
        """Write train.json for the last time, and end the workers."""
        atexit.unregister(self._at_exit)
        if self.trained is not None:
            self.trained.end_course()
        self.save(is_over=True)
        if self.trained is not None:
            self.trained.close_pools()

    def _claims(self) -> bool:
        """Return whether this is the first process of the command that trains; of several ranks, only rank 0 can be."""
        if (rank := Rank.here()) is not None and rank.number:
            return False
        try:
            os.close(os.open(self.folder / CLAIM, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except OSError:
            return False
        return True

    def _machine(self) -> dict[str, Any]:
        if not self._facts:
            is_initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
            device = torch.device("cuda:0" if is_initialized else "cpu")  # asking for more would initialise CUDA
            self._facts = {
                "hostname": platform.node(),
                "device": str(device),
                "device_name": device_name(device),
                "num_cpus": cpu_budget()[0],
                "cpu_model": cpu_model(),
                "start_method": None,
                "versions": {"python": platform.python_version(), "torch": str(torch.__version__), "platform": platform.platform()},
            }
        return self._facts

    def _at_exit(self, pid: int) -> None:
        if os.getpid() == pid:
            self.end()


class _ScriptLoader(TunedLoader):
    """A loader of the script, which is observed from the moment that an optimizer has stepped between two of its batches."""

    def __init__(self, script: TrainedScript, loader: Any, policy: Policy, log: DecisionLog) -> None:
        super().__init__(loader, policy, log)
        self._script = script
        self._trains: bool | None = None
        """None as long as no optimizer has stepped."""
        self._steps_before = 0
        self._num_decisions = 0

    def is_training(self) -> bool:
        if self._trains is None and self._script.watching.num_steps > self._steps_before:
            self._trains = self._script.trains_on(self)
        return self._trains is True

    def handed(self) -> None:
        self._steps_before = self._script.watching.num_steps
        if self._trains:
            if len(self.policy.decisions) != self._num_decisions:
                self._num_decisions = len(self.policy.decisions)
                self._script.save()
            self._script.save_now_and_then()
