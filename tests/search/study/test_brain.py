"""brain.py: the study on a journal, SQLite and PostgreSQL; what is asked and told survives crashes."""

import math
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import optuna
import pytest

from feedrate.search.space.search_space import Choice, Range, SearchSpace
from feedrate.search.study.brain import Brain, BrainError, Counts
from feedrate.search.study.compat import constraints
from feedrate.search.study.pruner import LOW
from feedrate.search.study.reconcile import reconcile
from feedrate.trainables.config import LoaderConfig

SPACE = SearchSpace.default(num_cpus=8, has_accelerator=True)
TINY = SearchSpace.default(
    num_cpus=8,
    has_accelerator=False,
    given={"num_workers": Range(0, 3), "batch_size": Choice((32,)), "prefetch_factor": Choice((2, 4))},
)
W4 = LoaderConfig(num_workers=4, batch_size=64)
W9 = LoaderConfig(num_workers=9, batch_size=64)


def test_enqueued_first_in_order(opened):
    """What was enqueued is asked before anything is drawn, once."""
    brain = opened()
    assert brain.enqueue(W9, "baseline")
    assert brain.enqueue(W4, "seed")
    assert not brain.enqueue(W9, "seed")
    asked = [brain.ask() for _ in range(3)]
    assert [(ask.number, ask.origin) for ask in asked] == [(0, "baseline"), (1, "seed"), (2, "sampler")]
    assert [ask.config for ask in asked[:2]] == [W9, W4]
    assert brain.counts() == Counts(running=3)
    assert brain.tried() == {ask.config for ask in asked}


def test_study_is_readable(opened):
    """Another program finds real values, origin, kind and run id in the study."""
    brain = opened()
    brain.enqueue(W4, "seed")
    brain.enqueue(LoaderConfig(num_workers=0, batch_size=32), "baseline")
    brain.ask()
    brain.ask()
    with_workers, without = opened().study.trials
    assert with_workers.params | {"num_workers": 4, "batch_size": 64, "prefetch_factor": 2} == with_workers.params
    assert with_workers.user_attrs["config"] == W4.to_dict()
    assert without.params == {"num_workers": 0, "batch_size": 32, "pin_memory": False}
    assert (without.user_attrs["origin"], without.user_attrs["kind"]) == ("baseline", "search")
    assert without.user_attrs["run_id"] == "s"


def test_outcomes_are_told_truthfully(opened):
    """Complete, pruned, failed and infeasible trials are what Optuna and a reopened brain see."""
    brain = opened()
    numbers = [brain.ask().number for _ in range(5)]
    brain.tell_complete(numbers[0], 900.0, {LOW: 880.0})
    brain.report(numbers[1], 5, 100.0, 0.02)
    assert brain.should_prune(numbers[1])
    brain.tell_pruned(numbers[1])
    brain.tell_failed(numbers[2], "the dataset raised")
    brain.tell_failed(numbers[3], "/dev/shm is too small", infeasible=True)
    brain.tell_complete(numbers[4], math.nan)
    for seen in (brain, opened()):
        assert seen.counts() == Counts(complete=1, pruned=1, failed=3)
        assert seen.counts().told == 5
        assert [past.value_sps for past in seen.history()] == [900.0, 100.0, None, None, None]
    trials = brain.study.trials
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "FAIL", "PRUNED", "FAIL"]
    assert trials[1].intermediate_values == {5: 100.0}
    assert constraints(trials[3]) == {"fits": 1.0}
    assert trials[3].user_attrs["failure"] == "/dev/shm is too small"
    assert [trial.value for trial in trials if trial.state.name == "COMPLETE"] == [900.0]


def test_tells_are_idempotent(opened):
    """The first tell counts; later ones, and reports after it, change nothing."""
    brain = opened()
    number = brain.ask().number
    brain.report(number, 5, 10.0)
    brain.report(number, 5, 20.0)
    brain.tell_complete(number, 1.0)
    brain.tell_complete(number, 2.0)
    brain.tell_pruned(number)
    brain.tell_failed(number, "late", infeasible=True)
    brain.report(number, 8, 3.0)
    assert not brain.should_prune(number)
    reopened = opened()
    reopened.tell_complete(number, 4.0)
    assert reopened.study.trials[0].values == [1.0]
    assert reopened.study.trials[0].intermediate_values == {5: 10.0}
    assert reopened.counts() == Counts(complete=1)
    with pytest.raises(BrainError, match="no trial 99"):
        brain.tell_pruned(99)


