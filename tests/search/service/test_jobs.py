"""submit, status, logs, stop, fetch, resume and runs on a real `ray start --head` with a token."""

import getpass
import json
import os
import re
import socket
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from answers import answer
from conftest import QUICK, TOY, records
from ray_head import TOKEN, Head, free_port

from feedrate.analysis.load import load_run
from feedrate.search.cli.submit import defines
from feedrate.search.options import UsageError
from feedrate.search.service.jobs import packed, unpacked

SEES = "import os, sys\nprint('sees', *sorted(name for name in os.listdir('.') if name != '__pycache__'), os.environ.get('WHO'), file=sys.stderr)\nimport helper\n"
DRIVE = Path(__file__).with_name("drive.sh")
WITH_TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """One cluster for all tests."""
    made = Head(tmp_path_factory.mktemp("head"))
    yield made
    made.end()
    assert made.command.alive() == {}


@pytest.fixture
def project(tmp_path):
    """A user's folder, with what must not travel."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "train.py").write_text(SEES + TOY)
    (folder / "helper.py").touch()
    (folder / ".env").write_text("TOKEN=secret")
    with (folder / "large.bin").open("wb") as large:
        large.truncate(11 * 2**20)
    return folder


@pytest.fixture
def there(feedrate, head, project):
    """Runs a feedrate command against the cluster, with its token, from the user's folder."""

    def run(*arguments, **more):
        return feedrate(*arguments, "--address", head.url, **{"cwd": project} | WITH_TOKEN | more)

    return run


def followed(there, submission_id, code=0):
    """The whole log of a search, once it has ended."""
    log = there("logs", submission_id, "-f", timeout_s=300)
    assert log.code == code, log.stderr
    assert "feedrate-progress" not in log.stdout
    return log.stdout


@pytest.mark.slow
def test_a_search_goes_on_when_the_client_is_gone(there, head, project, tmp_path):
    """It sees the user's code, neither secrets nor large files; its run folder is fetched, and read as one made here."""
    sent = there("submit", "train.py:workload", *QUICK, "--wait", "0", "--max-trials", "3", "--submission-id", "mine", "--env", "WHO=of-nobodys-business")
    assert sent.code == 0, sent.stderr
    assert sent.stdout == "mine\n"
    assert "note: not sent to the cluster: .env (may hold a secret), large.bin (over 10 MiB); with .feedrateignore you can" in sent.stderr
    assert f"  RAY_AUTH_MODE=token feedrate logs mine -f --address {head.url}\n" in sent.stderr
    assert f"Ray's dashboard: {head.url}/#/jobs/mine\n" in sent.stderr
    assert "INFO" not in sent.stderr
    for path in project.iterdir():
        path.unlink()
    log = followed(there, "mine")
    assert "sees helper.py train.py of-nobodys-business\n" in log
    assert "3 settings were tried (--max-trials)" in log
    assert f"Both are on the cluster's head. To copy them: RAY_AUTH_MODE=token feedrate fetch mine --address {head.url}\n" in log
    state = there("status", "mine")
    assert state.stdout.startswith("mine: SUCCEEDED, ")
    assert "  | Saved: " in state.stdout
    facts = answer(there("status", "mine", "--json").stdout, "status")
    assert (facts["id"], facts["status"], facts["workload"]) == ("mine", "SUCCEEDED", "train.py:workload")
    assert (facts["search_exit_code"], facts["message"], facts["carried_on_by"]) == (0, None, [])
    assert facts["progress"]["run"] == str(head.runs / "mine")
    assert facts["progress"]["num_complete"] + facts["progress"]["num_pruned"] + facts["progress"]["num_failed"] == 3
    assert facts["progress"]["best"]["samples_per_second"] > 0
    listed = there("runs", RAY_API_SERVER_ADDRESS="http://127.0.0.1:9").stdout
    assert listed.count("mine  SUCCEEDED") == 1
    assert f"  {getpass.getuser()}@{socket.gethostname()}  feedrate search train.py:workload" in listed
    assert "of-nobodys-business" not in listed + sent.stdout + sent.stderr
    facts = answer(there("runs", "--json").stdout, "searches")
    assert [each["status"] for each in facts["searches"] if each["id"] == "mine"] == ["SUCCEEDED"]
    fetched = there("fetch", "mine", "--json")
    assert answer(fetched.stdout, "fetch")["runs"] == [str(project / "feedrate-runs" / "mine")]
    run = load_run(project / "feedrate-runs" / "mine")
    assert len(run.trials) == 3
    assert (project / "feedrate-runs" / "mine" / "best.json").read_bytes() == (head.runs / "mine" / "best.json").read_bytes()
    assert (project / "feedrate-runs" / "mine" / "report.html").exists()
    written = "".join(path.read_text() for path in (head.runs / "mine").iterdir() if path.is_file())
    assert TOKEN not in written
    assert "of-nobodys-business" not in written
    again = there("fetch", "mine")
    assert again.code == 2
    assert "feedrate-runs/mine exists: name another folder with --out, or fetch it again with --force" in again.stderr
    (project / "feedrate-runs" / "mine" / "report.html").write_text("old")
    assert there("fetch", "mine", "--force").code == 0
    assert (project / "feedrate-runs" / "mine" / "report.html").read_text() != "old"
    assert not list((project / "feedrate-runs").glob(".mine*"))
    for more in ([], ["--max-trials", "3", "--confirm"]):
        finished = there("resume", "mine", *more)
        assert finished.code == 2
        assert finished.stderr.startswith("feedrate: mine is finished: 3 settings were tried, and --max-trials counts these, too. Resume it with --max-trials 4 or more")
    assert "mine-again" not in there("runs").stdout, "no job was submitted"
    taken = there("submit", "table", "--submission-id", "mine")
    assert taken.code == 2
    assert "refused: " in taken.stderr
    assert "already exists" in taken.stderr
    assert there("fetch", "mine", "-o", tmp_path / "other").code == 0


