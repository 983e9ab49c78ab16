"""Confirmation and the stop rules in a whole search: a real study and run folder, made-up measurements, its own clock."""

import io
import random
import re
from types import SimpleNamespace

import pytest
from made_up_search import FOUR, SPACE, TORCH_DEFAULT, Search, measured, rate_of
from synthetic import search_json

from feedrate.analysis.estimate import Rate
from feedrate.analysis.load import load_run
from feedrate.analysis.rounds import MIN_ROUNDS
from feedrate.analysis.schema import check_record
from feedrate.analysis.summary import ranking, standing_of
from feedrate.search.answers.wording import explain
from feedrate.search.engine.searcher import SessionSearcher
from feedrate.search.record import SearchRecord
from feedrate.search.result import conclude
from feedrate.search.session.finalists import MAX_ROUNDS, Candidate, rounds_s
from feedrate.search.session.search_end import at_ceiling, nothing_to_gain, same_failures
from feedrate.search.space.search_space import Choice, SearchSpace
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import Failure


class Confirming(Search):
    """A search with rounds; a run-to-run noise of `noise` on every rate."""

    def __init__(self, path, *, noise=0.01, true=rate_of, **options):
        super().__init__(path, **{"confirm": True, "space": FOUR} | options)
        self.rng, self.noise, self.true = random.Random(7), noise, true

    def rate(self, config):
        return self.true(config) * (1 + self.rng.gauss(0, self.noise))

    def go(self, until=lambda request: False):
        """Measure what is asked for; stops before the first request that `until` accepts, and returns it."""
        while (request := self.ask()) is not None:
            if until(request):
                return request
            if request.kind == "search":
                self.clock.now += 10.0
                self.session.completed(request.number, measured(request, rate_sps=self.rate(request.config)), None)
            else:
                for position in range(len(request.configs)):
                    self.position(request, position)
                self.session.confirmation.over(request.number)
        return None

    def position(self, request, position, failure=None):
        """One setting of a round."""
        self.clock.now += 10.0
        config = request.configs[position]
        made = measured(request, rate_sps=self.rate(config))
        self.session.confirmation.measured(request.number, position, {} if failure else made, failure)


@pytest.fixture
def search(tmp_path):
    """Opens the search of this test, again and again."""
    return lambda **more: Confirming(tmp_path / "run", **more)


def is_round(request):
    return request.kind == "confirm"


def test_finalists_and_baseline_are_measured_again_in_rounds_at_the_end(search):
    """After every setting was tried; records say which round and position; the search then ends for its old reason."""
    done = search()
    assert done.go() is None
    assert done.session.stop_reason == "every setting of the space has been tried"
    rounds = [request for request in done.asked if is_round(request)]
    assert MIN_ROUNDS <= len(rounds) <= MAX_ROUNDS
    assert all(TORCH_DEFAULT in request.configs for request in rounds[:MIN_ROUNDS])
    assert rounds[1].configs == rounds[0].configs[::-1]
    kept = [record for record in done.records() if record["kind"] == "confirm"]
    for record in kept:
        check_record(record)
        assert record["finished_unix_s"] - record["started_unix_s"] == 10.0
    assert [(record["number"], record["round"], record["position"]) for record in kept[:2]] == [(1, 1, 0), (1, 1, 1)]
    origins = {(record["num_workers"], record["origin"]) for record in kept}
    assert (0, "baseline") in origins
    assert (3, "finalist") in origins


def test_rounds_are_no_settings_that_were_tried(search):
    """Neither --max-trials nor the study counts them."""
    done = search(max_trials=3)
    done.go()
    assert done.brain.counts().told == 3
    assert any(map(is_round, done.asked))
    assert done.session.stop_reason == "3 settings were tried (--max-trials)"


def test_the_rates_of_rounds_are_the_answer(search):
    """A finalist has the rate of its rounds, not the reading that made it one; its speed-up is paired."""
    done = search()
    done.go()
    done.folder.write_search(search_json(study="s"))
    run = load_run(done.folder.path)
    ranked = ranking(run)
    three = ranked[ranked["num_workers"] == 3].iloc[0]
    assert three["num_rounds"] >= MIN_ROUNDS
    assert three["num_trials"] == three["num_rounds"]
    true = rate_of(LoaderConfig(num_workers=3, batch_size=64)) / rate_of(TORCH_DEFAULT)
    assert three["speedup_low"] < true < three["speedup_high"]
    assert standing_of(run, ranked).answer == three["config"]