@pytest.mark.parametrize("sampler", ["gp", "tpe", "random"])
def test_exhausted_space_ends(opened, sampler):
    """A small space is asked through without a repetition, failures included; then there is nothing to ask."""
    brain = opened(space=TINY, sampler=sampler)
    asked = []
    while ask := brain.ask():
        asked.append(ask.config)
        if len(asked) % 3:
            brain.tell_complete(ask.number, float(ask.config.num_workers))
        else:
            brain.tell_failed(ask.number, "no", infeasible=len(asked) % 2 == 0)
    assert len(asked) == len(set(asked)) == TINY.size()
    assert set(asked) == set(TINY.configs())
    assert opened(space=TINY).ask() is None


def test_a_lost_host_is_forgiven_once(opened):
    """A setting that failed by the machine's fault may be measured again, once."""
    brain = opened()
    for expected in (True, True, False):
        assert brain.enqueue(W4, "seed") is expected
        if expected:
            brain.tell_failed(brain.ask().number, "the node was lost", blameless=True)
    assert opened().tried() == {W4}


def test_replay_gives_the_same_suggestions(opened, tmp_path):
    """The same seed and measurements give the same settings, in one go or with a restart before each."""

    def rate(config):
        return 100.0 * config.num_workers + config.batch_size

    whole, asked = Brain.open(None, tmp_path / "other.journal", study_name="t", space=SPACE, seed=1), []
    for _ in range(25):
        ask = whole.ask()
        asked.append(ask.config)
        whole.tell_complete(ask.number, rate(ask.config))
    for config in asked:
        brain = opened()
        ask = brain.ask()
        assert ask.config == config
        brain.tell_complete(ask.number, rate(ask.config))
    assert opened().counts() == Counts(complete=25)


def test_two_searches_share_a_database(opened):
    """Studies in one database do not see each other."""
    one, two = opened(study_name="one"), opened(study_name="two")
    one.enqueue(W4, "seed")
    assert two.counts() == Counts()
    two.enqueue(W4, "seed")
    assert (one.ask().number, two.ask().number) == (0, 0)


def test_unusable_storage(tmp_path):
    """A storage that cannot be opened is one clear error."""
    with pytest.raises(BrainError, match="cannot use mysql"):
        Brain.open("mysql://u:p@h/d", tmp_path / "j", study_name="s", space=SPACE)


KILLED = """
import sys
from pathlib import Path
from feedrate.search.study.reconcile import reconcile
from feedrate.search.space.search_space import SearchSpace
from feedrate.search.study.brain import Brain
url, journal, seed = sys.argv[1] or None, sys.argv[2], int(sys.argv[3])
space = SearchSpace.default(num_cpus=8, has_accelerator=True)
brain = Brain.open(url, journal, study_name="s", space=space, seed=seed)
reconcile(brain, [{"study": "s", "kind": "search", "number": past.number} for past in brain.history() if not past.is_open])
print("ready", flush=True)
while True:
    ask = brain.ask()
    brain.report(ask.number, 5, 1.0, 0.1)
    brain.should_prune(ask.number)
    brain.tell_complete(ask.number, float(ask.config.num_workers), {"low_sps": 1.0})
    print(ask.number, flush=True)
"""


