"""`feedrate submit`, `status`, `logs`, `stop`, `fetch`: a search as a Ray Job, which continues when this machine is switched off."""

from __future__ import annotations

import argparse
import ast
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedrate.analysis.command_line import COMMAND, extended, split
from feedrate.search.cli.search import Search, options_of
from feedrate.search.options import UsageError
from feedrate.search.service.job_facts import FAILED, began, ended_by, exit_code, in_words, status_facts, summary
from feedrate.search.shipping import job_environment
from feedrate.search.shipping.submission import Submission, owner_here
from feedrate.search.terminal import arguments
from feedrate.search.terminal.machine_output import FLAG, answer
from feedrate.trainables.resolve import BUNDLED

if TYPE_CHECKING:
    from feedrate.search.service.jobs import Jobs


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a cluster and a search on it."""
    parser.add_argument("id", metavar="ID", help="ID of the search, as printed by submit (feedrate runs --address URL lists them)")
    parser.add_argument("--address", metavar="URL", help=arguments.API_ADDRESS)
    arguments.add_require_token(parser)


def connect(args: argparse.Namespace) -> Jobs:
    """Connect to the cluster that --address or the environment names, and print notes about it.

    Raises:
        UsageError: neither of them names a cluster.
    """
    from feedrate.search.service.jobs import Jobs

    address = args.address or arguments.api_address()
    if not address:
        raise UsageError("name the cluster's Jobs API: --address URL, such as http://localhost:8265, or RAY_API_SERVER_ADDRESS in the environment")
    jobs = Jobs(address, require_token=args.require_token)
    for note in jobs.notes:
        print(f"note: {note}", file=sys.stderr)
    return jobs


class Submit(Search):
    """Run a search on a cluster, and come back for it later.

    Sends the current folder (without .git, secrets and large files) and feedrate to the cluster; data must be reachable
    from its nodes. Takes the options of `feedrate search`. The run folder is made on the cluster's head; `fetch` copies it here.

      feedrate submit train.py:workload --address http://localhost:8265 --time-budget 10m
    """

    address_help = arguments.API_ADDRESS

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        super().prepare(parser)
        parser.add_argument("--submission-id", metavar="ID", help="ID of the search (default: the workload's name and a random suffix)")
        job_environment.add_to(parser)
        add_follow(parser)
        parser.add_argument("--dry-run", action="store_true", help="list what would be sent, and what would not (and why), but send nothing")

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        if args.out is not None or args.force:
            raise UsageError("submit has no --out and no --force: the run folder is made on the cluster's head, and `feedrate fetch ID -o DIR` copies it here")
        if args.warm_start is not None:
            raise UsageError("--warm-start names a folder on this machine, which the cluster does not have: leave it out")
        _check_storage(args.storage)
        options_of(args)
        words = arguments.without(argv[1:], *OF_SUBMIT)
        if args.script is not None:
            script = _command_inside(args.script)
            target, words = shlex.join(script), [*split(words)[0], COMMAND, *script]
            name = Path(next((word for word in script if word.endswith((".py", ".sh"))), script[-1])).stem
        else:
            target = _inside(args.workload, arguments.workload_options(args))
            words = [target if word == args.workload else word for word in words]
            name = target.rpartition(":")[0] or target
        name = re.sub(r"[^a-zA-Z0-9]+", "-", name).strip("-")
        submission_id = args.submission_id or f"{name}-{os.urandom(3).hex()}"
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", submission_id):
            raise UsageError(f"--submission-id {submission_id!r}: letters, digits, '-', '_' and '.' only")
        folder = None if target in BUNDLED else os.getcwd()  # a bundled workload is part of feedrate and needs no folder
        if args.dry_run:
            list_contents(folder, args.json)
            return None
        env, pip = job_environment.variables(args.env), job_environment.requirements(args.pip)
        jobs = connect(args)
        if args.hardware is not None:
            _check_hardware(jobs, args.hardware)
        command = shlex.join(["feedrate", "search", *words])
        metadata = {"feedrate": version("feedrate"), "kind": "search", "run": submission_id, "workload": target, "command": command}
        return send(args, jobs, ["search", submission_id, *words], submission_id, folder, metadata | {"owner": owner_here()}, env, pip)


OF_SUBMIT = (
    "--address", "--submission-id", "--debug", "--require-token", "--allow-unauthenticated", FLAG, "--follow", "-f", "--dry-run",
    "--env", "--pip",
)  # fmt: skip
"""Flags of submit itself, which are not passed on to the search."""


def add_follow(parser: argparse.ArgumentParser) -> None:
    """Add the switch --follow, with which a command waits for the end of the search."""
    parser.add_argument(
        "-f", "--follow", action="store_true", help="print the search's log until it ends, and exit with its exit code; Ctrl-C stops the printing, not the search"
    )


def list_contents(folder: str | None, as_json: bool) -> None:
    """Print which files of a folder would be sent, the largest first, and which would not."""
    from feedrate.search.shipping.folder_contents import contents

    found = contents(folder) if folder is not None else None
    sent = sorted(found.sent, key=lambda file: -file.num_bytes) if found is not None else []
    left_out = found.left_out if found is not None else ()
    num_bytes = found.num_bytes if found is not None else 0
    facts = {"folder": folder, "num_files": len(sent), "num_bytes": num_bytes}
    answer("submit-dry-run", facts | {"sent": [asdict(file) for file in sent], "left_out": [asdict(entry) for entry in left_out]})
    if as_json:
        return
    for file in sent:
        print(f"{file.num_bytes:12,}  {file.path}")
    print(f"{num_bytes:12,} bytes in {len(sent)} files would be sent of {folder}, and feedrate" if folder else "feedrate alone would be sent")
    for entry in left_out:
        print(f"not sent: {entry.path} ({entry.why})")
    if left_out:
        print("To send one of them all the same, write its name with a '!' before it into .feedrateignore, for example: !keypoints.csv")


def send(
    args: argparse.Namespace,
    jobs: Jobs,
    words: Sequence[str],
    submission_id: str,
    folder: str | None,
    metadata: dict[str, str],
    env: dict[str, str],
    pip: Sequence[str],
) -> int | None:
    """Submit a job, print the commands for it, and with --follow print its log; return the exit code, or None without --follow."""
    print(f"sending {folder or 'feedrate'} to {jobs.address}", file=sys.stderr, flush=True)
    submission = Submission(
        owner=metadata["owner"],
        workload=metadata["workload"],
        command=metadata["command"],
        submission_id=submission_id,
        way_on=jobs.command("resume", metadata["run"], *(word for name in sorted(env) for word in ("--env", name))),
        fetch=jobs.command("fetch", metadata["run"]),
        env=tuple(sorted(env)),
        pip=tuple(pip),
    )
    sent = jobs.submit(words, submission_id=submission_id, folder=folder, metadata=metadata, submission=submission, env=env, pip=pip)
    for note in filter(None, [sent.said()]):
        print(f"note: {note}", file=sys.stderr)
    commands = say_how_to_go_on(jobs, submission_id)
    found = sent.contents
    facts = {
        "id": submission_id,
        "address": jobs.address,
        "workload": metadata["workload"],
        "command": metadata["command"],
        "folder": folder,
        "num_files": 0 if found is None else len(found.sent),
        "num_bytes": 0 if found is None else found.num_bytes,
        "left_out": [] if found is None else [asdict(entry) for entry in found.missed()],
        "commands": commands,
        "dashboard": dashboard(jobs, submission_id),
        "search": None,
    }
    answer("submit", facts)
    if not args.follow:
        return None
    code = follow(jobs, submission_id)
    answer("submit", facts | {"search": status_facts(jobs, submission_id)})
    return code


def say_how_to_go_on(jobs: Jobs, submission_id: str) -> dict[str, str]:
    """Print the new search's id for programs and the next commands for people; return the commands by their name."""
    print(submission_id, flush=True)
    commands = {}
    for verb, *flag in (["status"], ["logs", "-f"], ["stop"], ["fetch"]):
        commands[verb] = jobs.command(verb, submission_id, *flag)
        print(f"  {commands[verb]}", file=sys.stderr)
    print(f"Ray's dashboard: {dashboard(jobs, submission_id)}", file=sys.stderr)
    return commands


