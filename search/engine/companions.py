"""`Companions`: the other hosts of a trial whose ranks run on several. On each of them, an actor starts the training command, as the supervisor does on its own.

torchrun reads what it is not told from variables PET_...: which of the hosts this is, and where the ranks meet.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from feedrate.search.engine.nodes import here, why_not
from feedrate.search.engine.trial_template import gpu_numbers, template_of
from feedrate.trainables.failure import Failure, sentence
from feedrate.trainables.protocol import AccompanyRequest, Failed, event_line, event_of, read
from feedrate.trainables.sandbox.template import Template

STOP_S = 30.0
"""How long the processes on another host may take to end. Then their actor is killed, which ends them, too."""
START_S = 90.0
"""How long an actor may take to start, which is a matter of seconds. If its host was lost, Ray waits for another one, maybe for ever."""
ALIVE_S = 10.0
"""How long the actor on a busy host may take for an answer that takes milliseconds."""
STACKS_S = 10.0
"""How long another host may take to say where its ranks are."""
PORTS = range(20_000, 32_000)
"""Below those that the kernel gives to outgoing connections: the port is used again for each start of the command."""
OTHER_RENDEZVOUS = ("PET_STANDALONE", "PET_RDZV_BACKEND", "PET_RDZV_ENDPOINT", "PET_RDZV_ID", "PET_RDZV_CONF")
"""Variables by which a node may tell torchrun to let ranks meet elsewhere."""


class HostLost(Exception):
    """A host of a trial was lost, or does not start what the trial needs. The setting is not to blame."""


class HostRefused(Exception):
    """A host of a trial cannot run it; `node_id` is Ray's."""

    def __init__(self, why: str, node_id: str) -> None:
        super().__init__(why)
        self.node_id = node_id


class Companions:
    """The hosts of the further bundles of this actor's placement group. It is an `OtherHosts`.

    Args:
        request: the trial's request, as tuner.py makes it.
    """

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = json.dumps(request)
        self._num_hosts = int(request["num_hosts"])
        self._address, self._port = ray.util.get_node_ip_address(), _free_port()  # type: ignore[no-untyped-call]
        self._actors: list[Any] = []
        self._starting: list[Any] = []
        """What each actor that has not started yet will return first."""
        self._reports: list[Any] = []
        """What each actor will return when it knows of a failure."""
        self._over: list[Any] = []
        """What each actor will return when the training has ended there."""
        self._failure: Failed | None = None
        self._start_until_s = 0.0

    def rendezvous(self, number: int) -> dict[str, str | None]:
        """Return the variables of torchrun on one of the hosts; 0 is the one on which rank 0 runs, and where the ranks meet."""
        return {
            **dict.fromkeys(OTHER_RENDEZVOUS),
            "PET_NNODES": str(self._num_hosts),
            "PET_NODE_RANK": str(number),
            "PET_MASTER_ADDR": self._address,
            "PET_MASTER_PORT": str(self._port),
        }

    def begin(self) -> None:
        """Start an actor on each other host."""
        self._failure, self._start_until_s = None, time.monotonic() + START_S
        group = ray.util.get_current_placement_group()
        assert group is not None, "a trial on several hosts has a placement group"
        for number, bundle in list(enumerate(group.bundle_specs))[1:]:
            more = {name: amount for name, amount in bundle.items() if name not in ("CPU", "GPU")}
            options = {
                "num_cpus": bundle.get("CPU", 0),
                "num_gpus": bundle.get("GPU", 0),
                "resources": more,
                "max_concurrency": 5,  # the methods of one actor run beside each other
                "scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number),
            }
            actor = _COMPANION.options(**options).remote(self._request, self.rendezvous(number))
            self._actors.append(actor)
            self._starting.append(actor.refusal.remote())
            self._reports.append(actor.report.remote())
            self._over.append(actor.accompany.remote())

    def failure(self) -> Failed | None:
        """Return the failure that one of the hosts has reported; None as long as there is none.

        Raises:
            HostLost: an actor has ended, or does not start.
            HostRefused: a host cannot run the trial.
        """
        if self._starting:
            started, self._starting = ray.wait(self._starting, num_returns=len(self._starting), timeout=0)
            for why, node_id in map(_answer, started):
                if why is not None:
                    raise HostRefused(why, node_id)
            if self._starting and time.monotonic() > self._start_until_s:
                raise HostLost(f"a host of the trial did not start feedrate's actor within {START_S:.0f} s")
        if self._failure is None and self._reports:
            ready, self._reports = ray.wait(self._reports, num_returns=len(self._reports), timeout=0)
            reported = [event_of(line.encode()) for line in map(_answer, ready)]
            self._failure = next((each for each in reported if isinstance(each, Failed)), None)
        return self._failure

    def heard(self, failed: Failed) -> None:
        """Find out whether a failure of this host only shows that another one was lost: the ranks notice that before Ray does.

        Raises:
            HostLost: an actor does not answer.
        """
        asked = [actor.refusal.remote() for actor in self._actors]
        answered, silent = ray.wait(asked, num_returns=len(asked), timeout=ALIVE_S) if asked and not self._starting else ([], [])
        if silent:
            raise HostLost(f"a host of the trial does not answer within {ALIVE_S:.0f} s")
        for each in answered:
            _answer(each)

    def waited_for(self) -> str | None:
        """Return which rank hangs on another host while the others wait for it; None if none does."""
        asked = [actor.waited_for.remote() for actor in self._actors]
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=STACKS_S) if asked else ([], [])
        for each in ready:
            with contextlib.suppress(RayError):
                if (found := ray.get(each)) is not None:
                    return str(found)
        return None

    def end(self) -> None:
        """End the training on each other host, and wait until it has ended."""
        for actor in self._actors:
            actor.stop.remote()
        if self._starting:
            _, self._starting = ray.wait(self._starting, num_returns=len(self._starting), timeout=0)
        if self._over and not self._starting:
            ray.wait(self._over, num_returns=len(self._over), timeout=STOP_S)
        for actor in self._actors:
            ray.kill(actor)
        for each in (self._actors, self._starting, self._reports, self._over):
            each.clear()