PLAIN = """
import sys
import torch
from helper import Rows

if __name__ == "__main__":
    assert sys.argv[1:] == ["--lr", "0.1"]
    model = torch.nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in torch.utils.data.DataLoader(Rows(), batch_size=16, num_workers=1):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
"""
ROWS = """
import torch

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4000
    def __getitem__(self, index):
        return torch.full((8,), float(index)), index % 2
"""


@pytest.mark.slow
def test_a_training_command_is_submitted_with_its_folder(feedrate, head, project):
    """The script runs in the copy of the folder that was sent, with feedrate's hook from the copy of feedrate; a whole search takes a while."""
    (project / "plain.py").write_text(PLAIN)
    (project / "helper.py").write_text(ROWS)
    command = ["python", str(project / "plain.py"), "--lr", "0.1"]
    asked = ["--num-workers", "1..2", "--max-trial-s", "1", "--max-trials", "1", "--no-confirm", "--wait", "0", "--submission-id", "script"]
    sent = feedrate("submit", *asked, "--follow", "--address", head.url, "--", *command, cwd=project, **WITH_TOKEN)
    assert sent.code == 0, sent.stdout + sent.stderr
    search = json.loads((head.runs / "script" / "search.json").read_text())
    assert search["workload"]["command"] == ["python", "plain.py", "--lr", "0.1"]
    assert search["workload"]["name"] == "plain"
    assert {record.get("failure_message") for record in records(head.runs / "script")} == {None}


