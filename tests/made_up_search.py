"""A search without Ray: a real study and run folder, made-up measurements, its own clock."""

import io

from rich.console import Console
from synthetic import record

from feedrate.analysis.run_folder import RunFolder
from feedrate.search.options import SearchOptions
from feedrate.search.session.display import Display
from feedrate.search.session.session import Session
from feedrate.search.setup.request import baseline_configs
from feedrate.search.space.search_space import Choice, Range, SearchSpace
from feedrate.search.study.brain import Brain
from feedrate.search.study.reconcile import reconcile
from feedrate.trainables.config import LoaderConfig

SPACE = SearchSpace.default(
    num_cpus=8, has_accelerator=False, given={"num_workers": Range(0, 16), "batch_size": Choice((32, 64))}
)
FOUR = SearchSpace.default(
    num_cpus=8,
    has_accelerator=False,
    given={
        "num_workers": Range(0, 3),
        "batch_size": Choice((64,)),
        "prefetch_factor": Choice((2,)),
        "persistent_workers": Choice((True,)),
    },
)
TORCH_DEFAULT = LoaderConfig(num_workers=0, batch_size=64)
DEFAULTS = {"time_budget_s": 1e6, "confirm": False, "keep_going": True}
"""Tests of confirmation and of the stop rules ask for them."""
NOT_MEASURED = {
    "schema", "study", "number", "attempt", "kind", "origin", "stopped_early", "started_unix_s", "finished_unix_s",
    *LoaderConfig.__dataclass_fields__,
}  # fmt: skip


class Clock:
    """A clock in seconds since 1970 that the test moves forward."""

    now = 1_700_000_000.0

    def __call__(self):
        return self.now


def rate_of(config):
    """Samples per second of a setting in this made-up world: eight workers are best."""
    return 400.0 + 250.0 * min(config.num_workers, 8) - 30.0 * max(config.num_workers - 8, 0) + config.batch_size


def measured(request, *, rate_sps=None, num_windows=20):
    """What a trial reports of the setting that was asked for; the step alone is timed where that was asked too."""
    config, step_only_sps = request.config, 3000.0 if request.measure_step else None
    rate_sps = rate_of(config) if rate_sps is None else rate_sps
    made = record(
        request.number, batch_size=config.batch_size, rate_sps=rate_sps, num_windows=num_windows,
        step_only_sps=step_only_sps,
    )  # fmt: skip
    return {name: value for name, value in made.items() if name not in NOT_MEASURED}


class Search:
    """A search in a folder: opened as the driver does it, and run without Ray."""

    def __init__(self, path, *, space=SPACE, brain=Brain, seeds=(), seed=1, text=None, storage=None, **options):
        self.clock = Clock()
        self.folder = RunFolder(path)
        path.mkdir(exist_ok=True)
        asked = SearchOptions(**DEFAULTS | {"seed": seed} | options)
        self.brain = brain.open(
            storage, self.folder.journal, study_name="s", space=space, seed=seed, sampler=asked.sampler
        )
        records, _ = self.folder.records()
        self.reconciled = reconcile(self.brain, records)
        console = Console(file=text or io.StringIO(), width=200)
        self.session = Session(
            brain=self.brain,
            folder=self.folder,
            options=asked,
            study="s",
            baselines=baseline_configs(TORCH_DEFAULT, space.values("batch_size")),
            seeds=list(seeds),
            epoch_samples=50_000,
            display=Display(console, time_budget_s=300.0),
            clock=self.clock,
        )
        self.session.replay(records)
        self.asked = []

    def ask(self):
        request = self.session.next()
        if request is not None:
            self.asked.append(request)
        return request

    def one(self, **measurement):
        """Ask for a measurement and make it; None when the search is over."""
        request = self.ask()
        if request is not None:
            self.clock.now += 10.0
            self.session.completed(request.number, measured(request, **measurement), None)
        return request

    def run(self):
        while self.one() is not None:
            pass
        return [request.config for request in self.asked]

    def records(self):
        records, problems = self.folder.records()
        assert not problems
        return records
