"""The hook that Python loads in every interpreter that a training command starts: it lets feedrate look for the training loader.

feedrate puts this file's folder first on PYTHONPATH. Python's `site` module imports the first `sitecustomize` on sys.path, so
this file then imports the next one, which belongs to the user. Nothing here imports torch, and nothing raises.
"""

import contextlib
import os
import sys


def _begin() -> None:
    """Let feedrate wait for torch.utils.data; if this interpreter has no feedrate, report that to the launcher."""
    helper = next((word for word in sys.orig_argv if word.startswith("from multiprocessing.")), None)
    options = os.environ.get("FEEDRATE_TRAIN")
    if options is not None and helper is None:
        _train(options)
    address = os.environ.get("FEEDRATE_LAUNCHER")
    if address is None:
        return
    try:
        if helper is None:
            from feedrate.trainables.script import measure_hooks

            measure_hooks.install(address)
        elif "spawn_main" in helper or "forkserver" in helper:  # a loader worker, or a rank that the script starts
            from feedrate.trainables.script import measure_hooks, worker_hooks

            worker_hooks.install(address)
            measure_hooks.install(address, is_spawned=True)
    except ImportError as error:
        _report(address, f"{type(error).__name__}: {error}")


def _train(options: str) -> None:
    """Let the loader of a training that runs to its end be tuned; if this interpreter has no feedrate, leave a note for the command."""
    try:
        from feedrate.trainables.accompanying import train_hooks

        train_hooks.install(options)
    except ImportError as error:
        import json

        with contextlib.suppress(OSError), open(os.path.join(json.loads(options)["folder"], "without-feedrate"), "a") as note:
            note.write(f"{sys.executable}: {type(error).__name__}: {error}\n")


def _report(address: str, why: str) -> None:
    """Send a `WithoutFeedrate` (trainables/sandbox/launcher_protocol.py), which cannot be imported here."""
    import json
    import socket

    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as launcher:
        launcher.connect(address)
        launcher.sendall(json.dumps({"says": "without feedrate", "python": sys.executable, "why": why}).encode() + b"\n")


def _chain() -> None:
    """Import the user's own sitecustomize, if there is one, as if this one did not exist."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    own = sys.modules.pop("sitecustomize", None)
    try:
        import sitecustomize  # type: ignore[import-not-found]  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "sitecustomize":
            raise
        if own is not None:
            sys.modules["sitecustomize"] = own


_begin()
_chain()
