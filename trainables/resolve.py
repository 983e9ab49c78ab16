"""Find the workload that a user names: a bundled one, `package.module:function`, `path/to/file.py:function`, or a training command."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from feedrate.trainables.no_arguments import NoArguments, argument_read

BUNDLED = {
    "images": "JPEG files decoded with Pillow and augmented: the processor is the bottleneck",
    "objects": "the same samples fetched one by one over HTTP: waiting is the bottleneck",
    "table": "rows already in memory and a small network: worker processes only cost",
}


class UnknownWorkload(Exception):
    """The name leads to no workload. The message says what was tried, and which names exist."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadRef:
    """A workload by name, from which another process or machine can make it."""

    target: str
    """A bundled name, or module:function, or file.py:function with an absolute path; or the training command as a line of text."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function."""
    folder: str | None = None
    """Folder that comes first on sys.path: the file's folder, or the current one for module:function."""
    cwd: str | None = None
    """Working directory, for relative data paths."""
    command: Sequence[str] | None = None
    """The words of a training command, which is started as it is; None for a workload that a function returns."""
    own_python: bool = False
    """Whether the first word of the command means the interpreter that runs feedrate."""
    loader: str | None = None
    """Which DataLoader of the command is measured: its number, or file.py:line; None is the one that training reads."""

    def __post_init__(self) -> None:
        if self.command is not None:
            object.__setattr__(self, "command", tuple(self.command))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object from which `from_json` makes an equal reference."""
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> WorkloadRef:
        """Return the reference in an object of `to_json`, or in one that has further keys (search.json)."""
        return cls(**{name: saved[name] for name in cls.__dataclass_fields__ if name in saved})


def make_ref(text: str, options: Mapping[str, Any] | None = None, cwd: Path | None = None) -> WorkloadRef:
    """Parse a WORKLOAD argument without importing anything.

    Raises:
        UnknownWorkload: the text has none of the three forms, or its file does not exist.
    """
    cwd = cwd or Path.cwd()
    if text in BUNDLED:
        return WorkloadRef(target=text, options=dict(options or {}), cwd=str(cwd))
    place, colon, function = text.rpartition(":")
    if not colon and text.endswith(".py") and (cwd / text).is_file():
        raise UnknownWorkload(f"{text} is only the file: add the name of the function that returns the workload, as in {text}:workload")
    if not colon or not place or not function.isidentifier():
        known = ", ".join(BUNDLED)
        raise UnknownWorkload(
            f"unknown workload {text!r}: name a bundled one ({known}), package.module:function, or path/to/file.py:function"
        )
    if place.endswith(".py"):
        path = Path(os.path.abspath(cwd / place))
        if not path.is_file():
            raise UnknownWorkload(f"workload file {place} does not exist")
        return WorkloadRef(
            target=f"{path}:{function}", options=dict(options or {}), folder=str(path.parent), cwd=str(cwd)
        )
    return WorkloadRef(target=text, options=dict(options or {}), folder=str(cwd), cwd=str(cwd))


def make_command_ref(command: Sequence[str], *, loader: str | None = None, cwd: Path | None = None) -> WorkloadRef:
    """Return the reference of a training command, such as `["python", "train.py", "--epochs", "90"]`, without starting it.

    Args:
        command: the program and its arguments, each as one word.
        loader: which DataLoader of the command to measure: its number, or file.py:line; None is the one that training reads.
        cwd: the working directory of the command; None is the current one.

    Raises:
        UnknownWorkload: the command is empty, there is no such program, or a script that is named relative to `cwd` does not exist.
    """
    cwd = cwd or Path.cwd()
    if not command:
        raise UnknownWorkload("there is no command after --: write the command that starts your training, as in -- python train.py")
    program = command[0]
    found = shutil.which(str(cwd / program) if os.sep in program else program)
    if found is None:
        is_script = program.endswith(".py") and (cwd / program).is_file()
        way_out = f"Write `-- python {program}`" if is_script else "Write the command that starts your training, as you would type it"
        raise UnknownWorkload(f"the command {program!r} cannot be started: there is no such program. {way_out}")
    is_python = Path(found).name.startswith("python")
    script = command[1] if is_python and len(command) > 1 else ""
    if script.endswith(".py") and not script.startswith("-") and not os.path.isabs(script) and not (cwd / script).is_file():
        raise UnknownWorkload(f"the script {script} does not exist in {cwd}")
    own = is_python and os.path.samefile(Path(found).parent, Path(sys.executable).parent)
    return WorkloadRef(
        target=shlex.join(command), folder=str(cwd), cwd=str(cwd), command=tuple(command), own_python=own, loader=loader
    )


def ranks_command(workload: str, options: Mapping[str, Any], num_ranks: int, *, num_hosts: int = 1) -> list[str]:
    """Return the training command that trains a workload in several ranks, which torchrun starts.

    Args:
        workload: a bundled name, module:function, or file.py:function.
        options: keyword arguments of the function, which JSON can hold.
        num_ranks: number of ranks on each host.
        num_hosts: number of hosts on which the command is started.
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", *(["--standalone"] if num_hosts == 1 else []), "--nproc-per-node", str(num_ranks)]
    words = [*launcher, "-m", "feedrate.trainables.workload_main", workload]
    return [*words, "--options", json.dumps(dict(options))] if options else words


