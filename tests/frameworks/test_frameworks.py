"""Training scripts of other frameworks, with the real packages: which loader is measured, its own setting, another setting, what to paste.

Only `make test-frameworks` runs these tests, in an environment that has the packages (constraints-frameworks.txt). Each test takes
some seconds, because it imports a framework.
"""

import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from census import TAG, eventually, tagged
from framework_scripts import SCRIPTS, ScriptRun

from feedrate.analysis.paste import loader_call, paste_place
from feedrate.trainables.config import LoaderConfig

pytestmark = [pytest.mark.frameworks, pytest.mark.usefixtures("tag")]

BASELINE = LoaderConfig(num_workers=1, batch_size=16, prefetch_factor=4)
OTHER = {"num_workers": 2, "prefetch_factor": 3}
TORCHS = "batch_size=16, num_workers=2, pin_memory=False, prefetch_factor=3, persistent_workers=False)"


@dataclass(frozen=True)
class Case:
    """A script, and what feedrate has to see and to say."""

    script: str
    line: str
    """A part of the line at which the measured loader is made."""
    paste: str
    baseline: LoaderConfig = BASELINE
    function: str = "main"
    framework: str | None = None
    arguments: tuple[str, ...] = ()
    place: str | None = None
    """Where the answer is pasted, if that is not the line."""


CASES = [
    Case("train_plain.py", "data_loader = DataLoader", f"DataLoader(dataset, {TORCHS}"),
    Case(
        "train_lightning.py",
        "return DataLoader(Rows(), ",
        f"DataLoader(dataset, {TORCHS}",
        baseline=replace(BASELINE, persistent_workers=True),
        function="Data.train_dataloader",
    ),
    Case(
        "train_transformers.py",
        "trainer.train()",
        "TrainingArguments(..., per_device_train_batch_size=16, dataloader_num_workers=2, dataloader_pin_memory=False, "
        "dataloader_prefetch_factor=3, dataloader_persistent_workers=False)",
        baseline=replace(BASELINE, persistent_workers=True),
        function="",
        framework="transformers",
        place="your TrainingArguments",
    ),
    Case("train_accelerate.py", "train = DataLoader", f"DataLoader(dataset, {TORCHS}"),
    Case("train_accelerate.py", "train = DataLoader", f"DataLoader(dataset, {TORCHS}", arguments=("split", "dispatch")),
    Case("train_accelerate.py", "train = DataLoader", f"DataLoader(dataset, {TORCHS}", arguments=("stateful",)),
    Case(
        "train_webdataset.py",
        "loader = wds.WebLoader",
        f"wds.WebLoader(dataset, {TORCHS.partition(', ')[2]}",
        baseline=replace(BASELINE, batch_size=None),
        framework="webdataset",
    ),
    Case("train_torchdata.py", "loader = StatefulDataLoader", f"StatefulDataLoader(dataset, {TORCHS}", framework="torchdata"),
    Case("train_datasets.py", "loader = DataLoader(dataset, batch_size=16, shuffle=True", f"DataLoader(dataset, {TORCHS}"),
    Case("train_datasets.py", "loader = DataLoader(dataset, batch_size=16, num_workers", f"DataLoader(dataset, {TORCHS}", arguments=("streaming",)),
    Case(
        "train_timm.py",
        "loader = create_loader",
        "# prefetch_factor=3 cannot be set here: set it on the loader that create_loader returns, or make the loader yourself\n"
        "create_loader(..., batch_size=16, num_workers=2, pin_memory=False, persistent_workers=False)",
        baseline=LoaderConfig(num_workers=1, batch_size=16, persistent_workers=True),
        framework="timm",
        place="your call of timm.data.create_loader",
    ),
    Case("train_monai.py", "loader = DataLoader", f"monai.data.DataLoader(dataset, {TORCHS}", framework="monai"),
]


