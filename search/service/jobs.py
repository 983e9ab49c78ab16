"""A cluster's Ray Jobs API as the cluster commands use it: searches that continue when the client is gone.

The cluster commands are `submit`, `status`, `logs`, `stop`, `fetch`, and `resume` and `runs` with a Jobs API address. By design, Ray's
Jobs API runs the code that it is sent. This client differs from Ray's own: it uses the given address even if RAY_ADDRESS
names another; it reports within seconds that nothing answers at an address; it uses a cluster without token authentication with a
warning, or refuses it if asked to. It needs the extra feedrate[cluster].
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import json
import logging
import os
import shlex
import shutil
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from feedrate.search.engine.ray_cluster import AUTHENTICATE, WRONG_TOKEN, without_token
from feedrate.search.options import UsageError
from feedrate.search.service.folder_job import FolderJob
from feedrate.search.session.job_display import split_log
from feedrate.search.shipping.shipping import Shipment, shipment
from feedrate.search.shipping.submission import VARIABLE, Submission
from feedrate.search.terminal.paste import pasted


class UnknownSearch(UsageError):
    """An error: the cluster has no job with this id."""


OURS = "feedrate"
"""Key in a job's metadata that marks the jobs of feedrate; its value is feedrate's version."""
PROBE_S = 10.0
STOP_WAIT_S = 60
"""Seconds that Ray gives a stopped search to end its trial and save its state, before Ray kills it."""
BEGIN, END = "feedrate-pack-begin", "feedrate-pack-end"
"""Marks around packed bytes in a job's log."""
PACK_S = 300.0
HARDWARE_S = 150.0
"""Longest wait for the cluster's hardware classes: a job must start, and silent nodes are waited for during 90 s (look.py)."""
CLASSES = "feedrate-hardware-classes "
"""Mark before the names of the hardware classes in a job's log."""