def test_no_round_without_two_settings(search):
    """One setting that works has nothing to be compared with."""
    alone = search(max_trials=1)
    alone.go()
    assert [request.kind for request in alone.asked] == ["search"]
    assert alone.session.stop_reason
    assert alone.session.unconfirmed_because == "there was no second setting to compare with"


def test_time_is_kept_for_rounds(search):
    """Trials of 10 s in 150 s: half of it is for rounds, of two settings at least."""
    timed = search(time_budget_s=150.0, max_trials=None)
    timed.go()
    tried = [request for request in timed.asked if not is_round(request)]
    rounds = [request for request in timed.asked if is_round(request)]
    assert len(rounds) >= MIN_ROUNDS
    assert timed.clock.now - timed.session.budget.started_unix_s <= 150.0 + 10.0
    assert len(tried) >= 3


@pytest.mark.parametrize("options", [{"confirm": False, "max_trials": 5}, {"confirm": True, "time_budget_s": 45.0}])
def test_without_rounds_yours_is_tried_at_the_best_ones_batch_size(search, options):
    """The baseline was skipped, because it is far slower; the answer is compared with its rate at the answer's batch size."""
    found = search(space=SPACE, seeds=[LoaderConfig(num_workers=8, batch_size=32)], **options)
    found.go()
    assert all(request.kind == "search" for request in found.asked)
    other = next(request for request in found.asked if request.origin == "baseline" and request.config != TORCH_DEFAULT)
    assert (other.config.num_workers, other.config.batch_size) == (0, 32)


def test_a_budget_without_room_for_rounds_has_none(search):
    """50 s are for five trials; the answer is not confirmed."""
    short = search(time_budget_s=40.0)
    short.go()
    assert [request.kind for request in short.asked] == ["search"] * 4
    assert re.fullmatch(r"the time left was too short for 3 rounds, which take at least \d+ s \(--time-budget\)", short.session.unconfirmed_because)


def test_a_finalist_that_fails_in_a_round_is_left_out_of_the_next(search):
    failing = search(true=lambda config: 1000.0 + config.num_workers)
    request = failing.go(is_round)
    failure = Failure(kind="hang", phase="measure", message="it hung").columns()
    for position, config in enumerate(request.configs):
        failing.position(request, position, failure if config.num_workers == 2 else None)
    failing.session.confirmation.over(request.number)
    assert any(config.num_workers == 2 for config in request.configs)
    failing.go()
    later = [other for other in failing.asked if is_round(other) and other.number > request.number]
    assert later
    assert all(config.num_workers != 2 for other in later for config in other.configs)


def test_a_resumed_search_goes_on_with_the_next_round(search):
    """The driver was killed inside round 2: its record counts, round 3 comes next."""
    killed = search()
    first = killed.go(is_round)
    for position in range(len(first.configs)):
        killed.position(first, position)
    killed.session.confirmation.over(first.number)
    second = killed.ask()
    killed.position(second, 0)
    again = search()
    again.go()
    numbers = [request.number for request in again.asked]
    assert again.asked[0].kind == "confirm"
    assert numbers == list(range(3, 3 + len(numbers)))
    keys = [(record["kind"], record["number"], record["position"]) for record in again.records() if record["kind"] == "confirm"]
    assert len(set(keys)) == len(keys)


def test_a_faster_setting_without_rounds_is_named_and_not_the_answer(search):
    """A resumed search that has no rounds keeps the confirmed answer, and says how to get the other one into rounds."""
    one = LoaderConfig(num_workers=1, batch_size=64, persistent_workers=True)
    first = search(seeds=[one], max_trials=2)
    first.go()
    more = search(confirm=False)
    more.clock.now = first.clock.now
    more.go()
    more.folder.write_search(search_json(study="s"))
    result = conclude(more.folder, more.session.stop_reason)
    assert result.dataloader["num_workers"] == 1
    assert result.best["search"]["open"][0].startswith("b64 w3 p2 pers (1,")
    assert result.best["search"]["open"][0].endswith("were faster in a trial, but rounds have not confirmed it yet")
    assert any(line.startswith(f"To settle it: feedrate resume {more.folder.path} --time-budget ") for line in explain(result))
    confirmed = search()
    confirmed.go()
    result = conclude(confirmed.folder, confirmed.session.stop_reason)
    assert result.dataloader["num_workers"] == 3
    assert result.best["search"]["open"] == []


