"""session.py: one search as plain logic, with a real study on a journal file, synthetic measurements and its own clock."""

import io

import pytest
from made_up_search import FOUR, SPACE, TORCH_DEFAULT, Search, measured, rate_of
from synthetic import search_json

from feedrate.analysis.estimate import record_rate
from feedrate.analysis.run_folder import RunFolder
from feedrate.analysis.schema import check_record, status
from feedrate.search.record import SearchRecord
from feedrate.search.setup.request import rules_of_thumb
from feedrate.search.study.brain import Brain
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import Failure


@pytest.fixture
def search(tmp_path):
    """Opens the search of this test, again and again."""
    return lambda **more: Search(tmp_path / "run", **more)


def test_the_baseline_is_first_then_what_people_use(search):
    """The baseline at the user's own batch size; four seeds; then the sampler's draws, as the baseline is far behind and rounds
    will measure it at other batch sizes."""
    seeds = [config for config in rules_of_thumb(64, 4, accelerator=False) if SPACE.contains(config)]
    asked = search(seeds=seeds, max_trials=8)
    asked.run()
    first = [(request.config.batch_size, request.config.num_workers, request.origin) for request in asked.asked]
    # 0 workers is the baseline itself and is not measured a second time; the rest is in the order of what is expected of it
    assert first[0] == (64, 0, "baseline")
    assert sorted(first[1:5]) == [(64, 2, "seed"), (64, 4, "seed"), (64, 8, "seed"), (64, 16, "seed")]
    assert [origin for _, _, origin in first[5:]] == ["sampler", "sampler", "sampler"]
    assert len({request.config for request in asked.asked}) == 8


def test_the_step_alone_is_timed_once_for_each_batch_size(search):
    """With the first trial of that size; again when that trial gave nothing; not again by a resumed search."""
    first = search()
    request = first.ask()
    assert request.measure_step
    failure = Failure(kind="user-code", phase="warm", message="it raised").columns()
    first.session.completed(request.number, {}, failure)
    second, third, fourth = first.one(), first.one(), first.one()
    assert (second.config.batch_size, second.measure_step) == (32, True)
    again = next(request for request in (third, fourth, first.one()) if request.config.batch_size == 64)
    assert again.measure_step
    while {32, 64} - first.session.ceilings.known().keys():
        first.one()
    assert not first.one().measure_step
    assert first.session.ceilings.known() == {32: pytest.approx(3000.0), 64: pytest.approx(3000.0)}
    assert not search().ask().measure_step


def test_what_a_step_returned_is_noted_once(search, tmp_path):
    """A loss instead of a number of items: one note for the whole search."""
    text = io.StringIO()
    asked = search(text=text, max_trials=3)
    while request := asked.ask():
        asked.session.completed(request.number, measured(request) | {"step_returned": "Tensor"}, None)
    assert text.getvalue().count("note: step(batch) returned a Tensor, not a number of items, so feedrate counts samples") == 1
    assert {kept["step_returned"] for kept in asked.records()} == {"Tensor"}


def test_settings_with_idle_workers_are_not_tried_after_the_first_observation(search):
    """Eight workers of which one works: nothing with more than one is asked for from then on, by a resumed search neither."""
    text = io.StringIO()
    seeds = [LoaderConfig(num_workers=number, batch_size=64) for number in (8, 4, 2, 16)]
    first = search(text=text, seeds=seeds, max_trials=12)
    first.folder.write_search(search_json(study="s", space=SPACE.to_json()))
    while request := first.ask():
        working = {"effective_num_workers": min(request.config.num_workers, 1)} if request.config.num_workers else {}
        first.session.completed(request.number, measured(request) | working, None)
    asked = [request.config.num_workers for request in first.asked]
    found = next(place for place, number in enumerate(asked) if number > 1)
    assert found + 1 < len(asked)
    assert all(number <= 1 for number in asked[found + 1 :])
    assert text.getvalue().count("1 worked (the others got no data): more workers than that cannot help") == 1
    assert "so settings with more than 1 worker are not tried any more" in text.getvalue()
    kept = SearchRecord.read(first.folder).space
    assert max(config.num_workers for config in kept.configs()) == 1
    again = search(space=kept, max_trials=14)
    again.run()
    assert all(request.config.num_workers <= 1 for request in again.asked)


def test_the_time_between_epochs_is_asked_for_until_it_is_known(search):
    """A trial that failed does not know it; one that gave up on it does; a resumed search remembers."""
    first = search(max_trials=9)
    failure = Failure(kind="user-code", phase="warm", message="it raised").columns()
    request = first.ask()
    assert request.between_epochs
    first.session.completed(request.number, {}, failure)
    request = first.ask()
    assert request.between_epochs
    first.session.completed(request.number, measured(request) | {"between_epochs_failure": "it takes more than 30 s"}, None)
    assert not first.one().between_epochs
    assert not search().ask().between_epochs