class Jobs:
    """The jobs of one cluster.

    Args:
        address: address of the Jobs API, such as http://localhost:8265.
        require_token: refuse a cluster without token authentication.

    Raises:
        UsageError: the cluster does not answer, refuses the token, or has no token authentication although it is required.
    """

    def __init__(self, address: str, *, require_token: bool = False) -> None:
        try:
            import aiohttp  # noqa: F401 - Ray's client does not report that it is missing until it is used
            import requests
            from ray.job_submission import JobSubmissionClient
        except ImportError as error:
            raise UsageError(f"{error.name} is not installed: pip install 'feedrate[cluster]'") from None
        self.address, self.require_token = address.rstrip("/"), require_token
        if urlsplit(address).scheme not in ("http", "https"):
            raise UsageError(f"--address {address}: name the cluster's Jobs API, such as http://localhost:8265 (`ray dashboard` opens a tunnel to it)")
        self.notes: list[str] = []
        for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private"):  # "Uploading package ..."
            logging.getLogger(name).setLevel(logging.ERROR)
        self._check(requests, require_token)
        hidden = {name: os.environ.pop(name) for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS") if name in os.environ}
        try:
            self.client = self._call(JobSubmissionClient, self.address)
        finally:
            os.environ.update(hidden)

    def _check(self, requests: Any, require_token: bool) -> None:
        """Check within PROBE_S seconds that a server answers, and note if it does not ask for a token.

        Raises:
            UsageError: nothing answers, or the server asks for no token although that is required.
        """
        try:
            status = requests.get(f"{self.address}/api/jobs/", timeout=PROBE_S).status_code
        except requests.RequestException as error:
            raise UsageError(
                f"nothing answers at --address {self.address} ({type(error).__name__}). Is the head running, and the tunnel to its Jobs API? (`ssh -N -L 8265:localhost:8265 HEAD`; for `ray up`, `ray dashboard cluster.yaml`)"
            ) from None
        if status == 200:
            text = without_token(f"the Jobs API at {self.address}")
            if require_token:
                raise UsageError(f"{text} (--require-token). {AUTHENTICATE}")
            self.notes.append(text)

    def _call(self, call: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Call Ray's client, and turn its errors into a UsageError with one sentence."""
        from ray.exceptions import AuthenticationError

        try:
            return call(*given, **named)
        except AuthenticationError:
            raise UsageError(f"the cluster at --address {self.address} {WRONG_TOKEN}") from None
        except (RuntimeError, ConnectionError, OSError, ValueError) as error:
            lines = [line for line in str(error).splitlines() if line.strip(" .")] or [type(error).__name__]
            reason = lines[-1] if "Traceback" in lines[0] else lines[0]  # the last line of a server's traceback has the error
            if "404" in reason or "does not exist" in reason:
                raise UnknownSearch(f"the cluster at {self.address} has no such search: {self.command('runs')} lists them") from None
            raise UsageError(f"the cluster at --address {self.address} refused: {reason}") from None

    def command(self, *words: str) -> str:
        """Return a feedrate command for this cluster that people can paste."""
        return pasted(*words, "--address", self.address, *(["--require-token"] if self.require_token else []))

    def submit(
        self,
        words: Sequence[str],
        *,
        submission_id: str,
        folder: str | None,
        metadata: Mapping[str, str],
        submission: Submission | None = None,
        env: Mapping[str, str] | None = None,
        pip: Sequence[str] = (),
    ) -> Shipment:
        """Have the cluster run `python -m feedrate.search.head` with these arguments; return what was sent.

        Args:
            words: the arguments.
            submission_id: id of the job, unique on the cluster.
            folder: the user's folder, which is sent; None sends only feedrate.
            metadata: metadata by which the job can be found.
            submission: facts for the driver about whoever submitted it; None for a job that is no search.
            env: environment variables of the search and its trials.
            pip: requirements that Ray installs for the job and for its trials.
        """
        with shipment(folder, env) as sent:
            shown = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
            if submission is not None:
                shown[VARIABLE] = json.dumps(submission.to_json())
            runtime_env = sent.runtime_env | {"env_vars": shown}
            if pip:
                runtime_env["pip"] = list(pip)
            self._call(
                self.client.submit_job,
                # Ray passes the entrypoint to a shell on the head, so every word is quoted
                entrypoint=shlex.join(["python", "-m", "feedrate.search.head", *words]),
                submission_id=submission_id,
                runtime_env=runtime_env,
                metadata=dict(metadata),
            )
            return sent

    def job(self, submission_id: str) -> Any:
        """Return Ray's details of a feedrate search; a `FolderJob` if Ray has forgotten it and its run folder is on the head."""
        try:
            found = self._call(self.client.get_job_info, submission_id)
        except UnknownSearch:
            if submission_id in self.folder_jobs:
                return self.folder_jobs[submission_id]
            raise
        if OURS not in (found.metadata or {}):
            raise UsageError(f"{submission_id} is not a feedrate search: {self.command('runs')} lists the searches")
        return found

    def known(self) -> list[Any]:
        """Return Ray's details of the searches that Ray knows, the oldest first."""
        ours = [job for job in self._call(self.client.list_jobs) if (job.metadata or {}).get("kind") == "search" and OURS in job.metadata]
        return sorted(ours, key=lambda job: job.start_time or 0)

    def searches(self) -> list[Any]:
        """Return the searches that Ray knows and those that it has forgotten, the oldest first."""
        found = self.known()
        names = {job.submission_id for job in found}
        found += [job for name, job in self.folder_jobs.items() if name not in names]
        return sorted(found, key=lambda job: job.start_time or 0)

    @cached_property
    def folder_jobs(self) -> dict[str, FolderJob]:
        """Id -> job, for the searches whose run folders are on the head; asking the head takes seconds."""
        facts = json.loads(self._ask("list", "", "the list of run folders on the cluster's head"))
        return {job.submission_id: job for each in facts for job in FolderJob.jobs_of(each)}

    def nothing_left(self, job: Any, *, max_trials: int | None, confirm: bool) -> str | None:
        """Return in one sentence that a finished search has nothing left to do, as its run folder on the head says; else None.

        The arguments are those with which `resume` is to continue it (resume.py). Asking the head takes seconds.
        """
        run, name = job.metadata["run"], job.submission_id
        asked = json.dumps({"name": name, "max_trials": max_trials, "confirm": confirm})
        sentence: str | None = json.loads(self._ask("left", run, f"the state of {name}", asked))
        return sentence

    def continued(self, job: Any) -> list[Any]:
        """Return the later jobs that continued this one, the oldest first."""
        if isinstance(job, FolderJob):
            return [self.job(name) for name in job.carried_on_by]
        run = job.metadata.get("run")
        return [other for other in self.known() if other.metadata.get("run") == run and (other.start_time or 0) > (job.start_time or 0)]

    def raw_log(self, submission_id: str) -> str:
        """Return Ray's log, with the lines for programs (job_display.py); if Ray has none, the copy beside the run folder."""
        try:
            return str(self._call(self.client.get_job_logs, submission_id))
        except UnknownSearch:
            run = self.job(submission_id).metadata["run"]
            return self._ask("log", run, f"the log of {submission_id}").decode(errors="replace")

    def _ask(self, what: str, submission_id: str, name: str, *more: str) -> bytes:
        """Return bytes that a job of its own prints, packed, on the head, so that a client needs no access but the Jobs API.

        Args:
            what: pack, log, list or left (head.py).
            submission_id: id of the search.
            name: what is asked for, in words for error messages.
            more: further arguments of that program.

        Raises:
            UsageError: the head does not have it, or does not answer in time.
        """
        asking = f"feedrate-{what}-{os.urandom(4).hex()}"
        self.submit([what, submission_id, *more], submission_id=asking, folder=None, metadata={OURS: "", "kind": what})
        deadline = time.monotonic() + PACK_S
        while not self._call(self.client.get_job_status, asking).is_terminal():
            if time.monotonic() > deadline:
                raise UsageError(f"the cluster did not give {name} within {PACK_S:.0f} s: is its head busy? Try again")
            time.sleep(0.5)
        found = unpacked(str(self._call(self.client.get_job_logs, asking)), name)
        self._call(self.client.delete_job, asking)
        return found

    def log(self, submission_id: str) -> str:
        """Return what the search has printed so far."""
        return split_log(self.raw_log(submission_id))[0]

    def follow(self, submission_id: str, pause_s: float = 1.0) -> Iterator[str]:
        """Yield pieces of the log as they are printed, until its end. After a lost connection it continues at the same place."""
        told, misses = 0, 0
        while True:
            try:
                over = self.job(submission_id).status.is_terminal()
                text = self.raw_log(submission_id)
                text = split_log(text if over else text[: text.rfind("\n") + 1])[0]  # only whole lines while it grows
                misses = 0
            except UsageError:
                misses += 1
                if misses * pause_s > 60:
                    raise
                time.sleep(pause_s)
                continue
            if len(text) > told:
                yield text[told:]
                told = len(text)
            if over:
                return
            time.sleep(pause_s)

    def stop(self, submission_id: str) -> bool:
        """Ask a search to end and keep its measurements; return False if it had ended already."""
        if self.job(submission_id).status.is_terminal():
            return False
        return bool(self._call(self.client.stop_job, submission_id))

    def hardware(self) -> list[str]:
        """Return the hardware classes of the cluster, as a job on its head sees them (look.py).

        Raises:
            UsageError: the cluster did not answer; the search itself can still find them.
        """
        asking = f"hardware-{os.urandom(3).hex()}"
        self.submit(["hardware", asking], submission_id=asking, folder=None, metadata={OURS: "", "kind": "hardware"})
        try:
            self._wait_for(asking, HARDWARE_S, "did not say what hardware it has")
            log = self.raw_log(asking)
        finally:
            self._call(self.client.stop_job, asking)
        lines = [line for line in log.splitlines() if line.strip()]
        if not lines or not lines[-1].startswith(CLASSES):
            raise UsageError(f"the cluster could not say what hardware it has: {lines[-1] if lines else 'it printed nothing'}")
        names: list[str] = json.loads(lines[-1].removeprefix(CLASSES))
        self._call(self.client.delete_job, asking)
        return names

    def _wait_for(self, submission_id: str, seconds: float, otherwise: str) -> None:
        """Wait for the end of a short job.

        Raises:
            UsageError: the job did not end in time; `otherwise` is the part of the message that says what the cluster failed to do.
        """
        deadline = time.monotonic() + seconds
        while not self._call(self.client.get_job_status, submission_id).is_terminal():
            if time.monotonic() > deadline:
                raise UsageError(f"the cluster {otherwise} within {seconds:.0f} s: is its head busy? Try again")
            time.sleep(0.5)

    def fetch(self, submission_id: str, to: Path, *, force: bool = False) -> None:
        """Copy a search's run folder to this machine, in its current state; `to` appears whole or not at all.

        Args:
            submission_id: id of the search.
            to: the folder to make.
            force: replace a run folder that was fetched there before.

        Raises:
            UsageError: there is nothing to fetch yet, or `to` exists.
        """
        run = self.job(submission_id).metadata["run"]
        if to.exists() and not force:
            raise UsageError(f"{to} exists: name another folder with --out, or fetch it again with --force")
        if to.exists() and not any(to.rglob("search.json")):
            raise UsageError(f"{to} is not a run folder, so it is not replaced: name another folder with --out")
        files = self._ask("pack", run, f"the run folder of {submission_id}")
        to.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{to.name}-", dir=to.parent))
        with tarfile.open(fileobj=io.BytesIO(files), mode="r:gz") as archive:
            archive.extractall(part, filter="data")
        part.chmod(0o755)
        if to.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{to.name}-old-", dir=to.parent))
            to.rename(old / to.name)
            part.rename(to)
            shutil.rmtree(old)
        else:
            part.rename(to)


def packed(files: bytes) -> str:
    """Return bytes as lines of a log, with their checksum."""
    text = base64.encodebytes(files).decode()
    return f"{BEGIN} {hashlib.sha256(files).hexdigest()}\n{text}{END}\n"


def unpacked(log: str, what: str) -> bytes:
    """Return the bytes that `packed` put into a log; `what` names them in error messages.

    Raises:
        UsageError: the log has none, or they did not arrive complete.
    """
    _, begun, rest = log.partition(f"{BEGIN} ")
    body, ended, _ = rest.partition(END)
    if not begun or not ended:
        lines = [line for line in log.splitlines() if line.strip()]
        raise UsageError(f"{what} could not be fetched: {lines[-1] if lines else 'the cluster printed nothing'}")
    digest, _, text = body.partition("\n")
    try:
        files = base64.b64decode(text)
    except binascii.Error:
        files = b""
    if hashlib.sha256(files).hexdigest() != digest:
        raise UsageError(f"{what} did not arrive complete: try again")
    return files