def test_the_time_that_is_needed_at_least_is_told(search):
    """Nothing before the first trial; then six trials and three rounds of the finalists, which become fewer."""
    told = []
    done = search(keep_going=False, space=SPACE)
    done.session.display.ahead = lambda seconds, gain_fraction: told.append(seconds)
    request = done.go(is_round)
    assert told[0] is None
    assert told[1] >= 5 * 10.0
    assert told[-1] == rounds_s(done.session.confirmation.finalists) >= (MIN_ROUNDS - 1) * len(request.configs) * 10.0  # a baseline far behind has a round less
    assert done.session.search_reason.endswith("less than 1%")


def test_rounds_whose_supervisor_dies_are_not_tried_for_ever(search):
    losing = search()
    request = losing.go(is_round)
    while request is not None:
        losing.session.confirmation.over(request.number, lost=True)
        request = losing.ask()
    assert len([each for each in losing.asked if is_round(each)]) == 2
    assert losing.session.stop_reason


def test_a_round_waits_for_trials_that_still_run(search):
    """On several hosts a running trial may become a finalist, so Tune is asked to come back later instead of ending the search."""
    several = search(max_trials=4)
    running = [several.ask() for _ in range(4)]
    assert several.ask() is None
    assert several.session.stop_reason is None
    searcher = SessionSearcher(several.session, lambda request, refused: {}, SimpleNamespace(at_once=lambda closed: 4, hosts=lambda: {"a", "b"}))
    assert searcher.suggest("t") is None
    for request in running:
        several.session.completed(request.number, measured(request), None)
    assert several.ask().kind == "confirm"
    several.session.abandon()


def test_rounds_run_beside_each_other_until_there_are_enough_to_judge(search):
    """On several hosts the first rounds begin together; the next waits for what they say."""
    several = search(max_trials=4)
    first = several.go(is_round)
    others = [several.ask() for _ in range(MIN_ROUNDS - 1)]
    assert [request.number for request in [first, *others]] == list(range(1, MIN_ROUNDS + 1))
    assert several.ask() is None
    assert several.session.stop_reason is None


def ceiling_reached(**more):
    """`at_ceiling` for a best setting of 980/s at least, with 4 workers."""
    rate = Rate(sps=1000.0, low_sps=960.0, high_sps=1040.0)
    best = Candidate(config=LoaderConfig(num_workers=4, batch_size=64), rate=rate, spent_s=10.0, memory_bytes=0.0)
    asked = {"best": best, "surely_sps": 980.0, "ceilings": {64: 1005.0}, "batch_sizes": {64}, "waiting": []} | more
    return at_ceiling(**asked)


def test_a_search_at_the_ceiling_has_nothing_to_gain():
    """The model's rate counts, not the luckier reading; at every batch size; and cheaper settings are tried first."""
    assert "b64 w4 p2 trains at 100% of the rate without any loading: compute-bound" in ceiling_reached()
    assert ceiling_reached(ceilings={64: 1015.0}) is None
    assert ceiling_reached(ceilings={64: 1005.0, 128: 1500.0}, batch_sizes={64, 128}) is None
    assert ceiling_reached(batch_sizes={64, 128}) is None, "the ceiling at 128 is not known"
    assert ceiling_reached(waiting=[LoaderConfig(num_workers=2, batch_size=64)]) is None, "2 workers may do as well"
    assert ceiling_reached(waiting=[LoaderConfig(num_workers=8, batch_size=64)])
    assert ceiling_reached(best=None) is None


def test_little_to_gain_ends_a_search_once_enough_was_tried():
    assert "less than 1%" in nothing_to_gain(0.005, 8)
    assert nothing_to_gain(0.02, 8) is None
    assert nothing_to_gain(0.005, 3) is None
    assert nothing_to_gain(None, 8) is None


