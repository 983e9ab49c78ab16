"""ceilings.py: step alone, loader alone, both together, the loader with a cold page cache if possible, and the verdict."""

import os

import pytest
from answers import answer
from conftest import TOY
from synthetic import record

from feedrate.search.cli.ceilings import _Lines
from feedrate.search.cli.main import main
from feedrate.trainables.failure import Failure
from feedrate.trainables.loader.cold_cache import resident_fraction

WORKLOADS = (
    TOY
    + """

import glob, os
from torch.utils.data import DataLoader

class Files(Dataset):
    def __init__(self):
        self.paths = sorted(glob.glob(os.path.join(os.path.dirname(__file__), "*.bin")))
    def __len__(self):
        return len(self.paths)
    def __getitem__(self, index):
        with open(self.paths[index], "rb") as stream:
            return torch.full((8,), float(stream.read(200_000)[0])), index % 2

def files():
    return workload(dataset=Files)

def hopeless():
    def fail():
        raise RuntimeError("no model today")
    return workload(model=fail)
"""
)


@pytest.fixture(autouse=True)
def _here(mine):
    mine(WORKLOADS)


@pytest.fixture
def ceilings(capfd):
    """Runs `feedrate ceilings` on a workload of mine.py, and returns what it prints."""

    def run(name, *arguments, code=0):
        command = ["ceilings", f"mine.py:{name}", "--max-trial-s", "1.5", "--threads", "1", *map(str, arguments)]
        assert main(command) == code, capfd.readouterr().err
        return capfd.readouterr().out

    return run


def test_ceilings_say_what_is_the_limit(ceilings):
    """The step alone, both together, the loader alone, why there is no cold rate, and the verdict with its evidence.

    Which verdict, and whether the ceiling is known, is the machine's business at that moment: below, rates are recorded ones.
    """
    step, together, warm, cold, *_ = lines = ceilings("workload", "--batch-size", 8).splitlines()
    assert step.startswith("step alone ")
    assert together.startswith("both together ")
    assert together.endswith("/s  with b8 w0")
    assert warm.startswith("loader alone ")
    assert warm.endswith("page cache warm")
    assert cold == "no rate from a cold page cache: the dataset did not open its files through Python, so feedrate does not know which they are"
    (verdict,) = [line for line in lines if "the step waits " in line]
    assert "of the time of 1 CPU" in verdict
    assert any(line.startswith("at most ") for line in lines) == ("not known" not in step)


