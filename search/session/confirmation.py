"""The confirmation at the end of a search: one interleaved round after the other until the answer is clear.

If several hosts measure, several rounds run at once, each on one host. A crash loses the round that was running, except for the
records it had written; a resumed search continues with the next round.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from feedrate.analysis.estimate import record_change, record_rate
from feedrate.analysis.rounds import MIN_ROUNDS, Comparison, rounds_of
from feedrate.search.options import SearchOptions
from feedrate.search.session.budget import Budget
from feedrate.search.session.display import Display
from feedrate.search.session.finalists import Candidate, next_round
from feedrate.search.session.host_health import LOST, HostHealth
from feedrate.search.session.trial_request import TrialRequest
from feedrate.search.study.brain import Brain
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.failure import Failure

LOST_ROUNDS = 2
"""Number of rounds whose supervisor may die; after that no further round is begun."""


class Bookkeeping(Protocol):
    """The part of `Session` (session.py) that a confirmation uses."""

    brain: Brain
    options: SearchOptions
    display: Display
    budget: Budget
    health: HostHealth
    records: list[dict[str, Any]]
    clock: Callable[[], float]
    hosts: Callable[[], Collection[str]]

    def seconds_left(self) -> float: ...

    def has_ceiling(self, batch_size: int | None) -> bool: ...

    def learn_host(
        self, config: LoaderConfig, columns: dict[str, Any], failure: dict[str, Any] | None, *, is_baseline: bool
    ) -> frozenset[str] | None: ...

    def write(
        self,
        request: TrialRequest,
        config: LoaderConfig,
        columns: dict[str, Any],
        failure: dict[str, Any] | None,
        **more: Any,
    ) -> dict[str, Any]: ...


class Confirmation:
    """The rounds of one search.

    Args:
        session: the search, which writes the records.
        finalists: what `finalists.choose` returned; if it is empty, there are no rounds.
    """

    def __init__(self, session: Bookkeeping, finalists: Sequence[Candidate]) -> None:
        self.session, self.finalists = session, list(finalists)
        self._round = max((record.get("round") or 0 for record in session.records), default=0)
        self._before = self._round
        self._running: dict[int, TrialRequest] = {}
        self._since_unix_s: dict[int, float] = {}
        self._num_measured: dict[int, int] = {}
        self._lost = 0
        self.is_over = not finalists
        if finalists:
            session.display.confirming([each.config for each in finalists])

    @property
    def running(self) -> list[TrialRequest]:
        """Rounds that have been asked for and have not ended."""
        return list(self._running.values())

    @property
    def num_ahead(self) -> int:
        """Least number of further rounds, including those that are running."""
        return 0 if self.is_over else max(MIN_ROUNDS - (self._round - self._before), 0) + len(self._running)

    def next(self) -> TrialRequest | None:
        """Return the next round. None means that there is none now; once `is_over` is true, there will be none."""
        if self.is_over:
            return None
        session = self.session
        comparison = self._comparison()
        begun = self._round - self._before  # rounds from before a resume inform the comparison, but do not count here
        left_out = session.brain.disqualified
        configs = next_round(self.finalists, comparison, begun + 1, seed=session.options.seed, disqualified=left_out)
        if self._running and (begun >= MIN_ROUNDS or not configs):
            return None  # the running round may give enough to decide
        expected_s = sum(each.spent_s for each in self.finalists if each.config in configs)
        is_late = begun >= MIN_ROUNDS and session.seconds_left() < expected_s
        if not configs or is_late or self._lost >= LOST_ROUNDS:
            self.is_over = True
            return None
        self._round += 1
        request = TrialRequest(
            kind="confirm",
            number=self._round,
            configs=tuple(configs),
            origin="finalist",
            measure_step=not all(session.has_ceiling(config.batch_size) for config in configs),
            max_trial_s=session.options.max_trial_s,
            avoid=self._avoid(configs),
        )
        self._running[request.number] = request
        session.budget.asked(request.key)
        self._since_unix_s[request.number] = session.clock()
        session.display.round_started(request.number, len(configs))
        return request

    def _avoid(self, configs: Sequence[LoaderConfig]) -> frozenset[str]:
        """Return the hosts on which one of the settings failed, perhaps by the host's fault; empty if no other host is left."""
        health = self.session.health
        doubted = health.doubted(configs)
        return doubted if set(self.session.hosts()) - doubted - health.set_aside.keys() else frozenset()

    def measured(
        self, number: int, position: int, columns: dict[str, Any], failure: dict[str, Any] | None
    ) -> bool:
        """Write the record of one setting of a round, which was measured or failed.

        Args:
            number: number of the round.
            position: position of the setting in the round, from 0.
            columns: measurement and host columns, as far as they are known.
            failure: failure columns; None if the setting was measured.

        Returns:
            False if the round must end, because the failure may be the host's fault and another host is to measure the setting.
        """
        request = self._running.get(number)
        if request is None:
            return True  # the round was given up
        config = request.configs[position]
        self._num_measured[number] = position + 1
        yours = any(each.is_baseline and each.config == config for each in self.finalists)
        origin = "baseline" if yours else request.origin
        session = self.session
        since_unix_s = max(self._since_unix_s[number], session.budget.began_unix_s(request.key))
        more: dict[str, Any] = {"round": number, "position": position, "started_unix_s": since_unix_s}
        elsewhere = session.learn_host(config, columns, failure, is_baseline=yours) is not None
        more |= {"retried": True} if elsewhere else {}
        record = session.write(request, config, columns, failure, origin=origin, **more)
        self._since_unix_s[number] = record["finished_unix_s"]
        if failure is not None and not elsewhere:
            self.finalists = [each for each in self.finalists if each.config != config]
        objective = session.options.objective
        session.display.in_round(record, record_rate(record, objective), record_change(record, objective))
        return not elsewhere

    def over(self, number: int, *, lost: bool = False, place: dict[str, Any] | None = None) -> None:
        """Note that a round ended or was lost. Its records count as far as they can be compared.

        Args:
            number: number of the round.
            lost: whether its supervisor died.
            place: the columns host_id and hostname, if they are known.
        """
        request = self._running.pop(number, None)
        if request is None:
            return
        self.session.budget.ended(request.key)
        if lost:
            failure = Failure(kind=LOST, phase="measure", message="the process that supervises the trials of a round died").columns()
            config = request.configs[min(self._num_measured.get(number, 0), len(request.configs) - 1)]
            elsewhere = self.session.learn_host(config, place or {}, failure, is_baseline=False) is not None
            self._lost += not elsewhere

    def _comparison(self) -> Comparison:
        measured = []
        for record in self.session.records:
            rate = record_rate(record, self.session.options.objective) if record["kind"] == "confirm" else None
            if rate is not None:
                measured.append((LoaderConfig.from_dict(record).short(), rate.sps, record))
        return Comparison(rounds_of(measured))