def dashboard(jobs: Jobs, submission_id: str) -> str:
    """Return the address of a job's page in Ray's dashboard."""
    return f"{jobs.address}/#/jobs/{submission_id}"


def follow(jobs: Jobs, submission_id: str) -> int:
    """Print a search's log until the search ends, and return its exit code."""
    try:
        for piece in jobs.follow(submission_id):
            print(piece, end="", flush=True)
        job = jobs.job(submission_id)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("no longer printing the log; the search goes on") from None
    code = exit_code(job)
    if code != 0:
        print(f"{submission_id}: {job.status.value}, {ended_by(job)}", file=sys.stderr)
    return FAILED if code is None else code


def resume_there(args: argparse.Namespace, argv: Sequence[str]) -> int | None:
    """Submit a new job that continues an earlier search in its run folder (`feedrate resume ID --address URL`)."""
    _check_storage(args.storage)
    jobs = connect(args)
    before = jobs.job(args.run)
    if not before.status.is_terminal():
        raise UsageError(f"{args.run} is still under way. Stop it first: {jobs.command('stop', args.run)}")
    for other in jobs.continued(before):
        if not other.status.is_terminal():
            stop = jobs.command("stop", other.submission_id)
            raise UsageError(f"{other.submission_id} already continues {args.run}. Stop it first: {stop}")
    if not began(jobs, before):
        again = shlex.join(extended(["feedrate", "submit", *shlex.split(before.metadata["command"])[2:]], "--address", jobs.address))
        raise UsageError(f"{args.run} ended before it had a run folder, so there is nothing to continue ({jobs.command('logs', args.run)} shows why). Submit it again: {again}")
    if (sentence := jobs.nothing_left(before, max_trials=args.max_trials, confirm=args.confirm)) is not None:
        raise UsageError(sentence)
    env, pip = job_environment.kept(before, args.env, args.pip)
    words = [word for word in arguments.without(argv[1:], *OF_SUBMIT) if word != args.run]
    run = before.metadata["run"]
    submission_id = f"{run}-again-{os.urandom(2).hex()}"
    command = shlex.join(["feedrate", "resume", run, *words])
    metadata = before.metadata | {"feedrate": version("feedrate"), "command": command, "owner": owner_here()}
    folder = None if before.metadata["workload"] in BUNDLED else os.getcwd()
    return send(args, jobs, ["resume", run, *words], submission_id, folder, metadata, env, pip)