@pytest.mark.slow
def test_a_shell_script_drives_a_search_by_json_alone(start, head, project, home):
    """Submitted, waited for, fetched and exported, with what the script prints as the only source. Takes over 10 s for the search."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    script = start(
        "train.py:workload", head.url, *QUICK, "--wait", "0", "--max-trials", "1", "--submission-id", "driven",
        program=[DRIVE], cwd=project, PATH=path, **WITH_TOKEN,
    )  # fmt: skip
    assert script.wait(300) == 0, script.stderr
    dataloader, rate = map(json.loads, script.stdout.splitlines())
    assert dataloader["num_workers"] == 0
    assert rate == json.loads((head.runs / "driven" / "best.json").read_text())["throughput"]["samples_per_second"]
    assert "RUNNING: null" in script.stderr
    assert "SUCCEEDED: {" in script.stderr
    (project / "train.py").write_text("def workload():\n    raise OSError('no disk')\n")
    failing = start("train.py:workload", head.url, program=[DRIVE], cwd=project, PATH=path, **WITH_TOKEN)
    assert failing.wait(300) == 1
    assert failing.stderr.endswith("exit code 1: the search failed\n")
    assert failing.stdout == ""


@pytest.mark.slow
def test_a_search_is_stopped_and_carried_on(there, start, head, project):
    """Stopping keeps what was measured, and ends its trial in order; from the same folder it goes on, with nothing twice."""
    sent = there("submit", "train.py:workload", *QUICK, "--wait", "0", "--submission-id", "long", "--json")
    facts = answer(sent.stdout, "submit")
    assert (facts["id"], facts["workload"], facts["num_files"], facts["search"]) == ("long", "train.py:workload", 2, None)
    assert {entry["path"]: entry["why"] for entry in facts["left_out"]} == {".env": "may hold a secret", "large.bin": "over 10 MiB"}
    assert facts["commands"]["logs"] == f"RAY_AUTH_MODE=token feedrate logs long -f --address {head.url}"
    run = head.runs / "long"
    following = start("logs", "long", "-f", "--address", head.url, cwd=project, **WITH_TOKEN)
    head.command.until(lambda: len(records(run)) >= 2, within_s=200)
    following.until(lambda: "trial 1" in following.stdout)
    following.process.terminate()
    assert following.wait() == 143
    assert following.stderr.endswith("no longer printing the log; the search goes on\n")
    soon = there("resume", "long")
    assert soon.code == 2
    assert f"long is still under way. Stop it first: RAY_AUTH_MODE=token feedrate stop long --address {head.url}" in soon.stderr
    early = there("fetch", "long", "-o", project / "early")
    assert early.code == 0, early.stderr
    assert len(load_run(project / "early").trials) >= 2
    assert answer(there("stop", "long", "--json").stdout, "stop")["status"] == "STOPPED"
    state = there("status", "long", "--json")
    facts = answer(state.stdout, "status")
    assert (state.code, facts["status"], facts["search_exit_code"], facts["ended_by"]) == (0, "STOPPED", 143, "stopped on request")
    assert "long had ended already: STOPPED" in there("stop", "long").stdout
    assert "interrupted; what was measured is kept" in there("logs", "long").stdout
    head.command.until(lambda: not head.command.trial_processes())
    kept = len(records(run))
    again = there("resume", "long", "--max-trials", str(kept + 2))
    assert again.code == 0, again.stderr
    twice = there("resume", "long")
    assert twice.code == 2
    assert f"{again.stdout.strip()} already continues long. Stop it first: " in twice.stderr
    log = followed(there, again.stdout.strip())
    assert f"{kept + 2} settings were tried (--max-trials)" in log
    progress = answer(there("status", again.stdout.strip(), "--json").stdout, "status")["progress"]
    best = json.loads((run / "best.json").read_text())
    assert progress["best"]["is_answer"]
    assert progress["best"]["dataloader"] == best["dataloader"]
    assert progress["best"]["samples_per_second"] == best["throughput"]["samples_per_second"]
    assert progress["elapsed_s"] > 1
    assert f"  {kept + 2} of {kept + 2} settings tried" in there("status", again.stdout.strip()).stdout
    assert f"carrying on after {kept} settings" in log
    assert f"  continued by {again.stdout.strip()}: SUCCEEDED\n" in there("status", "long").stdout
    numbers = [record["number"] for record in records(run)]
    assert len(numbers) == len(set(numbers)) == kept + 2  # the number of the trial that was interrupted is left out
    assert there("fetch", again.stdout.strip(), "-o", project / "whole").code == 0
    assert len(load_run(project / "whole").trials) == kept + 2
    once_more = there("resume", again.stdout.strip(), "--max-trials", str(kept + 3))
    assert re.fullmatch(r"long-again-[0-9a-f]{4}\n", once_more.stdout)
    there("stop", "long")


def planted(number):
    """A secret that can be found wherever it is written."""
    return f"planted-{number:02d}-5ec7e7"


IN_ENVIRONMENT = [
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "WANDB_API_KEY", "HF_TOKEN",
    "OPENAI_API_KEY", "GITHUB_TOKEN", "PGPASSWORD", "KAGGLE_KEY",
]  # fmt: skip
IN_FOLDER = [
    ".git-credentials", ".docker/config.json", ".envrc", "token.json", "kaggle.json", "prod.tfvars", "my-service-account.json",
    "passwords.txt", ".aws/credentials", "conf/api_key.csv",
]  # fmt: skip
PAGES = ("/api/jobs/", *(f"/api/v0/{what}?detail=true&limit=1000" for what in ("actors", "tasks", "workers", "runtime_envs", "nodes", "jobs")))


def where(texts, folders, head):
    """Text -> every file and every answer of Ray's API that holds it; texts that are nowhere are left out."""
    found = {}

    def look(name, content):
        for text in texts:
            if text.encode() in content:
                found.setdefault(text, []).append(name)

    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file():
                look(path, path.read_bytes())
    for page in PAGES:
        request = urllib.request.Request(head.url + page, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=60) as reply:
            look(page, reply.read())
    return found


