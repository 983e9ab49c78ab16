"""`Takeover`: from the second batch of its training on, a script's loop is the step of a workload, and feedrate has the control.

Both the script and the measurement want to be the loop on top. So the script goes on in its own greenlet and the measurement
runs in another one, on the same thread: `step(batch)` switches to the script, where `next()` returns this batch; the script's
next call of `next()` switches back, and `step` returns. Torch's state, signals and the main thread are what they are without
feedrate.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from typing import Any, NoReturn

import greenlet
import torch

from feedrate.trainables.checking.script_facts import ScriptFacts
from feedrate.trainables.failure import Failure, TrialFailed
from feedrate.trainables.isolation.leaving import leave
from feedrate.trainables.machine.process import tree_pids
from feedrate.trainables.measurement import Measurement
from feedrate.trainables.protocol import Failed, write_event
from feedrate.trainables.sandbox.child_main import Kept, run_request
from feedrate.trainables.script.between_epochs import AGAIN, ENDED, BetweenEpochs, will_write
from feedrate.trainables.script.measured_script import MeasuredScript
from feedrate.trainables.script.script_step import ScriptStep
from feedrate.trainables.script.seen_loader import IN_STEP
from feedrate.trainables.script.tap import Tap
from feedrate.trainables.script.this_rank import ThisRank
from feedrate.trainables.workload import Workload

FEW = 1
"""Batches that each other loader gives while one is measured."""


class Takeover:
    """The script's side and the measurement's side of one process.

    Args:
        script: what the script has done so far.
        tap: the iteration at which it stands, whose loader is measured.
    """

    def __init__(self, script: MeasuredScript, tap: Tap) -> None:
        self.script, self.measured, self._tap = script, tap.seen, tap
        self.step = ScriptStep(self._hand_over, self._end_epoch)
        self._between: BetweenEpochs | None = None
        """While the script is between two epochs."""
        self._rank = None if script.link.rank is None else ThisRank(script.link.rank, script.link)
        self._leaves = False
        self._loop = greenlet.getcurrent()
        self._serving = greenlet.greenlet(self._serve)
        recipe = script.loaders.recipe_of(tap.loader)
        assert recipe is not None
        tap.close()
        gc.collect()
        self.kept = Kept(
            workload=Workload.from_loader(name=_name(), make_loader=recipe.make, make_step=lambda context: self.step),
        )

    def begin(self) -> Any:
        """Get the first request, and let the measurement begin; return the first batch that it gives to the script."""
        why = self._why_not()
        if why is not None and self._rank is not None:  # the launcher would first wait for the other ranks, which may never come
            self._rank.report(Failure(kind="user-code", phase="setup", message=why))
            self._leave()
        handover, self._request, descriptors = self.script.link.receive_request()
        self._events = descriptors[0] if descriptors else None
        if self._rank is not None and handover.by_store and (why := self._rank.why_no_store(self.script.name)) is not None:
            self._rank.report(Failure(kind="user-code", phase="setup", message=why))
            self._leave()
        if why is not None:
            self._refuse(why)
        assert self.kept.workload is not None
        self.kept.workload.beside = tuple(each.beside() for each in self.script.loaders.seen if each is not self.measured and each.role != IN_STEP)
        self.kept.script = ScriptFacts(
            loaders=tuple(each.facts() for each in self.script.loaders.seen),
            chosen=self.script.loaders.chosen,
            setup_s=time.time() - handover.began_unix_s,
            python=sys.executable,
            device=self.script.device,
            num_ranks=1 if self._rank is None else self._rank.rank.world_size,
        )
        if handover.threads is not None:
            torch.set_num_threads(handover.threads)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self.kept.pids = frozenset(tree_pids())
        if self._rank is not None and not self._rank.is_follower:
            self.kept.lead = self._rank.lead(descriptors[1:], by_store=handover.by_store)
        return self._serving.switch()

    def _why_not(self) -> str | None:
        """Return a sentence if this process cannot be measured."""
        if threading.current_thread() is not threading.main_thread():
            return f"{self.script.name} reads its loader in the thread {threading.current_thread().name!r}, and feedrate measures loops on the main thread only"
        return None if self._rank is None else self._rank.why_not(self.script.name)

    def is_serving(self) -> bool:
        """Return whether the measurement runs now, and not the script."""
        return greenlet.getcurrent() is self._serving

    def _hand_over(self, batch: Any) -> None:
        self._loop.switch(batch)

    def _end_epoch(self, result: Measurement) -> None:
        """Let the script's loop over the loader end, and time what it does until it begins the loader again, or ends."""
        self._between = between = BetweenEpochs(self._loop, self._serving)
        between.run()
        self._between = None
        self.kept.is_spent = between.is_stranded
        between.record(result)

    def next_batch(self, tap: Tap) -> Any:
        """Return the next batch of a loader of the script. For the measured loader it comes from the measurement, for any other from that loader itself.

        Raises:
            StopIteration: the other loader has given its batch.
        """
        if tap.seen is self.measured:
            if tap is not self._tap:  # the script has begun another epoch
                self._tap = tap
                self.interrupted()
            return self._serving.switch(AGAIN)
        if tap.seen.role == IN_STEP:
            return self.script.taken(tap)
        if self._between is not None:
            return self._between.next_batch(tap, self.script.taken)
        self.interrupted()
        if tap.num_batches >= FEW:
            tap.close()
            raise StopIteration
        tap.open(apart=not tap.loader.persistent_workers)  # reading with all its workers would disturb what is measured
        return self.script.taken(tap)

    def interrupted(self) -> None:
        """Note that the script does something other than training."""
        self.step.num_asides += 1

    def saves(self, path: object) -> None:
        """Note that the script is about to save something with torch.save, whose files Python's audit hooks do not see."""
        will_write(path)

    def saved(self, seconds: float) -> None:
        """Note that the script has saved something, which is no part of a step."""
        self.interrupted()
        if self._between is not None:
            self._between.saved(seconds)

    def stepped(self) -> None:
        """Count a step of an optimizer: a script that trains between two epochs on batches that it has kept would never come back."""
        if self._between is not None:
            self._between.stepped()

    def raised(self, error: BaseException) -> None:
        """Let the measurement fail with an exception that ends the script."""
        if self._between is not None:
            self._between.end(error)
        if greenlet.getcurrent() is self._loop:
            self._serving.throw(type(error), error, error.__traceback__)

    def at_exit(self) -> None:
        """Let the measurement fail if the script ends by itself; if feedrate ends it, end its launchers first."""
        if self._leaves or self.is_serving():
            self.script.link.leave()
            return
        if self._between is not None:
            self._between.end(ENDED)
        message = (
            f"{self.script.name} ended after {self.step.num_batches:,} batches, in the middle of the measurement: let it train for more steps or "
            "epochs, or lower --max-trial-s"
        )
        self._serving.throw(TrialFailed(Failure(kind="script-ended", phase="measure", message=message)))

    def _serve(self) -> NoReturn:
        try:
            if self._rank is not None and self._rank.is_follower:
                self._rank.follow(self._events, self.kept, self.script.device)
            else:
                assert self._events is not None
                run_request(self._request, self._events, self.kept)
        finally:
            self._leave()

    def _refuse(self, message: str) -> NoReturn:
        if self._events is not None:
            write_event(Failed(failure=Failure(kind="user-code", phase="setup", message=message), usage=True), self._events)
        self._leave()

    def _leave(self, status: int = 0) -> NoReturn:
        self._leaves = True
        leave(status)

    def _on_sigterm(self, number: int, frame: object) -> None:
        if os.getpid() == self.script.pid:
            self._leave(128 + number)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _name() -> str:
    """Return the script's name: its file without the suffix, or the package of `python -m package`."""
    path, name = os.path.split(os.path.abspath(sys.argv[0]))
    stem = os.path.splitext(name)[0]
    return os.path.basename(path) if stem == "__main__" else stem or "script"