class Status:
    """Show the state of a submitted search. Exit code 1 if the search failed.

    feedrate status images-3fa9c1 --address http://localhost:8265
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        add_cluster(parser)
        arguments.add_json(parser)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        facts = status_facts(connect(args), args.id)
        answer("status", facts)
        if not args.json:
            self._print(facts)
        return FAILED if facts["status"] == "FAILED" else None

    @staticmethod
    def _print(facts: dict[str, Any]) -> None:
        took = f", {facts['took_s']:.0f} s" if facts["took_s"] is not None else ""
        ended = f", {facts['ended_by']}" if facts["ended_by"] and facts["search_exit_code"] != 0 else ""
        print(f"{facts['id']}: {facts['status']}{took}{ended}")
        print(f"  {facts['command']}")
        for name, progress in {"": facts["progress"], **facts["by_hardware"]}.items():
            if progress is not None:
                print(f"  {f'{name}: ' if name else ''}{in_words(progress)}")
        for other in facts["carried_on_by"]:
            print(f"  continued by {other['id']}: {other['status']}")
        for line in facts["last_lines"]:
            print(f"  | {line}")
        if facts["resume"] and not facts["carried_on_by"]:
            print(f"  carry on with: {facts['resume']}")


class Logs:
    """Print the log of a submitted search.

    feedrate logs images-3fa9c1 -f --address http://localhost:8265
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        add_cluster(parser)
        parser.add_argument(
            "-f", "--follow", action="store_true", help="keep printing until the search ends, and exit with 1 if it failed; Ctrl-C stops the printing, not the search"
        )

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        jobs = connect(args)
        jobs.job(args.id)
        if not args.follow:
            print(jobs.log(args.id), end="")
            return None
        follow(jobs, args.id)
        return FAILED if jobs.job(args.id).status.value == "FAILED" else None