def test_the_items_of_an_epoch_are_those_that_the_trial_trained(search):
    """What collate_fn leaves out is not trained; a trial that does not know takes the dataset's length."""
    asked = search(max_trials=2)
    for known in (16_000, None):
        request = asked.ask()
        asked.session.completed(request.number, measured(request) | {"epoch_samples": known}, None)
    assert [kept["epoch_samples"] for kept in asked.records()] == [16_000, 50_000]


def test_a_record_holds_the_setting_the_measurement_and_who_asked(search):
    """It passes the schema's check, and its times are the clock's."""
    done = search(max_trials=3)
    done.run()
    first, _, third = done.records()
    for number, kept in enumerate(done.records()):
        check_record(kept)
        assert (kept["number"], kept["study"], kept["kind"], kept["attempt"]) == (number, "s", "search", 1)
        assert kept["finished_unix_s"] - kept["started_unix_s"] == 10.0
        assert LoaderConfig.from_dict(kept) == done.asked[number].config
    assert (first["origin"], third["origin"]) == ("baseline", "sampler")
    assert record_rate(first).sps == pytest.approx(rate_of(TORCH_DEFAULT))
    assert done.brain.history()[0].value_sps == pytest.approx(rate_of(TORCH_DEFAULT))


class CrashesBeforeTheTell(Brain):
    """A study whose driver is killed after it wrote a record and before it told the study."""

    def tell_complete(self, number, value_sps, user_attrs=None):
        if number == 2:
            raise ConnectionAbortedError("killed here")
        super().tell_complete(number, value_sps, user_attrs)


def test_a_crash_between_record_and_study_loses_nothing(search):
    """The record was written before; the next driver tells the study, and never measures the setting again."""
    crashed = search(brain=CrashesBeforeTheTell)
    crashed.one()
    crashed.one()
    with pytest.raises(ConnectionAbortedError):
        crashed.one()
    assert len(crashed.records()) == 3
    again = search(max_trials=6)
    assert (again.reconciled.num_told, again.reconciled.requeued) == (1, [])
    assert again.brain.counts().complete == 3
    assert again.brain.history()[2].value_sps == pytest.approx(rate_of(crashed.asked[2].config))
    later = again.run()
    assert len(later) == 3
    assert not set(later) & {request.config for request in crashed.asked}
    assert [kept["number"] for kept in again.records()] == list(range(6))


class CrashesInTheRecord(RunFolder):
    def append(self, record):
        raise OSError(28, "No space left on device")


def test_a_record_that_cannot_be_written_is_not_told(search):
    """The study never knows more than the records."""
    broken = search()
    broken.session.folder = CrashesInTheRecord(broken.folder.path)
    with pytest.raises(OSError, match="No space left"):
        broken.one()
    assert broken.records() == []
    assert broken.brain.counts().told == 0
    again = search(max_trials=1)
    assert again.reconciled.requeued == [TORCH_DEFAULT]


def test_max_trials_counts_all_that_were_tried(search):
    """Complete, stopped early and failed ones, those of before a resume too; what still runs is counted as well."""
    stopped = search(max_trials=4)
    stopped.one()
    request = stopped.ask()
    stopped.session.completed(request.number, {}, Failure(kind="hang", phase="measure", message="it hung").columns())
    running = [stopped.ask(), stopped.ask()]
    assert stopped.ask() is None
    assert stopped.session.stop_reason == "4 settings were tried (--max-trials)"
    for request in running:
        stopped.session.completed(request.number, measured(request), None)
    assert search(max_trials=4).ask() is None
    assert len(search(max_trials=6).run()) == 2


def test_no_trial_begins_that_would_overrun_the_time_budget(search):
    """The last trials tell how long the next will take."""
    timed = search(time_budget_s=65.0)
    timed.run()
    assert len(timed.asked) == 6
    assert timed.session.stop_reason == "the time budget is spent (--time-budget)"
    assert timed.session.seconds_left() == pytest.approx(5.0)
    assert timed.ask() is None


def test_a_resumed_search_has_its_own_time_budget(search):
    """What earlier drivers spent does not count."""
    search(time_budget_s=35.0).run()
    resumed = search(time_budget_s=35.0)
    resumed.clock.now += 1e6
    resumed.session.budget.started_unix_s = resumed.clock.now
    assert len(resumed.run()) == 3


