"""measure.py: settings of the process and of the training step, for one setting and without Ray."""

import json
import os

import pytest
from answers import answer
from conftest import TOY

from feedrate.search.cli.main import main

OWN = """

def own():
    from torch.utils.data import DataLoader
    mine = {"num_workers": 1, "multiprocessing_context": "forkserver"}
    return Workload.from_loader(
        name="own",
        make_loader=lambda **overrides: DataLoader(Slow(0.001), **(mine | overrides)),
        make_step=lambda context: lambda batch: None,
    )
"""


@pytest.fixture(autouse=True)
def _here(mine):
    mine(TOY + OWN)


def test_one_setting_is_measured_in_a_process_as_it_asks(capfd):
    """Order lost (and said so), strategy, the trainer's CPUs, threads, bf16: named in `process`, and measured."""
    asked = "--num-workers 2 --batch-size 16 --in-order false --sharing-strategy file_system --threads 2 --amp bf16"
    process = {"sharing_strategy": "file_system", "torch_num_threads": 2}
    if len(os.sched_getaffinity(0)) > 1:
        asked += " --trainer-cpus 1"
        process |= {"trainer_cpus": 1, "torch_num_threads": 1}
    assert main(["measure", "mine.py:workload", *asked.split(), "--max-trial-s", "4", "--json"]) == 0
    printed = capfd.readouterr()
    facts = answer(printed.out, "measure")
    assert facts["process"] == process
    assert facts["dataloader"]["in_order"] is False
    assert facts["throughput"] > 0
    assert "note: --in-order false: batches arrive as soon as they are ready" in printed.err


def test_a_trainer_that_leaves_no_cpu_fails_where_it_runs(capfd):
    """One sentence with the number of CPUs of the machine."""
    num_cpus = len(os.sched_getaffinity(0))
    asked = ["--num-workers", "1", "--trainer-cpus", str(num_cpus)]
    assert main(["measure", "mine.py:workload", *asked]) == 1
    said = capfd.readouterr().err
    assert (
        f"(too-few-cpus): trainer_cpus={num_cpus} leaves no CPU for the workers: this process may run on only {num_cpus}"
        in said
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("search mine.py:workload --trainer-cpus 0", "--trainer-cpus '0': must be 1 or more, not 0: none lets"),
        (
            "search mine.py:workload --sharing-strategy all",
            "--sharing-strategy 'all': 'all' is not one of file_descriptor",
        ),
        ("search mine.py:workload --in-order perhaps", "--in-order 'perhaps': 'perhaps' is not one of true, false"),
        ("search mine.py:workload --amp fp16", "argument --amp: invalid choice: 'fp16'"),
        ("search mine.py:own --amp bf16", "--amp is only for the short form of a workload. This workload builds its own step"),
        ("measure mine.py:own --compile", "--compile is only for the short form of a workload. This workload builds its own step"),
        ("measure mine.py:workload --trainer-cpus 0", "argument --trainer-cpus: must be 1 or more, not 0"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments, sentence, capfd, tmp_path):
    """Exit code 2 and one sentence, before anything is measured or written."""
    assert main(arguments.split()) == 2
    said = capfd.readouterr().err.splitlines()[-1]
    assert said.removeprefix("feedrate: ").startswith(sentence)
    assert not (tmp_path / "feedrate-runs").exists()


def test_what_has_no_effect_is_said(capfd):
    """With 0 workers there is nobody to share with, and the setting is the one without."""
    asked = "--num-workers 0 --batch-size 16 --sharing-strategy file_system --trainer-cpus 1 --in-order false"
    assert main(["measure", "mine.py:workload", *asked.split(), "--max-trial-s", "2", "--json"]) == 0
    printed = capfd.readouterr()
    for flag in ("--sharing-strategy", "--trainer-cpus", "--in-order"):
        assert f"note: {flag} has no effect with 0 workers" in printed.err
    assert json.loads(printed.out)["process"] == {}