@pytest.mark.slow
def test_planted_secrets_are_nowhere(there, start, head, project):
    """In the environment, the folder and the options; neither a submitted nor a joined search writes one down, sends or shows it.

    Looked for in every file of Ray's folder (logs of all processes, unpacked packages), of the head's home and of the run
    folders, and in what the state API and the Jobs API say. Takes over 10 s, because two searches are made.
    """
    environment = {name: planted(number) for number, name in enumerate(IN_ENVIRONMENT)}
    for number, name in enumerate(IN_FOLDER, len(IN_ENVIRONMENT)):
        (project / name).parent.mkdir(exist_ok=True)
        (project / name).write_text(planted(number))
    (project / "train.py").write_text("# harmless-5ec7e7\n" + (project / "train.py").read_text())
    once = [*QUICK, "--wait", "0", "--max-trials", "1"]
    given = {"OF_ENV": planted(21)}
    sent = there("submit", "train.py:workload", *once, "--submission-id", "planted", "--env", "OF_ENV", "--follow", timeout_s=300, **environment | given)
    assert sent.code == 0, sent.stderr
    address = ["--address", f"127.0.0.1:{head.port}"]
    joined = start("search", "train.py:workload", *once, *address, cwd=project, RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0", **WITH_TOKEN, **environment)
    assert joined.wait(300) == 0, joined.stderr
    for command in (("submit", "train.py:workload", "--address", head.url), ("search", "train.py:workload", *address)):
        refused = start(*command, "--storage", f"postgresql://ann:{planted(20)}@db/x", cwd=project, **WITH_TOKEN)
        assert refused.wait() == 2
        assert planted(20) not in refused.stderr
    folders = [head.folder, head.home, project / "feedrate-runs"]
    found = where(["harmless-5ec7e7", *map(planted, range(22))], folders, head)
    packages = [path for path in found.pop("harmless-5ec7e7") if isinstance(path, Path)]
    assert {path.name for path in packages} == {"train.py"}, "what is sent is looked at, too"
    of_env = found.pop(planted(21))  # --env needs it there, and nobody else may read it
    assert {(path.name, path.stat().st_mode & 0o777) for path in of_env} == {("values.json", 0o600)}, of_env
    assert found == {}
    assert planted(0)[:8] not in sent.stdout + sent.stderr + joined.stdout + joined.stderr


@pytest.mark.slow
def test_a_search_that_finds_nothing_says_so(there):
    """Ray's word for it, and ours."""
    sentence = "--cpus-per-trial 999: the largest node has 2 CPUs"
    sent = there("submit", "train.py:workload", "--cpus-per-trial", "999", "--submission-id", "wrong", "--follow", timeout_s=300)
    assert sent.code == 2, sent.stderr
    assert sent.stdout.startswith("wrong\n")
    assert sentence in sent.stdout
    assert sent.stderr.endswith("wrong: FAILED, exit code 2: wrong usage\n")
    assert sentence in followed(there, "wrong", code=1)
    state = there("status", "wrong")
    assert state.code == 1
    assert re.match(r"wrong: FAILED, \d+ s, exit code 2: wrong usage\n", state.stdout)
    state = there("status", "wrong", "--json")
    assert state.code == 1
    facts = answer(state.stdout, "status")
    assert (facts["status"], facts["search_exit_code"], facts["exit_code"], facts["progress"]) == ("FAILED", 2, 1, None)
    assert facts["ended_by"] == "exit code 2: wrong usage"
    assert facts["message"].startswith(f"feedrate: {sentence}")
    fetched = there("fetch", "wrong")
    assert fetched.code == 2
    assert "there is no run folder: the search has not begun, or failed before it did" in fetched.stderr
    resumed = there("resume", "wrong")
    assert resumed.code == 2
    assert "wrong ended before it had a run folder, so there is nothing to continue" in resumed.stderr
    assert "Submit it again: feedrate submit train.py:workload --cpus-per-trial 999 --address" in resumed.stderr


@pytest.mark.slow
def test_an_unknown_hardware_class_is_refused_before_anything_is_submitted(there):
    """With the names that the cluster has, one of which is then taken. It takes 20 s: two short jobs ask, and a search begins."""
    refused = there("submit", "train.py:workload", "--hardware", "absent", "--submission-id", "nowhere")
    assert refused.code == 2
    said = refused.stderr.splitlines()[-1]
    assert "--hardware absent is no hardware class of the cluster: name one of 2cpu-" in said
    unknown = there("status", "nowhere")
    assert unknown.code == 2
    name = said.rpartition(" ")[2]
    taken = there("submit", "train.py:workload", "--hardware", name, "--submission-id", "somewhere", "--max-trials", "1")
    assert taken.code == 0, taken.stderr
    there("stop", "somewhere")
    assert "hardware" not in there("runs").stdout.replace("--hardware", "")


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "refuses the token, or got none: set RAY_AUTH_MODE=token"),
        (WITH_TOKEN | {"RAY_AUTH_TOKEN": "0" * 48}, "refuses the token"),
    ],
)
def test_without_the_token_there_is_no_way_in(there, environment, reason):
    for command in (["submit", "train.py:workload"], ["runs"], ["fetch", "mine"]):
        refused = there(*command, **{"RAY_AUTH_TOKEN": ""} | environment)
        assert refused.code == 2
        assert reason in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