def test_killed_at_random_moments(tmp_path, storage_url):
    """After repeated SIGKILLs in the middle of asks and tells, the study opens and has every trial that it was told."""
    journal, rng, told = tmp_path / "study.journal", random.Random(0), set()
    for _ in range(4):
        command = [sys.executable, "-c", KILLED, storage_url or "", str(journal), "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(rng.uniform(0.05, 0.5))
            process.send_signal(signal.SIGKILL)
            told |= {int(line) for line in process.stdout.read().splitlines() if line}
    brain = Brain.open(storage_url, journal, study_name="s", space=SPACE)
    reconcile(brain, [{"study": "s", "kind": "search", "number": past.number} for past in brain.history() if not past.is_open])
    counts = brain.counts()
    assert counts.running == 0
    assert counts.lost <= 4
    assert counts.lost <= counts.waiting + counts.complete
    complete = {past.number for past in brain.history() if past.state == "complete"}
    assert told <= complete
    configs = [past.config for past in brain.history() if past.state != "lost"]
    assert len(configs) == len(set(configs))
    brain.close()


def test_a_database_that_restarts(postgresql, tmp_path):
    """A server that is away for a second, in mid-search, costs a moment; every trial is there once."""
    brain = Brain.open(postgresql.database(), tmp_path / "none", study_name="s", space=SPACE)
    done = threading.Event()

    def restart():
        while not done.wait(0.5):
            postgresql.stop()
            time.sleep(0.5)
            postgresql.start()

    thread = threading.Thread(target=restart)
    thread.start()
    try:
        end = time.monotonic() + 4
        while time.monotonic() < end:
            ask = brain.ask()
            brain.tell_complete(ask.number, 1.0)
    finally:
        done.set()
        thread.join()
    trials = brain.study.trials
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    configs = [past.config for past in brain.history()]
    assert len(configs) == len(set(configs)) == len(trials)
    brain.close()


def landscape(config):
    """Items per second of a made-up machine: loading is the bottleneck up to about ten workers, then it costs."""
    workers, prefetch, batch_size = config.num_workers, config.prefetch_factor or 0, config.batch_size
    step_sps = batch_size / (0.01 + batch_size * 0.0004)
    load_sps = min(238.0 * max(workers, 1), 1500.0) * (1 - 0.01 * max(0, workers - 8))
    sharpness = 2 + prefetch if workers else 1
    rate = (step_sps**-sharpness + load_sps**-sharpness) ** (-1 / sharpness)
    rate *= (1 - 0.15 / math.sqrt(prefetch * workers)) if workers else 1.0
    return rate * (1.03 if config.pin_memory else 1.0) * (1.04 if config.persistent_workers else 1.0)


def simulate(seed, journal, sampler, num_trials=40):
    """Rate of the winner as a fraction of the optimum, and the number of windows that were measured."""
    brain = Brain.open(None, journal, study_name="s", space=SPACE, seed=seed, sampler=sampler)
    rng, windows = np.random.default_rng(seed), 0
    brain.enqueue(LoaderConfig(num_workers=0, batch_size=32), "baseline")
    brain.enqueue(LoaderConfig(num_workers=8, batch_size=32, pin_memory=True), "seed")
    for _ in range(num_trials):
        ask = brain.ask()
        true = landscape(ask.config) * (1 + 0.015 * rng.standard_normal())
        rates = []
        for count in range(1, 21):
            rates.append(true * (1 + 0.15 * rng.standard_normal()))
            mean = float(np.mean(rates))
            if count >= 5:
                half = 2.2 * float(np.std(rates, ddof=1)) / math.sqrt(count) / mean
                brain.report(ask.number, count, mean, half)
                if brain.should_prune(ask.number):
                    brain.tell_pruned(ask.number)
                    break
        else:
            brain.tell_complete(ask.number, mean, {LOW: mean * (1 - math.hypot(half, 1.96 * 0.015))})
        windows += len(rates)
    assert brain.counts().told == num_trials
    winner = max((past for past in brain.history() if past.state == "complete"), key=lambda past: past.value_sps)
    return landscape(winner.config) / max(map(landscape, SPACE.configs())), windows


@pytest.mark.parametrize(("sampler", "least", "most_windows"), [("gp", 0.93, 0.95), ("tpe", 0.90, 0.8)])
def test_finds_a_good_setting_under_noise(tmp_path, sampler, least, most_windows):
    """With 15 % noise per window, 40 trials of 1,542 settings end within 10 % of the best; losers are stopped.

    `gp` tries fewer losers, so that less is saved by stopping them.
    """
    found = (simulate(seed, tmp_path / f"{seed}.journal", sampler) for seed in range(5))
    fractions, windows = zip(*found, strict=True)
    assert min(fractions) > least, fractions
    assert np.median(fractions) > 0.94, fractions
    assert np.mean(windows) < most_windows * 40 * 20
    assert optuna.logging.get_verbosity() >= optuna.logging.WARNING