def test_an_exhausted_space_ends_the_search(search):
    """Every setting once, then a reason."""
    small = search(space=FOUR)
    assert sorted(config.num_workers for config in small.run()) == [0, 1, 2, 3]
    assert small.session.stop_reason == "every setting of the space has been tried"


def test_a_trial_that_cannot_win_is_stopped_and_its_record_says_so(search):
    """The trial is stopped after a number of windows in LOOKS, recorded with its windows, and pruned in the study; the baseline always finishes."""
    pruned = search()
    baseline = pruned.ask()
    assert not pruned.session.should_stop(baseline.number, measured(baseline, num_windows=5))
    pruned.session.completed(baseline.number, measured(baseline, rate_sps=2000.0), None)
    slow_baseline = pruned.ask()
    assert slow_baseline.origin == "baseline"
    assert not pruned.session.should_stop(slow_baseline.number, measured(slow_baseline, rate_sps=1.0, num_windows=5))
    pruned.session.completed(slow_baseline.number, measured(slow_baseline, rate_sps=1.0), None)
    slow = pruned.ask()
    assert not pruned.session.should_stop(slow.number, measured(slow, rate_sps=100.0, num_windows=6))
    seen = measured(slow, rate_sps=100.0, num_windows=8)
    assert pruned.session.should_stop(slow.number, seen)
    pruned.session.completed(slow.number, seen, None)
    kept = pruned.records()[-1]
    assert status(kept) == "pruned"
    assert len(kept["window_duration_s"]) == 8
    assert pruned.brain.history()[slow.number].state == "pruned"
    fast = pruned.ask()
    assert not pruned.session.should_stop(fast.number, measured(fast, rate_sps=2100.0, num_windows=8))


def test_a_failure_is_recorded_and_told(search):
    """It never becomes a number; one that is met after an early stop was asked for is a failure all the same."""
    failed = search()
    failed.one()
    failed.one()
    request = failed.ask()
    assert failed.session.should_stop(request.number, measured(request, rate_sps=1.0, num_windows=5))
    failure = Failure(kind="shm-full", phase="measure", message="/dev/shm is too small", cause=("OSError",)).columns()
    failed.session.completed(request.number, {}, failure)
    kept = failed.records()[-1]
    assert (status(kept), kept["failure_kind"], kept["stopped_early"]) == ("failed", "shm-full", False)
    assert record_rate(kept) is None
    assert failed.brain.counts().failed == 1
    assert request.config in failed.brain.tried()


def test_a_lost_supervisor_is_a_failure_and_the_setting_is_tried_once_more(search):
    """Once: a setting that takes its supervisor with it twice is not tried a third time."""
    losing = search(space=FOUR)
    request = losing.ask()
    losing.session.lost(request.number, "ActorDiedError: the worker was killed")
    kept = losing.records()[-1]
    assert (kept["failure_kind"], kept["failure_cause"]) == (
        "supervisor-died",
        ["ActorDiedError: the worker was killed"],
    )
    again = next(other for other in iter(losing.ask, None) if other.config == request.config)
    assert (again.origin, again.number != request.number) == (request.origin, True)
    losing.session.lost(again.number)
    assert all(other.config != request.config for other in iter(losing.ask, None))
    assert losing.brain.counts().failed == 2


def test_a_trial_that_ended_stays_as_it_is(search):
    """Completed or lost again, it changes nothing: one record, one tell, no new trial."""
    once = search(max_trials=5)
    request = once.one()
    history = once.brain.history()
    once.session.completed(request.number, measured(request, rate_sps=1.0), None)
    once.session.lost(request.number)
    once.session.completed(999, {}, None)
    assert len(once.records()) == 1
    assert once.brain.history() == history


def test_what_runs_when_the_search_is_interrupted_is_measured_by_the_resumed_one(search):
    """No trial stays running in the study; the setting is asked for again, as what it was."""
    interrupted = search()
    interrupted.one()
    request = interrupted.ask()
    interrupted.session.abandon()
    assert interrupted.session.running == []
    assert interrupted.brain.counts().running == 0
    assert len(interrupted.records()) == 1
    resumed = search(max_trials=4)
    again = resumed.ask()
    assert (again.config, again.origin) == (request.config, "baseline")
    resumed.session.completed(again.number, measured(again), None)
    resumed.run()
    numbers = [kept["number"] for kept in resumed.records()]
    assert len(numbers) == len(set(numbers)) == 4


def test_the_same_measurements_give_the_same_suggestions(tmp_path):
    """With the same seed; also when the search was resumed in the middle; not with another seed."""
    whole = Search(tmp_path / "whole", max_trials=24).run()
    assert Search(tmp_path / "again", max_trials=24).run() == whole
    halves = Search(tmp_path / "halves", max_trials=13).run()
    halves += Search(tmp_path / "halves", max_trials=24).run()
    assert halves == whole
    assert Search(tmp_path / "other", max_trials=24, seed=2).run() != whole