@pytest.fixture
def started(tmp_path, monkeypatch, tag, request):
    """Starts one of the scripts in a new folder; after the test, nothing of it runs."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "FEEDRATE_HOST_ID": str(tmp_path),
        "SCRIPT_NOTES": str(tmp_path / "notes.txt"),
        "HF_HOME": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(sys.prefix) / "vision") if "timm" in request.node.name else "",
    }.items():
        monkeypatch.setenv(name, value)
    runs = []

    def start(name, *arguments, **more):
        runs.append(ScriptRun(name, *arguments, environment={TAG: tag}, **more))
        return runs[-1]

    yield start
    for run in runs:
        run.close()
    assert eventually(lambda: not tagged(tag)), tagged(tag)


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join((case.script, *case.arguments)))
def test_a_script(started, case):
    """Its training loader is found, its setting is read back, another one has the workers that were asked for, and the paste is its framework's."""
    run = started(case.script, *case.arguments)
    described = run.described()
    assert described.baseline == case.baseline
    measured = [each for each in described.script.loaders if each.role == "measured"]
    assert len(measured) == 1, described.script.loaders
    loader = measured[0]
    line = run.line_of(case.line)
    assert loader.where == f"{SCRIPTS / case.script}:{line}"
    assert (loader.framework, loader.function) == (case.framework, case.function)

    columns, workers = run.measured(**OTHER, batch_size=case.baseline.batch_size)
    assert sum(columns["window_num_batches"]) > 0
    assert workers == {0, 1}
    dataloader = LoaderConfig(**OTHER, batch_size=case.baseline.batch_size).to_kwargs()
    best = {"dataloader": dataloader, "workload": {"script": described.script.to_json()}}
    assert "\n".join(loader_call(best)) == case.paste
    assert paste_place(best) == (case.place or loader.where + (f", in {case.function}" if case.function else ""))


def test_another_batch_size_of_a_loader_that_a_framework_made_again(started):
    """Accelerate passes a batch sampler of torch's own, which feedrate can make with another size."""
    columns, _ = started("train_accelerate.py").measured(num_workers=1, batch_size=8)
    assert columns["window_num_items"][0] == 8 * columns["window_num_batches"][0]


def test_the_validation_of_lightning_is_left_alone(started):
    """Its sanity check read two batches before the training began."""
    roles = {each.function: (each.role, each.num_batches) for each in started("train_lightning.py").described().script.loaders}
    assert roles["Data.val_dataloader"] == ("left alone", 2)


def test_a_rank_that_reads_for_all_ranks_is_refused(started):
    """Accelerate's dispatch_batches with two processes, which need seconds to start. torchrun never removes its folder for logs."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--log-dir", "logs")
    failure = started("train_accelerate.py", "dispatch", launcher=launcher).refused()
    assert "reads the batches of all its processes (Accelerate's dispatch_batches)" in failure.message


HOSTS = "--mpirun_hostfile", "hosts", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"
"""How `accelerate launch` starts ranks without GPUs: with mpirun."""


@pytest.mark.parametrize(
    ("name", "arguments", "launcher"),
    [
        ("train_lightning.py", ("ddp",), ()),
        pytest.param(
            "train_accelerate.py",
            (),
            ("-m", "accelerate.commands.launch", *HOSTS),
            marks=pytest.mark.skipif(shutil.which("mpirun") is None, reason="needs Open MPI: apt-get install openmpi-bin"),
        ),
    ],
    ids=["Lightning starts its other rank", "accelerate launch"],
)
def test_two_ranks(started, monkeypatch, name, arguments, launcher):
    """The launchers of frameworks set other variables than torchrun."""
    Path("hosts").write_text("localhost slots=2\n")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    run = started(name, *arguments, launcher=launcher)
    assert run.described().num_ranks == 2
    columns, _ = run.measured(num_workers=1, batch_size=run.described().baseline.batch_size)
    assert [each["rank"] for each in columns["ranks"]] == [0, 1]
    assert columns["window_num_items"] == [32 * num for num in columns["window_num_batches"]]


def test_a_search(started, feedrate):
    """The answer is printed in the framework's own words. It starts Ray."""
    asked = ["--num-workers", "1..2", "--max-trial-s", "2", "--max-trials", "1", "--no-confirm", "--time-budget", "60s", "--out", "run"]
    search = feedrate("search", *asked, "--", sys.executable, SCRIPTS / "train_transformers.py")
    assert search.code == 0, search.stderr
    assert "<- measured: an optimizer steps between its batches" in search.stderr
    assert "\nPaste into your TrainingArguments: TrainingArguments(..., per_device_train_batch_size=16, dataloader_num_workers=" in search.stdout
    assert not search.alive()