def test_an_address_where_nothing_or_something_else_is(feedrate, there, project):
    """Told at once, in one sentence, with the way out."""
    nothing = feedrate("runs", "--address", f"http://127.0.0.1:{free_port()}", cwd=project)
    assert nothing.code == 2
    assert "nothing answers at" in nothing.stderr
    no_url = feedrate("status", "x", "--address", "auto", cwd=project)
    assert no_url.code == 2
    assert "--address auto: name the cluster's Jobs API" in no_url.stderr
    unknown = there("logs", "never")
    assert unknown.code == 2
    assert "has no such search: RAY_AUTH_MODE=token feedrate runs --address" in unknown.stderr


class Open(BaseHTTPRequestHandler):
    """A Jobs API that asks nobody for a token, as far as the first question."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"ray_version": "2.60.0"}' if self.path == "/api/version" else b"[]")

    def log_message(self, *arguments):
        pass


def test_a_cluster_without_tokens_is_used_with_a_warning(feedrate, project):
    """And refused where a token is required, by flag or environment; the switch of the last release does nothing but a note."""
    with HTTPServer(("127.0.0.1", 0), Open) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        warned = feedrate("runs", "--address", url, "--allow-unauthenticated", cwd=project)
        refused = [
            feedrate("runs", "--address", url, "--require-token", cwd=project),
            feedrate("runs", "--address", url, cwd=project, FEEDRATE_REQUIRE_TOKEN="1"),
        ]
        server.shutdown()
    assert warned.code == 0, warned.stderr
    assert warned.stdout == "no search was submitted to this cluster yet\n"
    old, warning, _ = warned.stderr.splitlines()  # the last one: its run folders cannot be asked for
    assert old.startswith("note: --allow-unauthenticated no longer has any effect")
    assert warning == f"note: the Jobs API at {url} does not ask for a token: anyone who can reach it can run code on the cluster"
    for each in refused:
        assert each.code == 2
        assert "does not ask for a token: anyone who can reach it can run code on the cluster (--require-token). Start the cluster with a token" in each.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["train.py:workload", "--out", "x"], "submit has no --out"),
        (["train.py:workload", "--warm-start", "x"], "--warm-start names a folder on this machine"),
        (["train.py:workload", "--storage", "postgresql://ann:pw@db/x"], "--storage contains a password"),
        (["train.py:workload", "--storage", "sqlite:///x.db"], "--storage names a file in the job's folder"),
        (["train.py:workload", "--submission-id", "../x"], "--submission-id '../x'"),
        (["train.py:workload", "--max-trials", "0"], "must be 1 or more"),
        (["../toy.py:workload"], "is outside of"),
        (["absent.py:workload"], "does not exist"),
        (["train.py:absent"], "train.py does not define absent: name a function at its top level, as in train.py:workload"),
    ],
)
def test_what_cannot_be_submitted_is_said_before_anything_is_sent(feedrate, project, arguments, reason):
    refused = feedrate("submit", *arguments, "--address", "http://127.0.0.1:9", cwd=project)
    assert refused.code == 2
    assert reason in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "is_there"),
    [
        ("def workload(): ...", True),
        ("workload = partial(make, 1)", True),
        ("from elsewhere import make as workload", True),
        ("from elsewhere import *", True),
        ("if True:\n    def workload(): ...", True),
        ("class A:\n    def workload(self): ...", False),
        ("def other(): workload = 1", False),
        ("import workload_of.another", False),
    ],
)
def test_whether_a_file_defines_a_function_is_read_from_it(tmp_path, text, is_there):
    """No code of the user runs before the folder is sent; if the file alone does not tell whether it defines the function, the cluster decides."""
    (tmp_path / "mine.py").write_text(text)
    assert defines(tmp_path / "mine.py", "workload") is is_there


def test_a_packed_folder_comes_whole_or_not_at_all():
    """The packed folder is found among other lines of a log; a cut or changed one is reported."""
    files = bytes(range(256)) * 100
    log = f"Running entrypoint\n{packed(files)}over\n"
    assert unpacked(log, "the run folder of x") == files
    for broken in (log[:500], log.replace("AAEC", "AAED", 1), "no module named feedrate\n"):
        with pytest.raises(UsageError, match="the run folder of x"):
            unpacked(broken, "the run folder of x")