class Stop:
    """Stop a submitted search, or the one that continues it. Its measurements are kept; `fetch` copies them here.

    feedrate stop images-3fa9c1 --address http://localhost:8265
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        add_cluster(parser)
        arguments.add_json(parser)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        jobs = connect(args)
        had_ended = not jobs.stop(args.id)
        later_ids = [other.submission_id for other in jobs.continued(jobs.job(args.id))]
        for name in later_ids:
            jobs.stop(name)
        deadline = time.monotonic() + 90
        while not all((job := jobs.job(name)).status.is_terminal() for name in [*later_ids, args.id]) and time.monotonic() < deadline:
            time.sleep(0.5)
        later = [{"id": other.submission_id, "status": other.status.value} for other in jobs.continued(job)]
        answer("stop", {"id": args.id, "status": job.status.value, "had_ended": had_ended, "carried_on_by": later})
        print(f"{args.id} had ended already: {job.status.value}" if had_ended else f"{args.id}: {job.status.value}")
        for other in later:
            print(f"  continued by {other['id']}: {other['status']}")
        return None


class Fetch:
    """Copy the run folder of a submitted search to this machine, finished or not.

    feedrate fetch images-3fa9c1 --address http://localhost:8265
    """

    def prepare(self, parser: argparse.ArgumentParser) -> None:
        add_cluster(parser)
        parser.add_argument("-o", "--out", metavar="DIR", help="the folder to create (default: feedrate-runs/ID)")
        parser.add_argument("--force", action="store_true", help="replace an earlier copy in that folder")
        arguments.add_json(parser)

    def run(self, args: argparse.Namespace, argv: Sequence[str]) -> int | None:
        to = Path(args.out) if args.out else Path("feedrate-runs") / args.id
        connect(args).fetch(args.id, to, force=args.force)
        runs = sorted(str(path.parent.absolute()) for path in to.rglob("search.json"))
        answer("fetch", {"id": args.id, "folder": to.absolute(), "runs": runs})
        print(f"Saved: {to}")
        return None


def print_searches(args: argparse.Namespace) -> None:
    """Print the searches that were submitted to a cluster (`feedrate runs --address URL`)."""
    jobs = connect(args)
    try:
        found = [summary(job) for job in jobs.searches()]
    except UsageError as error:
        print(f"note: this list has only the searches that Ray still knows: {error}", file=sys.stderr)
        found = [summary(job) for job in jobs.known()]
    answer("searches", {"address": jobs.address, "searches": found})
    if args.json:
        return
    if not found:
        print("no search was submitted to this cluster yet")
    for facts in found:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(facts["started_unix_s"])) if facts["started_unix_s"] else "not started"
        print(f"{facts['id']}  {facts['status']}  {since}  {facts['took_s'] or 0:.0f} s  {facts['owner'] or '-'}  {facts['command']}")


def _check_hardware(jobs: Jobs, name: str) -> None:
    """Refuse a hardware class that the cluster does not have; accept any if the cluster does not answer.

    Raises:
        UsageError: the name matches none of the cluster's classes, or several; the message lists them.
    """
    from feedrate.search.engine.reservation import class_named

    print("asking the cluster what hardware it has", file=sys.stderr, flush=True)
    try:
        kinds = jobs.hardware()
    except UsageError as error:
        anyway = f"The search is submitted anyway; if the cluster has no hardware class {name}, it fails, and its log says so"
        print(f"note: {error}. {anyway}", file=sys.stderr)
        return
    class_named(name, kinds)


def _check_storage(storage: str | None) -> None:
    """Refuse a database address that is unsuitable for a job.

    Raises:
        UsageError: the address contains a password, or names a file that is removed with the job.
    """
    arguments.refuse_password(storage, "everybody on the cluster can see a job's command line", "on the head")
    if storage is not None and re.match(r"sqlite:///(?!/)", storage):
        raise UsageError("--storage names a file in the job's folder, which does not outlive the job: give an absolute path on the head, sqlite:////FOLDER/FILE")


def defines(path: Path, name: str) -> bool:
    """Return whether a Python file defines a name at its top level, without running it; True if that cannot be decided."""
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError as error:
        raise UsageError(f"{path.name} is not valid Python, line {error.lineno}: {error.msg}") from None
    told = {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Expr, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign}
    known: set[str] = set()
    for node in tree.body:
        if type(node) not in told:
            return True  # an if, a try or a loop may define anything
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            known.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            known |= {(each.asname or each.name).partition(".")[0] for each in node.names}
        else:
            known |= {each.id for each in ast.walk(node) if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
    return name in known or "*" in known


def _command_inside(command: Sequence[str]) -> list[str]:
    """Return a training command with paths relative to the folder that is sent.

    Raises:
        UsageError: there is no such program here.
    """
    from feedrate.search.setup.request import make_workload_ref

    make_workload_ref(command, None)
    here = os.getcwd() + os.sep
    return [word.removeprefix(here) for word in command]


def _inside(workload: str, workload_options: dict[str, Any]) -> str:
    """Return the workload's name relative to the folder that is sent.

    Raises:
        UsageError: there is no workload with that name, or it is outside the folder.
    """
    from feedrate.search.setup.request import make_workload_ref

    ref = make_workload_ref(workload, workload_options)
    place, _, function = ref.target.rpartition(":")
    if not place.endswith(".py"):
        return workload
    here = Path.cwd()
    if not defines(Path(place), function):
        raise UsageError(f"{Path(place).name} does not define {function}: name a function at its top level, as in {Path(place).name}:workload")
    if not Path(place).is_relative_to(here):
        raise UsageError(f"{place} is outside of {here}, and only that folder is sent to the cluster: start feedrate in your project's folder")
    return f"{Path(place).relative_to(here)}:{function}"
