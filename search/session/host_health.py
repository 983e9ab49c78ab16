"""Decide whether a failure is the fault of the host or of the setting, from what fails where. Imports neither Ray nor Optuna.

A host whose /dev/shm is full, or which lacks a file that the others have, fails every setting within a second, while a
healthy host measures one. So a setting whose failure may be the host's fault is tried again on another host before the failure counts.
A host that fails a setting which another host measures is set aside: it gets no more trials of this search. Until that is known, the
host is under suspicion and gets no new settings.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from feedrate.search.session.search_end import reason_of
from feedrate.trainables.config import LoaderConfig

KINDS_OF_HOSTS = (
    "shm-full", "too-many-files", "out-of-memory", "cuda-out-of-memory", "worker-killed", "trainer-killed", "supervisor-died", "internal",
)  # fmt: skip
"""Failure kinds whose cause may be the host: its memory, its limits, or what else runs on it."""
ERRORS_OF_HOSTS = (
    "FileNotFoundError", "PermissionError", "NotADirectoryError", "IsADirectoryError", "OSError", "BlockingIOError", "TimeoutError",
    "ConnectionError", "ConnectionRefusedError", "ConnectionResetError", "ImportError", "ModuleNotFoundError",
)  # fmt: skip
"""Exceptions of the user's code whose cause may be the host: what is not installed, mounted or reachable there."""
MANY_IN_A_ROW = 3
"""After this many failures in a row on a host, while another host measures, any further one may be the host's."""
HOSTS_PER_SETTING = 2
"""Number of hosts on which a setting fails before its failure counts."""
HOSTS_PER_BASELINE = 4
LOSSES = 2
"""Number of times that a supervisor must die on a host before the host is set aside: once may be an accident."""


LOST = "supervisor-died"


def may_be_hosts(failure: Mapping[str, Any]) -> bool:
    """Return whether a failure may be the host's fault, so that another host could measure the setting.

    That is so if the loader was not made yet, or if the failure's kind or a cause is one that hosts are responsible for.
    """
    causes = [cause.partition(":")[0] for cause in failure.get("failure_cause") or ()]
    kind, phase = failure["failure_kind"], failure.get("failure_phase")
    return phase == "setup" or kind in KINDS_OF_HOSTS or any(name in ERRORS_OF_HOSTS for name in causes)


@dataclass(kw_only=True, slots=True)
class _History:
    """The history of one host."""

    num_measured: int = 0
    num_failed_in_a_row: int = 0
    num_lost: int = 0
    """Number of supervisors that died there with a setting that another host measured."""
    under_suspicion: set[LoaderConfig] = field(default_factory=set)
    """Settings that failed there and are being tried elsewhere."""


class HostHealth:
    """The hosts of one search, each known by its host id.

    Args:
        on_set_aside: called with the host and a sentence when a host is set aside.
    """

    def __init__(self, on_set_aside: Callable[[str, str], None]) -> None:
        self._on_set_aside = on_set_aside
        self.names: dict[str, str] = {}
        """Host id -> host name, for people."""
        self.set_aside: dict[str, str] = {}
        """Host id -> why the host gets no more trials of this search."""
        self._histories: defaultdict[str, _History] = defaultdict(_History)
        self._failures: dict[LoaderConfig, dict[str, Mapping[str, Any]]] = {}
        """Setting -> host id -> failure columns, kept while it is not known whose fault the failures are."""
        self._measured: dict[LoaderConfig, str] = {}
        """Setting -> the last host that measured it."""
        self._of_settings: set[str] = set()
        """Failure reasons that several hosts gave for one setting, which are therefore the setting's fault."""

    @property
    def closed(self) -> set[str]:
        """Hosts that get no new settings: those set aside, and those under suspicion that have measured nothing yet or fail repeatedly."""
        suspects = {
            host
            for host, history in self._histories.items()
            if history.under_suspicion and (not history.num_measured or history.num_failed_in_a_row > 1)
        }
        return suspects | self.set_aside.keys()

    def name_of(self, host: str) -> str:
        """Return the host's name, or its id while the name is not known."""
        return self.names.get(host, host)

    def measured(self, config: LoaderConfig, host: str) -> None:
        """Learn that a host measured a setting; set aside the hosts on which it failed."""
        history = self._histories[host]
        history.num_measured += 1
        history.num_failed_in_a_row = 0
        self._measured[config] = host
        for other, failure in self.forget(config).items():
            if other != host:
                self._blame(other, config, failure, host)

    def failed(
        self, config: LoaderConfig, host: str, failure: Mapping[str, Any], hosts: Collection[str], *, is_baseline: bool = False
    ) -> frozenset[str] | None:
        """Learn that a setting failed on a host; decide whether it is tried on another one.

        Args:
            config: the setting.
            host: where it failed.
            failure: the failure's columns.
            hosts: the hosts that could take a trial of this search.
            is_baseline: whether the setting is a baseline, which is tried again whatever its failure is.

        Returns:
            The hosts to avoid when the setting is tried again, or None if the failure counts.
        """
        self._histories[host].num_failed_in_a_row += 1
        tried = self._failures.setdefault(config, {})
        tried[host] = failure
        rest = set(hosts) - tried.keys() - self.set_aside.keys()
        most = HOSTS_PER_BASELINE if is_baseline else HOSTS_PER_SETTING
        if not rest or len(tried) >= most or not (is_baseline or self._is_doubtful(host, failure)):
            self.forget(config)
            if len(tried) > 1:
                self._of_settings |= {str(reason_of(each)) for each in tried.values() if each["failure_kind"] != LOST}
            return None
        self._histories[host].under_suspicion.add(config)
        manages = self._measured.get(config, host)
        if manages != host:
            self._blame(host, config, failure, manages)
        return frozenset(tried)

    def doubted(self, configs: Iterable[LoaderConfig]) -> frozenset[str]:
        """Return the hosts on which one of these settings failed, as long as it is not known whose fault that is."""
        return frozenset(host for config in configs for host in self._failures.get(config, ()))

    def forget(self, config: LoaderConfig) -> dict[str, Mapping[str, Any]]:
        """Drop the question whether a setting or its hosts caused its failures; return host id -> failure columns of the trial record."""
        for history in self._histories.values():
            history.under_suspicion.discard(config)
        return self._failures.pop(config, {})

    def _is_doubtful(self, host: str, failure: Mapping[str, Any]) -> bool:
        others = [history for other, history in self._histories.items() if other != host]
        others_measure = any(history.num_measured and not history.num_failed_in_a_row for history in others)
        if others_measure and self._histories[host].num_failed_in_a_row >= MANY_IN_A_ROW:
            return True
        return may_be_hosts(failure) and str(reason_of(failure)) not in self._of_settings

    def _blame(self, host: str, config: LoaderConfig, failure: Mapping[str, Any], manages: str) -> None:
        """Set aside a host that failed a setting which another host measured."""
        history = self._histories[host]
        if failure["failure_kind"] == LOST:
            history.num_lost += 1
            if history.num_lost < LOSSES:
                return
        if host not in self.set_aside:
            why = f"{config.short()} failed there, but not on {self.name_of(manages)}: {failure['failure_message']}"
            self.set_aside[host] = why
            self._on_set_aside(host, why)
