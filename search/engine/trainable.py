"""The Tune trainable: a supervisor actor, reused from trial to trial, that runs each trial in a clean child process.

It runs inside a Ray worker. A failed measurement is an ordinary result with a `failure` column, never a Ray error; a Ray error
means that this supervisor itself was lost.
"""

from __future__ import annotations

import json
import socket
from typing import Any

import ray
from ray import tune

from feedrate.search.engine.companions import Companions, HostRefused
from feedrate.search.engine.nodes import here, why_not
from feedrate.search.engine.trial_template import gpu_numbers, template_of
from feedrate.search.options import LOOKS
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.machine.host import host_id
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.protocol import (
    Event,
    Events,
    Failed,
    Measured,
    MeasureRequest,
    News,
    Phase,
    Progress,
    Waiting,
    read,
)
from feedrate.trainables.sandbox.template import Template


class Supervisor(tune.Trainable):
    """An actor that runs one trial after another on its Ray resources. A confirmation round is one trial with several settings."""

    def setup(self, config: dict[str, Any]) -> None:
        """Start the template process, and begin the first trial."""
        expects = json.loads(config["request"])["expects"]
        self._refusal = why_not(here(), **expects) if expects is not None else None
        self._refused_node = ""
        """Ray's id of another node of the trial that cannot run it; empty if it is this one."""
        self._template: Template | None = None
        self._events: Events | None = None
        self._looked = 0
        self._waits = self._has_measured = False
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End the last trial's child process, if it still runs, and begin the next trial."""
        self._end()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Wait for the trial's next event, and return it as a result.

        An event is that the number of windows has reached one in LOOKS, the end of the trial, or the start or end of a wait for the host.
        In a confirmation round the end of each setting is an event, and then the end of the round.
        """
        if self._refusal is not None:
            return self._result(done=True)
        if self._events is None:
            return self._result(done=True)  # the last setting of a round has been reported already
        self._columns: dict[str, Any] = {}
        try:
            event = read(self._events, self._is_reported)
        except HostRefused as refused:
            self._refusal, self._refused_node = str(refused), refused.node_id
            return self._result(done=True)
        match event:
            case Waiting(why=why):
                return self._result(waiting=why)
            case Phase():
                return self._result(proceeds=True)
            case Progress(columns=columns):
                return self._result(columns=columns)
            case end:
                return self._ended(end)

    def _is_reported(self, news: News) -> bool:
        """Return whether Tune is told of this piece of news at once. It is always told of the end of a trial."""
        if isinstance(news, Waiting):
            self._waits = True
            return True
        if self._waits and isinstance(news, Phase):
            self._waits = False
            return True
        if isinstance(news, Progress):
            self._columns = news.columns
            num_windows = len(news.columns["window_duration_s"])
            if not self._is_round and num_windows in LOOKS and num_windows > self._looked:
                self._looked = num_windows
                return True
        return False

    def _ended(self, end: Event) -> dict[str, Any]:
        """Return the result of a setting, and begin the next one of a round."""
        self._end()
        columns = end.columns if isinstance(end, Measured) else self._columns
        failure = end.failure.columns() if isinstance(end, Failed) else None
        result = self._result(columns=columns, failure=failure, done=not self._is_round)
        self._position += 1
        if self._position < len(self._request["configs"]):
            self._measure()
        return result

    def cleanup(self) -> None:
        """End the child process and the template process."""
        self._end()
        if self._template is not None:
            self._template.close()

    def _begin(self, config: dict[str, Any]) -> None:
        self._request = json.loads(config["request"])
        self._options = MeasureOptions.from_json(self._request["options"])
        self._position = 0
        if self._refusal is not None:
            return
        if self._template is None:
            self._gpus = gpu_numbers() if self._options.shares_host else []
            others = Companions(self._request) if self._request["num_hosts"] > 1 else None
            self._template = template_of(
                self._request, self._gpus, environment=None if others is None else others.rendezvous(0), other_hosts=others
            )
        self._is_round = self._request["kind"] == "confirm"
        self._measure()

    def _measure(self) -> None:
        assert self._template is not None
        self._looked = 0
        self._waits = False
        wait_s = 0.0 if self._has_measured else self._request["wait_s"]
        self._has_measured = True
        self._events = self._template.run(
            MeasureRequest(
                config=LoaderConfig.from_dict(self._request["configs"][self._position]),
                options=self._options,
                command=self._request["command"],
                allocated_cpus=self._request["cpus_per_trial"],
                gpus=tuple(self._gpus),
                wait_s=wait_s,
                keep=not self._is_round,  # a child whose step takes long to make is kept; rounds use a fresh child every time
            ),
            max_s=self._options.max_trial_s,
        )

    def _end(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None

    def _result(
        self,
        *,
        columns: dict[str, Any] | None = None,
        failure: dict[str, Any] | None = None,
        done: bool = False,
        waiting: str = "",
        proceeds: bool = False,
    ) -> dict[str, Any]:
        # JSON text, because Tune copies and flattens nested results on every report
        return {
            "columns": json.dumps(columns or {}),
            "failure": json.dumps(failure),
            "position": self._position,
            "waiting": waiting,
            "proceeds": proceeds,
            "refusal": self._refusal or "",
            "node_id": self._refused_node or ray.get_runtime_context().get_node_id(),
            "host": json.dumps({"host_id": host_id(), "hostname": socket.gethostname()}),
            "throughput_sps": 0.0,  # Tune wants its metric in every result; the session computes the real one
            "done": done,
        }
