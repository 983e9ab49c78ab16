"""Complete the message of a failure with the outcome of loading its batch again without workers."""

from __future__ import annotations

from dataclasses import replace

from feedrate.trainables.diagnose.hang_message import no_batch_because
from feedrate.trainables.diagnose.reloaded import BATCH, COLLATE, PICKLE, Reloaded
from feedrate.trainables.doubt import Doubt
from feedrate.trainables.failure import WITHOUT_WORKERS_TOO, Failure


def settle(failure: Failure, doubt: Doubt, again: Reloaded | None) -> Failure:
    """Return the failure with its complete message; `again` is None if nothing was loaded again."""
    if doubt.about == "silent":
        return _silent(failure, doubt, again)
    if doubt.about == "killed":
        return replace(failure, message=f"{doubt.message} (the loader waited for {doubt.samples}{_trouble(again)})")
    return replace(failure, message=f"{doubt.message} ({_raised(doubt, again)})")


def _raised(doubt: Doubt, again: Reloaded | None) -> str:
    """Return a clause that says for which sample, or in which function, the dataset or collate_fn raised an exception."""
    samples = doubt.samples
    if again is None:
        return f"raised for {samples}"
    source = {COLLATE: f"by collate_fn for {samples}", BATCH: f"for {samples}"}.get(again.doing, f"for {again.doing}")
    if again.outcome == "raised" and _plain(again.error) == _plain(doubt.message):
        return f"raised {source}; {WITHOUT_WORKERS_TOO if doubt.num_workers else 'every time'}"
    if again.outcome == "raised":
        where = "with 0 workers" if doubt.num_workers else "the second time"
        return f"raised for {samples}; {where} {again.error} is raised {source}"
    if again.outcome == "passed":
        elsewhere = "loading succeeds with 0 workers: look for something that a worker process does not have"
        why = elsewhere if doubt.num_workers else "not every time"
        return f"raised for {samples}; {why}"
    return f"raised for {samples}{_trouble(again)}"


def _silent(failure: Failure, doubt: Doubt, again: Reloaded | None) -> Failure:
    """Return the failure with the reason why no batch came before the loader's timeout."""
    waited = doubt.message
    if again is not None and again.outcome == "raised" and not again.reportable:
        message = f"{again.error} (raised for {again.doing}; {waited}, because the exception itself cannot be pickled)"
        return replace(failure, kind="user-code", message=message)
    is_pickling = again is not None and again.outcome == "raised" and again.doing == PICKLE
    why = again.error if again is not None and is_pickling else doubt.dropped
    if why:
        kind, message = no_batch_because(why)
        return replace(failure, kind=kind, message=message)
    if doubt.waits_for is None:
        message = f"{waited}, and no loader worker is working on one{_trouble(again)}"
    else:
        message = f"{waited}: {doubt.waits_for}{_trouble(again)}"
        if doubt.threads and again is not None and again.outcome == "passed":
            names = ", ".join(doubt.threads)
            return replace(failure, message=f"{message}: forked workers lack the thread {names}, which was started before them")
        if again is None or again.outcome not in ("hangs", "died"):
            message += "; if loading is only slow, raise --max-trial-s"
    return replace(failure, message=message)


def _trouble(again: Reloaded | None) -> str:
    if again is None:
        return ""
    if again.outcome == "died":
        return f"; {again.doing} crashes the process {WITHOUT_WORKERS_TOO}: {again.error}"
    if again.outcome == "hangs":
        return f"; {again.doing} hangs {WITHOUT_WORKERS_TOO}"
    if again.outcome == "passed":
        return "; loading succeeds with 0 workers"
    if again.outcome == "unmade":
        return f"; loading could not be tried with 0 workers: {again.error}"
    return ""


def _plain(text: str) -> str:
    """Remove the module from an exception's text, because torch's copy of a traceback has the module and `sentence` has not."""
    kind, colon, rest = text.partition(":")
    return kind.rpartition(".")[2] + colon + rest
