"""host_health.py and what a session makes of it: a sick host loses no setting, and no host is blamed for a setting. No Ray."""

import io

import pytest
from made_up_search import FOUR, TORCH_DEFAULT, Search, measured
from synthetic import search_json
from test_confirmation import is_round

from feedrate.analysis.load import load_run
from feedrate.analysis.schema import check_record
from feedrate.search.session.host_health import HostHealth, may_be_hosts
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import Failure

A, B, C = "id-a", "id-b", "id-c"
SHM = Failure(kind="shm-full", phase="measure", message="/dev/shm is too small").columns()
MISSING = Failure(kind="user-code", phase="loader", message="FileNotFoundError: /data", cause=("FileNotFoundError: /data",)).columns()
VALUE = Failure(kind="user-code", phase="loader", message="ValueError: 3", cause=("ValueError: 3",)).columns()
LOST = Failure(kind="supervisor-died", phase="measure", message="it was killed").columns()


def setting(num_workers):
    return LoaderConfig(num_workers=num_workers, batch_size=32)


@pytest.fixture
def health():
    """With .said: the hosts that were set aside, and why."""
    said = []
    made = HostHealth(lambda host, why: said.append((host, why)))
    made.said = said
    made.names |= {A: "a", B: "b"}
    return made


@pytest.mark.parametrize(
    ("failure", "may_be"),
    [
        (SHM, True),
        (MISSING, True),
        (LOST, True),
        (VALUE, False),
        (VALUE | {"failure_phase": "setup"}, True),
        (VALUE | {"failure_cause": ["RuntimeError: no", "ModuleNotFoundError: No module named 'mine'"]}, True),
        (VALUE | {"failure_kind": "unpicklable"}, False),
        (VALUE | {"failure_kind": "hang"}, False),
    ],
)
def test_which_failures_may_be_the_hosts(failure, may_be):
    """Its memory and limits, what is missing there, and whatever happens before the setting matters."""
    assert may_be_hosts(failure) is may_be


def test_a_host_that_fails_what_another_one_measures_is_set_aside(health):
    """With the setting, the host that measured it, and the reason; until then it gets no new settings."""
    assert health.failed(setting(1), A, SHM, {A, B}) == {A}
    assert health.closed == {A}
    health.measured(setting(1), B)
    assert health.said == [(A, "b32 w1 p2 failed there, but not on b: /dev/shm is too small")]
    assert health.closed == {A}
    assert health.failed(setting(2), B, SHM, {A, B}) is None, "nobody else is left"


def test_a_setting_that_fails_on_two_hosts_is_to_blame(health):
    """No host is under suspicion any more, and the same failure of another setting counts at once; it may be another host's later."""
    health.failed(setting(8), A, SHM, {A, B})
    assert health.failed(setting(8), B, SHM, {A, B}) is None
    assert health.closed == set()
    assert health.failed(setting(16), A, SHM, {A, B}) is None
    assert health.said == []


def test_a_host_that_has_measured_goes_on_after_one_failure(health):
    """The next setting tells more than waiting does; after two in a row it gets none."""
    health.measured(setting(0), A)
    health.failed(setting(1), A, SHM, {A, B})
    assert health.closed == set()
    health.failed(setting(2), A, SHM, {A, B})
    assert health.closed == {A}


def test_a_host_that_falls_sick_is_found_by_its_many_failures(health):
    """Whatever they are, and also where two hosts had the same failure before."""
    health.failed(setting(8), A, SHM, {A, B})
    health.failed(setting(8), B, SHM, {A, B})
    health.measured(setting(1), B)
    assert health.failed(setting(9), A, SHM, {A, B}) is None
    assert health.failed(setting(2), A, VALUE, {A, B}) == {A}
    health.measured(setting(2), B)
    assert [host for host, _ in health.said] == [A]


def test_a_workload_that_fails_everywhere_is_not_tried_twice_for_ever(health):
    """The second setting counts at once."""
    health.failed(setting(1), A, MISSING, {A, B})
    health.failed(setting(1), B, MISSING, {A, B})
    for number in range(2, 9):
        assert health.failed(setting(number), A, MISSING, {A, B}) is None
    assert health.said == []


def test_the_baseline_is_tried_on_several_hosts_whatever_fails(health):
    hosts = {A, B, C, "id-d", "id-e"}
    tried = [health.failed(TORCH_DEFAULT, host, VALUE, hosts, is_baseline=True) for host in (A, B, C)]
    assert tried == [{A}, {A, B}, {A, B, C}]
    assert health.failed(TORCH_DEFAULT, "id-d", VALUE, hosts, is_baseline=True) is None


def test_a_supervisor_that_dies_once_is_an_accident(health):
    """Twice is not."""
    for number, said in ((1, []), (2, [A])):
        assert health.failed(setting(number), A, LOST, {A, B}) == {A}
        health.measured(setting(number), B)
        assert [host for host, _ in health.said] == said


def test_a_host_that_fails_what_was_measured_before_is_set_aside_at_once(health):
    """As in a confirmation round."""
    health.measured(setting(4), B)
    health.measured(setting(5), A)
    assert health.failed(setting(4), A, SHM, {A, B}) == {A}
    assert [host for host, _ in health.said] == [A]