class _Companion:
    """The actor on another host. Its template asks it, as its `OtherHosts`, whether to stop.

    Args:
        request: the trial's request.
        rendezvous: the variables of torchrun on this host.
    """

    def __init__(self, request: str, rendezvous: dict[str, str | None]) -> None:
        self._request, self._rendezvous = json.loads(request), rendezvous
        self._is_over = False
        self._template: Template | None = None
        self._failed: Failed | None = None
        self._has_failed = threading.Event()

    def refusal(self) -> tuple[str | None, str]:
        """Return why this host cannot run the trial, None if it can, and Ray's id of its node."""
        expects = self._request["expects"]
        return None if expects is None else why_not(here(), **expects), ray.get_runtime_context().get_node_id()

    def accompany(self) -> None:
        """Train until told to stop, or until a failure."""
        shares = self._request["options"]["shares_host"]
        try:
            gpus = gpu_numbers() if shares else []
            with closing(template_of(self._request, gpus, environment=self._rendezvous, other_hosts=self)) as self._template:
                end = read(self._template.run(AccompanyRequest()), lambda news: None)
            assert isinstance(end, Failed), "its last event is a failure"
        except Exception as error:  # otherwise rank 0 would wait for this host until that looks like a hang
            end = Failed(failure=Failure(kind="internal", phase="setup", message=f"feedrate could not start the training: {sentence(error)}"))
        self.heard(end)

    def report(self) -> str:
        """Wait for a failure, and return its event's line."""
        self._has_failed.wait()
        assert self._failed is not None
        where = f"on {socket.gethostname()}: {self._failed.failure.message}"
        return event_line(replace(self._failed, failure=replace(self._failed.failure, message=where))).decode()

    def stop(self) -> None:
        """Let `accompany` end."""
        self._is_over = True

    def begin(self) -> None:
        """Do nothing: the supervisor starts the other hosts."""

    def heard(self, failed: Failed) -> None:
        """Note a failure, if it is the first one."""
        if not self._has_failed.is_set():
            self._failed = failed
            self._has_failed.set()

    def waited_for(self) -> str | None:
        """Return which rank of this host hangs while others wait for it; None if none does."""
        found = None if self._template is None else self._template.waited_for()
        return None if found is None else f"on {socket.gethostname()}: {found}"

    def failure(self) -> Failed | None:
        """Return what ends the training on this host; None as long as it goes on."""
        return Failed(failure=Failure(kind="internal", phase="measure", message="it is over")) if self._is_over else None

    def end(self) -> None:
        """Do nothing: the supervisor ends the other hosts."""


_COMPANION: Any = ray.remote(_Companion)


def _answer(task: Any) -> Any:
    """Return what an actor has answered.

    Raises:
        HostLost: the actor has ended.
    """
    try:
        return ray.get(task)
    except RayTaskError:  # a defect of feedrate in the actor
        raise
    except RayError as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise HostLost(f"a host of the trial was lost: {reason}") from None


def _free_port() -> int:
    """Return a port of this host on which nothing listens now."""
    for port in random.sample(PORTS, 100):
        with socket.socket() as listener:
            try:
                listener.bind(("", port))
            except OSError:
                continue
            return port
    raise HostLost(f"none of a hundred ports from {PORTS.start} to {PORTS.stop} is free, so the ranks cannot meet")
