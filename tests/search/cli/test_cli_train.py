"""`feedrate train`: the command runs to its end as without feedrate, and its loader is tuned or observed on the way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from synthetic import search_json
from training_folder import folder_of

from feedrate.analysis.best import load_best
from feedrate.search.answers.training_answer import name_of
from feedrate.search.cli.train import parse_budget
from feedrate.search.options import UsageError
from feedrate.search.record import SearchRecord
from feedrate.search.setup.warm_start import check_source, remembered
from feedrate.search.space.search_space import SearchSpace
from feedrate.trainables.deciding.budget import Budget
from feedrate.trainables.machine.host import cpu_budget, cpu_model

FEEDRATE = [sys.executable, "-m", "feedrate.search.cli.main"]
SCRIPT = '''
import hashlib, os, sys, time
import torch
from torch.utils.data import DataLoader, Dataset

class Numbers(Dataset):
    def __init__(self, num, sleep_s): self.num, self.sleep_s = num, sleep_s
    def __len__(self): return self.num
    def __getitem__(self, index):
        time.sleep(self.sleep_s)
        return torch.full((4,), float(index))

if __name__ == "__main__":
    own, epochs, num, sleep_s, code = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
    assert "FEEDRATE" not in os.environ  # by which scripts know that they are only measured
    torch.manual_seed(0)
    persistent = own > 0 and len(sys.argv) > 6
    training = DataLoader(Numbers(num, sleep_s), batch_size=4, shuffle=True, num_workers=own, persistent_workers=persistent)
    validation = DataLoader(Numbers(20, 0), batch_size=4, num_workers=own)
    model = torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.Dropout(0.5))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    digest = hashlib.sha256()
    for epoch in range(epochs):
        for batch in training:
            digest.update(batch.numpy().tobytes())
            optimizer.zero_grad()
            model(batch).sum().backward()
            optimizer.step()
        for batch in validation:
            digest.update(batch.numpy().tobytes())
    weights = torch.cat([each.flatten() for each in model.parameters()]).detach().numpy().tobytes().hex()
    print("content", digest.hexdigest(), weights, torch.rand(1).item(), flush=True)
    print("words on standard error", file=sys.stderr)
    sys.exit(code)
'''


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def plain(script, *words):
    return subprocess.run([sys.executable, str(script), *map(str, words)], capture_output=True, text=True, check=False)


def train(script, *words, flags=(), **options):
    command = [*FEEDRATE, "train", "--out", str(script.parent / "run"), *flags, "--", sys.executable, str(script), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=script.parent, **options)


@pytest.mark.parametrize(
    "words",
    [(1, 3, 80, 0, 3), *(pytest.param(each, marks=pytest.mark.slow) for each in ((0, 3, 80, 0, 0), (1, 3, 80, 0, 0, "persistent"), (8, 2, 80, 0, 0)))],
)
def test_the_command_trains_as_without_feedrate(script, words):
    """Same samples, weights, random numbers, output and exit code. Takes a while, because each case starts two Pythons with torch and their workers."""
    expected, found = plain(script, *words), train(script, *words)
    assert found.stdout == expected.stdout and "content" in found.stdout
    assert found.returncode == expected.returncode == words[4]
    assert "words on standard error" in found.stderr


def test_a_training_that_waits_is_tuned_and_leaves_what_it_found(script):
    """Over 10 s, because windows of a training take a third of a second each."""
    expected, found = plain(script, 0, 1, 2600, 0, 0), train(script, 0, 1, 2600, 0.004, 0, flags=["--price-per-hour", "2"])
    assert found.stdout == expected.stdout
    folder = script.parent / "run"
    everything = [json.loads(line) for line in (folder / "live.jsonl").read_text().splitlines()]
    lines = [each for each in everything if each["kind"] != "rate"]
    assert [each["kind"] for each in lines[:2]] == ["baseline", "try"]
    assert sum(each["num_batches"] for each in everything if each["kind"] == "rate") == 650
    assert all(each["reason"] in found.stderr for each in lines)
    assert "; waiting cost " in found.stderr and "feedrate: saved" in found.stderr
    best = load_best(folder)
    assert best["batch_size"] == 4 and best.baseline["dataloader"]["num_workers"] == 0
    (made,) = best.raw["workload"]["script"]["loaders"]
    assert script.read_text().splitlines()[int(made["where"].rpartition(":")[2]) - 1].strip().startswith("training = DataLoader(")
    assert not (folder / "claim").exists()
    assert "Timeline of the training" in (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    again = subprocess.run([*FEEDRATE, "report", str(folder)], capture_output=True, text=True, check=True)
    assert again.stdout == f"{folder / 'report.html'}\n" and (folder / "report.html").exists()
    for command, sentence in (("report", "html only, not csv"), ("show", "is the folder of a training")):
        refused = subprocess.run([*FEEDRATE, command, str(folder), *(["--format", "csv"] if command == "report" else [])], capture_output=True, text=True, check=False)
        assert refused.returncode == 2 and sentence in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_the_report_of_a_callbacks_training_has_its_answer(tmp_path):
    """Nobody started it with `feedrate train`, which would have written best.json. A search begins with that, if it is on this machine."""
    machine = {"hostname": "node-1", "device": "cpu", "device_name": "CPU", "num_cpus": 8, "cpu_model": "C", "start_method": None, "versions": {"torch": "2.13.0"}}
    folder = folder_of(tmp_path / "run", best=False, measured_on=machine, command=["python", "fit.py"])
    report = [*FEEDRATE, "report", str(folder)]
    first = subprocess.run(report, capture_output=True, text=True, check=True)
    assert first.stdout == f"{folder / 'report.html'}\n{folder / 'best.json'}\n"
    best = load_best(folder)
    assert best["num_workers"] == 3 and best.raw["workload"]["name"] == "fit" and best.raw["confirmed"] is True
    assert subprocess.run(report, capture_output=True, text=True, check=True).stdout == f"{folder / 'report.html'}\n"


@pytest.mark.slow
def test_observing_changes_nothing_and_says_what_waiting_cost(script):
    found = train(script, 0, 1, 1500, 0.004, 0, flags=["--observe", "--json"])
    facts = json.loads(found.stdout)
    assert facts["schema"] == "feedrate/cli/train/1" and facts["exit_code"] == facts["command_exit_code"] == 0
    assert facts["dataloader"] == facts["baseline"] and facts["left_alone"] == "only observing, as asked"
    assert facts["cost"]["wait_fraction"] > 0.5
    assert "content" in found.stderr  # with --json, nothing else is on standard output
    kinds = [json.loads(line)["kind"] for line in (script.parent / "run" / "live.jsonl").read_text().splitlines()]
    assert [kind for kind in kinds if kind != "rate"] == ["baseline", "leave"] and "rate" in kinds


def test_ctrl_c_reaches_the_command_and_its_exit_code_comes_back(script):
    command = [*FEEDRATE, "train", "--out", str(script.parent / "run"), "--", sys.executable, str(script), "0", "1", "100000", "0.001", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=script.parent)
    claim = script.parent / "run" / "claim"
    deadline = time.monotonic() + 60
    while not claim.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "KeyboardInterrupt" in said and "the training waited for batches" in said


def test_a_command_without_training_or_without_python_runs_all_the_same(tmp_path):
    command = [*FEEDRATE, "train", "--out", str(tmp_path / "run"), "--", "sh", "-c", "echo hello; exit 7"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (7, "hello\n")
    assert "nothing was observed: the command ended with exit code 7 before an optimizer had stepped" in found.stderr
    assert not (tmp_path / "run").exists()
    missing = subprocess.run([*FEEDRATE, "train", "--", "nosuchcommand"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert missing.returncode == 2
    assert list(tmp_path.rglob("*")) == [tmp_path / "feedrate-runs"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "there is no training command"),
        (["--", "/no/such/program"], "cannot be started"),
        (["--budget", "lots", "--", "true"], "is not a duration"),
        (["--price-per-hour", "0", "--", "true"], "must be above 0"),
    ],
)
def test_wrong_usage(tmp_path, words, sentence):
    found = subprocess.run([*FEEDRATE, "train", *words], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert found.returncode == 2
    assert sentence in found.stderr and len(found.stderr.splitlines()) == 1


def test_a_folder_with_a_search_is_not_replaced(tmp_path):
    (tmp_path / "search.json").write_text("{}")
    command = [*FEEDRATE, "train", "--out", str(tmp_path), "--force", "--", "true"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2 and "has a search in it" in found.stderr


def test_budgets_and_names():
    assert Budget(**parse_budget("2%")) == Budget()
    assert Budget(**parse_budget("0%")).allowed_s(1e6) == 0
    assert (Budget(**parse_budget("90s")).allowed_s(10), Budget(**parse_budget("90s")).allowed_s(1e6)) == (10, 90)
    assert name_of(["python", "a/train.py", "--x"]) == "train"
    assert name_of(["python", "-m", "package.train"]) == "train"


def test_a_search_begins_with_what_a_training_found(tmp_path):
    best = json.loads((Path(__file__).parents[3] / "docs" / "example-run" / "best.json").read_text())
    best["dataloader"] = {"batch_size": 32, "num_workers": 6, "pin_memory": False, "prefetch_factor": 2, "persistent_workers": False}
    best["measured_on"] |= {"num_cpus": cpu_budget()[0], "cpu_model": cpu_model()}
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(UsageError, match=r"best\.json does not exist"):
        check_source(tmp_path)
    (tmp_path / "best.json").write_text(json.dumps(best))
    check_source(tmp_path)
    here = {"hostname": "here", "num_cpus": cpu_budget()[0], "cpu_model": cpu_model(), "gpus": []}
    search, other = (SearchRecord.from_json(search_json(hardware=each)) for each in (here, here | {"num_cpus": 96, "cpu_model": "another"}))
    space = SearchSpace.default(num_cpus=2, has_accelerator=False)
    found, said = remembered(tmp_path, search, space)
    assert [each.num_workers for each in found] == [6] and "in the training" in said
    found, said = remembered(tmp_path, other, space)
    assert found == [] and "another machine" in said


RANKS = SCRIPT.replace("from torch.utils.data import", "import torch.distributed as dist\nfrom torch.utils.data import DistributedSampler,").replace(
    "    torch.manual_seed(0)\n", '    torch.manual_seed(0)\n    dist.init_process_group("gloo")\n    data = Numbers(num, sleep_s)\n    sampler = DistributedSampler(data)\n'
).replace("Numbers(num, sleep_s), batch_size=4, shuffle=True", "data, batch_size=4, sampler=sampler").replace(
    "    for epoch in range(epochs):\n", "    model = torch.nn.parallel.DistributedDataParallel(model)\n    for epoch in range(epochs):\n        sampler.set_epoch(epoch)\n"
).replace(
    "            optimizer.step()\n", "            optimizer.step()\n            kill(training)\n"
).replace(
    'print("content"', 'open(f"content-{dist.get_rank()}.txt", "w").write(digest.hexdigest() + weights)\n    print("content"'
).replace("if __name__", '''
def kill(loader, since=[]):
    # end a worker of rank 1 once it has another number of workers
    children = [each for each in open(f"/proc/self/task/{os.getpid()}/children").read().split()] if os.environ.get("KILLS") else ()
    if dist.get_rank() == 1 and len(children) > 1 and not since:
        since.append(os.kill(int(children[-1]), 9))

if __name__''')


@pytest.mark.parametrize("kills", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ranks_are_tuned_together(script, kills):
    """The same samples and weights in each rank as untouched, whether or not a worker of one rank is killed. Over 10 s: two trainings with two ranks each."""
    script.write_text(RANKS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]

    def contents():
        return [(script.parent / f"content-{number}.txt").read_text() for number in range(2)]

    subprocess.run([*launch, "1", "2", "1200", "0", "0"], check=True, capture_output=True, cwd=script.parent)
    expected = contents()
    environment = os.environ | ({"KILLS": "1"} if kills else {})
    command = [*FEEDRATE, "train", "--out", "run", "--", *launch, "1", "2", "1200", "0.005", "0"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=script.parent, env=environment)
    assert found.returncode == 0, found.stderr
    assert contents() == expected and expected[0] != expected[1]
    folder = script.parent / "run"
    kinds = [kind for each in (folder / "live.jsonl").read_text().splitlines() if (kind := json.loads(each)["kind"]) != "rate"]
    assert kinds[:2] == ["baseline", "try"] and ("failure" in kinds) == kills
    assert re.search(r"feedrate: .*rank 0 \d+%, rank 1 \d+%", found.stderr)
    best = load_best(folder)
    assert best.raw["throughput"]["per"] == "world" and best.raw["scope"]["world_size"] == 2
    assert best["num_workers"] == 1 if kills else best["num_workers"] > 1
    if kills:
        assert "rank 1: with " in found.stderr
    assert not list(folder.glob("ranks-*"))