class OnHosts(Search):
    """A search on hosts of its own. `ails(host, request)` gives the failure of a trial there, or None; that takes a second, a measurement ten."""

    def __init__(self, *arguments, hosts=(A, B), ails=lambda host, request: None, **options):
        self.text = io.StringIO()
        super().__init__(*arguments, text=self.text, **options)
        if not self.folder.search.exists():
            self.folder.write_search(search_json(study="s"))
        self.hosts, self.ails = set(hosts), ails
        self.busy = {}
        self.session.hosts = lambda: self.hosts
        self.session.display.names_hosts = True

    def run(self):
        """To its end, as many at once as hosts are open; gives the requests with the hosts that had them."""
        begun, waiting = [], []
        while True:
            at_once = max(len(self.hosts - self.session.health.closed), 1)
            while len(self.busy) + len(waiting) < at_once and (request := self.session.next()) is not None:
                waiting.append((request, self.session.avoided(request)))
            for request, avoided in list(waiting):
                if free := sorted(self.hosts - self.busy.keys() - avoided):
                    waiting.remove((request, avoided))
                    failure = self.ails(free[0], request)
                    begun.append((free[0], request))
                    self.busy[free[0]] = (self.clock.now + (10.0 if failure is None else 1.0), request, failure)
            if not self.busy:
                assert not waiting, "it would wait for ever"
                return begun
            host = min(self.busy, key=lambda each: self.busy[each][0])
            self.clock.now, request, failure = self.busy.pop(host)
            self.end(host, request, failure)

    def end(self, host, request, failure):
        place = {"host_id": host, "hostname": host.removeprefix("id-")}
        if request.kind == "search":
            self.session.completed(request.number, place if failure else measured(request) | place, failure)
            return
        for position in range(len(request.configs)):
            columns = place if failure else measured(request) | place
            if not self.session.confirmation.measured(request.number, position, columns, failure):
                break
        self.session.confirmation.over(request.number)


def test_a_sick_host_loses_no_setting(tmp_path):
    """It fails whatever it gets within a second: two trials at most, both measured elsewhere; the record of each says where."""
    search = OnHosts(tmp_path / "run", ails=lambda host, request: SHM if host == B else None, max_trials=12)
    search.run()
    records = search.records()
    for record in records:
        check_record(record)
        assert record["hostname"] == record["host_id"].removeprefix("id-")
    failed = [record for record in records if record.get("failure_kind")]
    assert {record["host_id"] for record in failed} == {B}
    assert 1 <= len(failed) <= 2
    assert all(record["retried"] for record in failed)
    counts = search.brain.counts()
    assert (counts.told, counts.failed) == (12, 0)
    assert "no more trials of this search run on b: " in search.text.getvalue()
    assert "failed on b: /dev/shm is too small; retrying on another host" in search.text.getvalue()
    run = load_run(search.folder.path)
    assert len(run.latest) == 12
    assert run.latest["failure_kind"].isna().all()


def test_the_baseline_is_not_lost_to_a_host(tmp_path):
    """It is measured first, on whichever host, and again where that one fails."""
    search = OnHosts(tmp_path / "run", ails=lambda host, request: VALUE if host == A else None, max_trials=4)
    (host, first), *_ = search.run()
    assert (host, first.origin) == (A, "baseline")
    baselines = [(record["host_id"], record["attempt"], record.get("failure_kind")) for record in search.records() if record["number"] == 0]
    assert baselines == [(A, 1, "user-code"), (B, 2, None)]


def test_what_no_host_manages_fails(tmp_path):
    """A setting counts as failed once; a workload that is broken everywhere ends the search."""
    search = OnHosts(tmp_path / "run", ails=lambda host, request: SHM if request.config.num_workers > 12 else None, max_trials=14)
    search.run()
    per_number = {}
    for record in search.records():
        per_number.setdefault(record["number"], []).append((record["host_id"], record.get("retried", False)))
    assert all(len({host for host, _ in tries}) == len(tries) and not tries[-1][1] for tries in per_number.values())
    assert search.session.health.set_aside == {}
    broken = OnHosts(tmp_path / "broken", ails=lambda host, request: MISSING)
    broken.run()
    assert broken.session.stop_reason == "the last 8 settings failed for the same reason"


def test_a_round_goes_to_another_host(tmp_path):
    """A host that falls sick before the rounds takes no finalist with it, not the baseline either."""
    search = OnHosts(tmp_path / "run", space=FOUR, confirm=True, ails=lambda host, request: SHM if host == B and request.kind == "confirm" else None)
    begun = search.run()
    assert B in {host for host, request in begun if not is_round(request)}
    rounds = [record for record in search.records() if record["kind"] == "confirm"]
    assert {record["host_id"] for record in rounds if not record.get("failure_kind")} == {A}
    assert {record["retried"] for record in rounds if record.get("failure_kind")} == {True}
    assert len({record["round"] for record in rounds if not record.get("failure_kind")}) >= 3
    assert any(record["origin"] == "baseline" for record in rounds if not record.get("failure_kind"))
    assert search.session.unconfirmed_because is None


def test_a_search_that_is_killed_between_two_hosts_measures_the_setting_when_resumed(tmp_path):
    """Its failure on the first host does not count."""
    search = OnHosts(tmp_path / "run", ails=lambda host, request: SHM)
    request = search.session.next()
    search.end(A, request, SHM)
    again = OnHosts(tmp_path / "run", max_trials=1)
    assert again.reconciled.requeued == [request.config]
    again.run()
    assert [(record["number"], record.get("retried", False)) for record in again.records()] == [(0, True), (1, False)]


def test_the_last_other_host_goes_away(tmp_path):
    """The failure counts then, instead of a wait for ever."""
    search = OnHosts(tmp_path / "run", max_trials=2)
    request = search.session.next()
    search.end(A, request, SHM)
    search.hosts = {A}
    search.run()
    assert search.brain.counts().failed == 1
    assert search.session.health.closed == set()