def test_a_disturbed_trial_gives_no_ceiling(search):
    """What others did may have lowered the rate of the step alone, and with it what there seems to gain."""
    one = search().session
    for fraction in (0.5, 0.01):
        request = one.next()
        one.completed(request.number, measured(request) | {"foreign_cpu_fraction": fraction}, None)
        assert one.has_ceiling(request.config.batch_size) == (fraction < 0.1)


def test_the_ceiling_is_said_with_what_there_is_to_gain(search):
    """Right after the baseline at that batch size."""
    text = io.StringIO()
    said = search(text=text)
    said.one(rate_sps=500.0)
    lines = text.getvalue().splitlines()
    assert "yours: b64 w0  500 samples/s" in lines[0]
    assert "ceiling at b64 (no loading): 3,000 samples/s  at most 6.00x to gain" in lines[1]


def test_a_resumed_search_shows_what_was_found_before(search):
    """The trials of before are counted, and the best of them is the best so far, without a line for each again."""
    before = search(max_trials=4)
    before.run()
    text = io.StringIO()
    resumed = search(text=text)
    assert resumed.session.display.counts == {"complete": 4, "pruned": 0, "failed": 0}
    assert resumed.session.display.best == before.session.display.best
    assert text.getvalue() == ""


def test_an_interrupted_setting_keeps_its_place(search):
    """What ran when a search was interrupted is asked for first when it is resumed, the baseline too."""
    seeds = rules_of_thumb(64, 4, accelerator=False)
    begun = search(seeds=seeds)
    begun.session.next()
    begun.session.abandon()
    again = search(seeds=seeds, max_trials=2)
    first = again.session.next()
    assert (first.config.batch_size, first.config.num_workers, first.origin) == (64, 0, "baseline")


def test_the_same_failure_again_and_again_ends_the_search(search):
    """Where every setting fails for one reason, no more of them are tried, and the reason is named."""
    broken = search(max_trials=100)
    failure = Failure(kind="user-code", phase="loader", message="TypeError: no").columns()
    while (request := broken.session.next()) is not None:
        broken.session.completed(request.number, {}, failure)
    assert len(broken.records()) == 8
    assert "for the same reason" in broken.session.stop_reason
    assert search(max_trials=100).session.next() is not None  # resumed, perhaps with a repaired workload


@pytest.mark.parametrize(("kind", "num_tried"), [("user-code", 8), ("shm-full", 12)])
def test_failures_that_differ_in_numbers_only_are_the_same(search, kind, num_tried):
    """Another sample, another process, the same reason; but what does not fit may fit at another size."""
    broken = search(max_trials=12)
    while (request := broken.session.next()) is not None:
        message = f"KeyError: 'label' (raised for sample {request.number}; with 0 workers too)"
        failure = Failure(kind=kind, phase="loader", message=message).columns()
        broken.session.completed(request.number, {}, failure)
    assert len(broken.records()) == num_tried


def test_a_batch_that_does_not_fit_is_told_with_one_that_did(search):
    """The largest smaller batch size that was trained is named; a failed one, and another kind, is not."""
    asked = search(max_trials=12)
    messages = {}
    while (request := asked.session.next()) is not None:
        if request.config.batch_size == 64 and len(asked.session.records) > 2:
            failure = Failure(kind="cuda-out-of-memory", phase="warm", message="too small").columns()
            asked.session.completed(request.number, {}, failure)
            messages[request.number] = asked.records()[-1]["failure_message"]
        else:
            asked.session.completed(request.number, measured(request), None)
    sizes = {kept["batch_size"] for kept in asked.records() if status(kept) != "failed"}
    assert 32 in sizes
    assert "too small; batch_size 32 fitted" in messages.values()


def test_a_trial_that_rays_memory_monitor_ended_is_not_tried_again(search):
    """It did not fit: the setting is infeasible, where that of a supervisor lost otherwise may be innocent."""
    lost = search(max_trials=4)
    first, second = lost.session.next(), lost.session.next()
    lost.session.lost(first.number, "Ray's words", starved=True)
    lost.session.lost(second.number, "Ray's words")
    starved, died = lost.records()
    assert (starved["failure_kind"], died["failure_kind"]) == ("out-of-memory", "supervisor-died")
    assert starved["failure_cause"] == ["Ray's words"]
    assert "RAY_memory_monitor_refresh_ms=0" in starved["failure_message"]
    later = [lost.one().config, lost.one().config]
    assert second.config in later
    assert first.config not in later