def test_a_dataset_of_files_has_a_cold_ceiling_too(ceilings, tmp_path):
    """With every file dropped before it is read: the loader's rate from storage, and how its time divides."""
    for index in range(64):
        (tmp_path / f"{index}.bin").write_bytes(os.urandom(200_000))
    for index in range(64):
        with open(tmp_path / f"{index}.bin", "rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident_fraction(tmp_path / "0.bin") != 0:
        pytest.skip(f"the file system of {tmp_path} does not drop pages")
    facts = answer(ceilings("files", "--batch-size", 8, "--num-workers", 1, "--json"), "ceilings")
    assert facts["cache_state"] == "warm"
    assert facts["cold_refused"] is None
    assert facts["loader_only_cold_sps"] > 0
    assert 0 <= facts["fetch_fraction"] < 1


@pytest.mark.slow
def test_ceilings_print_one_object(ceilings):
    """For programs; a workload that fails is a failure object and exit code 1."""
    facts = answer(ceilings("workload", "--batch-size", 8, "--json"), "ceilings")
    assert facts["loader_only_sps"] > 0
    assert facts["verdict_evidence"]
    assert facts["loader_only_cold_sps"] is None
    assert facts["cold_refused"] == "the dataset did not open its files through Python, so feedrate does not know which they are"
    shares = [facts["data_stall_fraction"], facts["interference_fraction"]]
    assert all((share is None) == (facts["step_only_sps"] is None) for share in shares)
    failed = answer(ceilings("hopeless", "--json", code=1), "failure")
    assert failed["failure"]["message"] == "RuntimeError: no model today"


def measured(rate_sps, **columns):
    """Columns of a trial, which do not hold its setting."""
    made = record(0, rate_sps=rate_sps, num_cpus=8, own_cpu_fraction=0.1, **columns)
    del made["num_workers"]
    return made


def told(capsys, lines):
    lines.last()
    return capsys.readouterr().out.splitlines()


def test_shares_come_from_the_rates(capsys):
    """Stall 1 - O/G, interference 1 - O/min(G, L), fetching 1 - cold/warm."""
    lines = _Lines(quiet=False, setting="b64 w4", num_workers=4)
    together = measured(500.0, step_only_sps=1000.0)
    lines.together(together)
    lines.warm(measured(625.0, cache_state="mixed"))
    lines.cold(measured(125.0, cache_state="cold"), None)
    said = told(capsys, lines)
    assert [line.split("  ")[0] for line in said[:4]] == ["step alone", "both together", "loader alone", "loader alone"]
    assert said[2].endswith("625.0 samples/s  page cache mixed: some data came from storage")
    assert said[3].endswith("125.0 samples/s  page cache cold: fetching takes 80% of the time, preparing 20%")
    stall = "data stall 50% (1 - rate of both together / rate of the step alone)"
    interference = "interference between step and loader 20% (1 - rate of both together / rate of the slower of step and loader)"
    assert said[4] == f"{stall}, {interference}"
    assert said[5].startswith("loader-bound (waiting): 50% of the ceiling (1,000/s without loading)")
    assert "loading and training used 20% of the time of 4 CPUs" in said[5]
    assert said[6] == "at most 2.00x to gain"
    assert lines.facts["interference_fraction"] == pytest.approx(0.2)
    assert lines.facts["fetch_fraction"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"step_only_sps": 272.0}, "the step alone was measured at 272/s, less than training with loading (398/s), so something slowed it down"),
        ({"step_only_sps": 2720.0, "foreign_cpu_fraction": 0.4}, "other processes used the machine while the step was timed"),
        ({"cached_batch_failure": "KeyError: 1"}, "before the trial, no batch could be read on which to time the training step"),
    ],
)
def test_a_ceiling_that_is_not_known_is_not_printed(capsys, columns, why):
    """Nothing comes from it: no share, no interference, no gain; why, and what to do where that helps."""
    lines = _Lines(quiet=False, setting="b64 w4", num_workers=4)
    lines.together(measured(398.0, **columns))
    lines.warm(measured(625.0, cache_state="warm"))
    said = told(capsys, lines)
    assert said[0] == f"step alone    not known, because {why}"
    assert f"the ceiling is not known, because {why}" in said[3]
    assert said[3].endswith("; measure again on a quiet machine") == ("cached_batch_failure" not in columns)
    assert len(said) == 4
    assert [lines.facts[name] for name in ("step_only_sps", "max_gain", "data_stall_fraction", "interference_fraction")] == [None] * 4


def test_a_rate_that_still_changes_gives_no_shares(capsys):
    """Said beside it, and longer trials are asked for."""
    together = measured(500.0, step_only_sps=10_000.0)
    together["window_duration_s"] = [2.0 * 0.8**index for index in range(8)]
    lines = _Lines(quiet=False, setting="b64 w4", num_workers=4)
    lines.together(together)
    lines.warm(measured(625.0, cache_state="warm"))
    said = told(capsys, lines)
    assert "with b64 w4, still rising (" in said[1]
    assert said[3].startswith("too noisy to say: the rate was still rising (")
    assert said[3].endswith("; measure longer: raise --max-trial-s")
    assert lines.facts["max_gain"] is None


def test_without_workers_step_and_loader_take_turns(capsys):
    """Then half the rate of two equal ones is what is expected, and no interference."""
    lines = _Lines(quiet=True, setting="b64 w0", num_workers=0)
    together = measured(
        500.0, step_only_sps=1000.0, copy_only_num_items=[4000], copy_only_duration_s=[1.0], device="cuda:0"
    )
    lines.together(together)
    lines.warm(measured(1000.0, cache_state=None))
    assert lines.facts["interference_fraction"] == pytest.approx(0.0)
    assert lines.facts["copy_only_sps"] == 4000.0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("columns", "failure", "why"),
    [
        ({}, Failure(kind="user-code", phase="loader", message="the disk is gone"), "the disk is gone"),
        ({"cold_refused": "100% of the pages stay", "cache_state": "warm"}, None, "100% of the pages stay"),
        ({"cache_state": "warm"}, None, "this machine's kernel counted no reads from storage"),
        ({"cache_state": "mixed"}, None, "only some of the data came from storage"),
        ({"cache_state": None}, None, "this machine's kernel counted no reads from storage"),
    ],
)
def test_what_was_not_cold_is_not_called_cold(capsys, columns, failure, why):
    """One line says why there is no cold rate; the rest of the answer stands."""
    lines = _Lines(quiet=False, setting="b64 w4", num_workers=4)
    lines.facts |= {"unit": "samples", "loader_only_sps": 100.0}
    lines.cold({} if failure else measured(50.0, **columns), failure)
    assert capsys.readouterr().out == f"no rate from a cold page cache: {why}\n"
    assert lines.facts["loader_only_cold_sps"] is None
    assert lines.facts["cold_refused"] == why