def preload(ref: WorkloadRef) -> Callable[..., Any]:
    """Import the workload's module and return its function, without calling it.

    From then on, `sys.argv` is what `python FILE` without arguments would have: this process belongs to the workload.

    Raises:
        UnknownWorkload: there is no such module or function; or the module reads command-line arguments or ends the program
            while it is imported, as a script may do.
        Exception: whatever the user's module raises while it is imported.
    """
    if ref.target in BUNDLED:
        module = importlib.import_module(f"feedrate.trainables.bundled.{ref.target}")
        return getattr(module, ref.target)  # type: ignore[no-any-return]
    place, _, name = ref.target.rpartition(":")
    if ref.folder is not None and ref.folder not in sys.path[:1]:
        # `feedrate` has no __init__.py: Python would add another folder of that name on sys.path, such as a clone, to the package
        package = sys.modules["feedrate"]
        package.__path__ = list(package.__path__)
        sys.path.insert(0, ref.folder)
    path = _path_of(ref)
    with _without_command_line(path, os.path.basename(path), " while it was imported"):
        module = _from_file(Path(place)) if place.endswith(".py") else _from_name(place)
    function = getattr(module, name, None)
    if not callable(function):
        defined = [
            key
            for key, value in vars(module).items()
            if inspect.isfunction(value) and value.__module__ == module.__name__
        ]
        raise UnknownWorkload(f"{place} has no function {name!r}; it defines: {', '.join(defined) or 'no function'}")
    return function  # type: ignore[no-any-return]


def _path_of(ref: WorkloadRef) -> str:
    """Return the path of the file that has the workload's function; of a module, the path that it should have."""
    place = ref.target.rpartition(":")[0]
    return place if place.endswith(".py") else os.path.join(ref.folder or "", *place.split(".")) + ".py"


def load(ref: WorkloadRef) -> Any:
    """Make the workload.

    Raises:
        UnknownWorkload: there is no such module or function; or the function does not accept the options, reads command-line
            arguments, ends the program, or returned something other than a `Workload`.
        Exception: whatever the user's function raises.
    """
    from feedrate.trainables.workload import Workload

    function = preload(ref)
    _check_options(ref, inspect.signature(function))
    with _without_command_line(_path_of(ref), f"the workload's function {ref.target.rpartition(':')[2]!r}"):
        workload = function(**ref.options)
    if not isinstance(workload, Workload):
        raise UnknownWorkload(f"{ref.target} returned {type(workload).__name__}, not a feedrate.trainables.Workload")
    return workload


class _Refused(SystemExit):
    """Raised instead of argparse's own exit; its code is argparse's message, without the usage text."""


@contextlib.contextmanager
def _without_command_line(path: str, who: str, when: str = "") -> Iterator[None]:
    """Run the user's code with a command line without arguments; afterwards, `sys.argv` is a plain list again.

    Args:
        path: of the user's file, as `sys.argv[0]`.
        who: the file or function that runs, for the message.
        when: a clause for the message that says when it ran.

    Raises:
        UnknownWorkload: the code inside reads an argument, or raised SystemExit; the message has the way out.
    """

    def refuse(self: argparse.ArgumentParser, message: str) -> None:
        raise _Refused(f"{self.prog}: error: {message}")

    own = argparse.ArgumentParser.error
    argparse.ArgumentParser.error = refuse  # type: ignore[method-assign, assignment]
    arguments = sys.argv = NoArguments([path])
    try:
        yield
    except (IndexError, ValueError) as error:
        if (where := argument_read(error)) is None:
            raise
        raise UnknownWorkload(
            f"{who} read the command line's arguments{when} ({where}), and feedrate does not pass any. {_pass_arguments(path)}"
        ) from None
    except SystemExit as error:
        is_sure = isinstance(error, _Refused)
        ended = f"{who} ended the program{when} ({error.code if is_sure else f'SystemExit: {error.code}'})"
        if not (is_sure or arguments.was_read or error.code == 2):  # argparse and similar libraries exit with 2
            raise UnknownWorkload(
                f"{ended}: feedrate imports the file and calls the function, so neither may end the program. Move the code that ends it "
                'under `if __name__ == "__main__":`'
            ) from None
        raise UnknownWorkload(
            f"{ended}: your code {'parses' if is_sure else 'probably parses'} command-line arguments, and feedrate does not pass any. "
            f"{_pass_arguments(path)}"
        ) from None
    finally:
        argparse.ArgumentParser.error = own  # type: ignore[method-assign]
        if sys.argv is arguments:
            sys.argv = list(arguments)


def _pass_arguments(path: str) -> str:
    """Return the ways out for a file that needs command-line arguments."""
    return (
        'Parse them under `if __name__ == "__main__":`, or give every argument a default. If the file trains when it is started as a '
        f"script, use its command instead: feedrate search -- python {shlex.quote(os.path.relpath(path))} ARGUMENTS"
    )


def _check_options(ref: WorkloadRef, signature: inspect.Signature) -> None:
    name = ref.target.rpartition(":")[2]
    takes_any = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())
    for option in ref.options:
        if option not in signature.parameters and not takes_any:
            flag = option.removesuffix("_s").replace("_", "-")
            raise UnknownWorkload(f"workload {name} does not take --{flag}: leave it out")
    try:
        signature.bind(**ref.options)
    except TypeError as error:
        raise UnknownWorkload(f"feedrate calls the workload's function {name!r} without arguments, which it does not accept: {error}. Give its parameters default values") from None


def _from_name(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise UnknownWorkload(f"no module named {name!r} is importable from {os.getcwd()}") from None
        raise


def _from_file(path: Path) -> ModuleType:
    """Import a file under its stem, the name under which spawned loader workers will find it too."""
    loaded = sys.modules.get(path.stem)
    if loaded is not None and getattr(loaded, "__file__", None) == str(path):
        return loaded
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise
    return module