def test_the_same_failure_again_and_again_ends_a_search():
    failed = {"failure_message": "sample 12 is broken", "failure_kind": "user-code"}
    records = [failed | {"failure_message": f"sample {number} is broken"} for number in range(8)]
    assert "8 settings failed" in same_failures(records)
    assert same_failures(records[1:]) is None
    assert same_failures([*records[1:], {"failure_message": None}]) is None


def test_a_search_ends_where_the_step_is_the_limit(search):
    """Two settings read 98 to 99 % of the ceiling: the search stops, and rounds for 1 % are not worth their time."""
    bound = search(keep_going=False)
    for share in (0.985, 0.99):
        request = bound.ask()
        bound.session.completed(request.number, measured(request, rate_sps=share * 3000.0), None)
    assert bound.ask() is None
    assert "compute-bound" in bound.session.stop_reason
    assert not any(map(is_round, bound.asked))


def test_a_search_ends_when_nothing_more_is_expected(tmp_path):
    """Rates level off at 8 workers: far fewer than the 200 settings of the space are tried, and a good one is among them."""
    found = Search(tmp_path / "run", keep_going=False)
    found.run()
    assert found.session.stop_reason == "another trial is expected to gain less than 1%"
    tried = [request.config for request in found.asked]
    assert len(tried) < 40
    best = max(rate_of(config) for config in SPACE.configs())
    assert max(map(rate_of, tried)) >= 0.97 * best


def test_a_winner_on_the_edge_of_a_default_range_extends_it(tmp_path):
    """Rates rise up to 48 workers, nobody asked for a range, and 32 is its end: the search goes on beyond it."""
    given = {"batch_size": Choice((64,)), "prefetch_factor": Choice((2,)), "persistent_workers": Choice((True,))}
    space = SearchSpace.default(num_cpus=4, has_accelerator=False, given=given)
    text = io.StringIO()
    found = Search(tmp_path / "run", space=space, keep_going=False, text=text)
    found.folder.write_search(search_json(study="s"))
    while (request := found.ask()) is not None:
        rate = 100.0 + 50.0 * min(request.config.num_workers, 48)
        found.session.completed(request.number, measured(request, rate_sps=rate), None)
    assert max(request.config.num_workers for request in found.asked) >= 44
    assert "the fastest setting so far, b64 w32 p2 pers, has as many workers as the default range allows, so the search now goes up to 64 workers" in text.getvalue()
    kept = SearchRecord.read(found.folder).space
    assert kept.values("num_workers")[-1] in (64, 128)
    assert found.session.stop_reason


def test_a_range_that_was_asked_for_is_not_extended():
    top = LoaderConfig(num_workers=3, batch_size=64)
    assert FOUR.extended(top) is None
    default = SearchSpace.default(num_cpus=4, has_accelerator=False)
    assert default.extended(top) is None
    assert default.extended(LoaderConfig(num_workers=32, batch_size=64)) is not None


def test_a_ceiling_that_something_exceeds_is_measured_again(tmp_path):
    """Another process ran while the step was timed: 300/s, and then a setting trains 500/s. It ends nothing."""
    asked = Search(tmp_path / "run", keep_going=False)
    first = asked.ask()
    assert first.measure_step
    slow = {"step_only_num_items": [300] * 3, "step_only_duration_s": [1.0] * 3}
    asked.session.completed(first.number, measured(first, rate_sps=290.0) | slow, None)
    assert asked.session.has_ceiling(64)
    second = asked.ask()
    assert second.config.batch_size == 32
    asked.session.completed(second.number, measured(second, rate_sps=280.0) | slow, None)
    third = asked.ask()
    asked.session.completed(third.number, measured(third, rate_sps=900.0), None)
    assert not asked.session.has_ceiling(third.config.batch_size)
    again = next(request for request in iter(asked.ask, None) if request.config.batch_size == third.config.batch_size)
    assert again.measure_step
    asked.session.completed(again.number, measured(again, rate_sps=800.0), None)
    assert asked.session.has_ceiling(third.config.batch_size)
    assert asked.session.ceilings.at(third.config.batch_size) == pytest.approx(3000.0)
    assert asked.session.search_reason is None
