"""Training commands are measured unchanged: which loader, with which settings, what the script gets meanwhile, and what is left behind."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from census import TAG, eventually, tagged

from feedrate.search.setup.script_lines import loader_remarks
from feedrate.trainables.checking.described import Described
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.diagnose.origin import Origin
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.protocol import DescribeRequest, Failed, Measured, MeasureRequest, read
from feedrate.trainables.resolve import make_command_ref
from feedrate.trainables.sandbox.template import Template
from feedrate.trainables.script.between_epochs import no_overwriting, will_write
from feedrate.trainables.script.seen_loader import SeenLoader

pytestmark = pytest.mark.usefixtures("tag")

DATA = """
import os, sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

class Rows(Dataset):
    def __init__(self, num=4000):
        self.num = num
    def __len__(self):
        return self.num
    def __getitem__(self, index):
        return torch.full((8,), float(index)), index % 2

def note(*words):
    with open("notes.txt", "a") as file:
        print(*words, file=file, flush=True)

model = nn.Linear(8, 2)
"""
HEAD = (
    DATA
    + """
class Descent(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.01, "momentum": 0.0})
    def step(self):
        for group in self.param_groups:
            for each in group["params"]:
                each.data -= group["lr"] * each.grad

# torch's own optimizers import torch._dynamo on first use, which takes as long as importing torch; test_cli_scripts.py has one
for each in vars(torch.optim.Optimizer).values():
    if hasattr(each, "__wrapped__"):
        each.__wrapped__.__dynamo_disable = each.__wrapped__
optimizer = Descent(model.parameters())

def train(batch):
    x, y = batch
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()
"""
)

PLAIN = """
if __name__ == "__main__":
    loader = DataLoader(Rows(), 16, True, num_workers=1)
    valid = DataLoader(Rows(64), batch_size=32, num_workers=1, persistent_workers=True)
    note("begins", os.getpid(), sys.argv[1:], os.environ["FEEDRATE"], os.environ["WANDB_MODE"])
    for epoch in range(3):
        for batch in loader:
            train(batch)
        for batch in valid:
            pass
"""


@pytest.fixture
def script(tmp_path, monkeypatch, tag):
    """Writes train.py into a new folder and returns a template for a command there; after the test, nothing of it runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEEDRATE_HOST_ID", str(tmp_path))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    templates = []

    def write(text, *command, loader=None, head=HEAD):
        (tmp_path / "train.py").write_text(head + textwrap.dedent(text))
        command = command or ("python", "train.py")
        templates.append(Template(make_command_ref(command, loader=loader), environment={TAG: tag}))
        return templates[-1]

    yield write
    for template in templates:
        template.close()
    assert eventually(lambda: not tagged(tag)), tagged(tag)


def notes():
    return Path("notes.txt").read_text().splitlines() if Path("notes.txt").exists() else []


def last(template, num_workers=None, batch_size=16, multiprocessing_context=None, **options):
    """The last event: of a description, or with `num_workers` of a trial."""
    request = DescribeRequest()
    if num_workers is not None:
        config = LoaderConfig(num_workers=num_workers, batch_size=batch_size, multiprocessing_context=multiprocessing_context)
        request = MeasureRequest(config=config, options=MeasureOptions(**{"max_trial_s": 1.0, "measure_step": False} | options))
    return read(template.run(request, max_s=60), lambda news: None)


def described(template):
    event = last(template)
    assert isinstance(event, Described), event.failure.message
    return event


def refused(template, **config):
    event = last(template, **config)
    assert isinstance(event, Failed)
    return event


def measured(template, **config):
    event = last(template, **config)
    assert isinstance(event, Measured), event.failure.message
    return event.columns


def test_one_process_serves_many_settings(script):
    """The baseline is the loader's own, the second loader is left alone, and the script's own arguments and variables are its own."""
    template = script(PLAIN, "python", "train.py", "--lr", "0.1")
    found = described(template)
    assert found.name == "train"
    assert not found.is_short
    assert found.baseline == LoaderConfig(num_workers=1, batch_size=16)
    assert found.epoch_samples == 4000
    first, second = found.script.loaders
    assert (first.role, second.role) == ("measured", "not read")
    assert loader_remarks(found)[0].startswith(f"the 1 worker of the loader at {second.where} stay alive")
    assert first.call == "DataLoader(Rows, batch_size=16, shuffle=True, num_workers=1)"
    assert first.where == f"train.py:{(HEAD + PLAIN)[: (HEAD + PLAIN).index('DataLoader(Rows(), 16')].count(chr(10)) + 1}"
    for config in ({"num_workers": 2}, {"num_workers": 1, "batch_size": 8}, {"num_workers": 3}):
        columns = measured(template, **config)
        assert columns["window_num_items"][0] == columns["window_num_batches"][0] * config.get("batch_size", 16)
    begun = notes()
    assert len(begun) == 1
    assert begun[0].endswith("['--lr', '0.1'] 1 offline")


def test_a_setting_without_workers_ends_the_process(script):
    """Its process used the dataset itself; workers of a later setting would inherit what it opened. Nothing else uses the dataset there, even
    if the script's own loader has no workers: what is opened on first use is opened by each worker."""
    template = script(
        """
        class Opens(Rows):
            opened_by = None
            def __getitem__(self, index):
                if self.opened_by is None:
                    self.opened_by = os.getpid()
                if self.opened_by != os.getpid():
                    raise RuntimeError("opened by another process")
                return super().__getitem__(index)

        note("begins")
        for batch in DataLoader(Opens(), batch_size=16):
            train(batch)
        """
    )
    assert described(template).baseline.num_workers == 0
    for num_workers in (2, 0, 1):
        measured(template, num_workers=num_workers)
    assert notes() == ["begins", "begins"]


@pytest.mark.parametrize("command", [("bash", "train.sh"), ("python", "-m", "package.train"), ("bash", "-c", "python -u train.py | cat")], ids=" ".join)
def test_launchers_end_in_the_script_and_go_no_further(script, command, monkeypatch, tmp_path):
    """The shell script is started twice, because a setting without workers ends its process. The user's own sitecustomize runs."""
    template, num_starts = script(PLAIN, *command), 2 if "train.sh" in command else 1
    own = "import sys\nassert sys.own_sitecustomize\nassert not any(path.endswith('/hook') for path in sys.path)\n"
    Path("train.py").write_text(own + Path("train.py").read_text())
    Path("train.sh").write_text("set -e\npython train.py\necho after >> notes.txt\n")
    Path("package").mkdir()
    Path("package/__init__.py").touch()
    Path("package/train.py").write_text(Path("train.py").read_text())
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text("import sys\nsys.own_sitecustomize = True\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "own"))
    assert described(template).name == "train"
    for num_workers in range(2 - num_starts, 2):
        measured(template, num_workers=num_workers)
    template.close()
    assert [line.split()[0] for line in notes()] == ["begins"] * num_starts


def test_a_subclass_made_anew_in_every_epoch_whose_gradients_are_accumulated(script):
    """Its own `__init__` has other arguments and does not pass settings on, and its own `__iter__` changes every batch exactly once. All of these
    loaders are one, found at the first step of the optimizer, whenever that is; and the script never sees the end of an epoch again."""
    template = script(
        """
        class Mine(DataLoader):
            def __init__(self, num_rows):
                super().__init__(Rows(num_rows), 16, num_workers=1)
            def __iter__(self):
                for x, y in super().__iter__():
                    yield x + 100_000, y

        for epoch in range(9):
            for number, (x, y) in enumerate(Mine(96)):
                assert 100_000 <= x.min() and x.max() < 200_000, x
                nn.functional.cross_entropy(model(x), y).backward()
                if number % 4 == 3:
                    optimizer.step()
                    optimizer.zero_grad()
            note("epoch")
        """
    )
    found = described(template)
    (mine,) = found.script.loaders
    assert (mine.name, mine.num_batches) == ("Mine", 4)
    assert (found.baseline.num_workers, found.epoch_samples) == (1, 96)
    measured(template, num_workers=2)
    assert notes() == []


def test_a_class_that_never_calls_torchs_constructor(script):
    """As torchdata's StatefulDataLoader: it sets the attributes itself, and the script gives its arguments by position."""
    template = script(
        """
        class Alone(DataLoader):
            def __init__(self, dataset, batch_size=1, num_workers=0, *, prefetch_factor=None, persistent_workers=False, pin_memory=False, every=1):
                inner = DataLoader(dataset, batch_size, num_workers=num_workers, prefetch_factor=prefetch_factor, persistent_workers=persistent_workers)
                self.__dict__.update(inner.__dict__)
                self.every = every

        for batch in Alone(Rows(), 16, 1, every=2):
            train(batch)
        """
    )
    found = described(template)
    assert found.baseline == LoaderConfig(num_workers=1, batch_size=16)
    loader = next(each for each in found.script.loaders if each.role == "measured")
    assert loader.call == "Alone(Rows, batch_size=16, num_workers=1)"
    assert measured(template, num_workers=2, batch_size=8)["window_num_items"][0] % 8 == 0


def test_torchs_own_batch_sampler_has_a_batch_size(script):
    """Frameworks pass it where their user gave a batch size, which therefore is known and can be searched."""
    template = script(
        """
        from torch.utils.data import BatchSampler, RandomSampler
        batches = BatchSampler(RandomSampler(Rows()), 16, drop_last=True)
        for batch in DataLoader(Rows(), batch_sampler=batches, num_workers=1):
            train(batch)
        """
    )
    found = described(template)
    assert (found.baseline, found.has_own_batches) == (LoaderConfig(num_workers=1, batch_size=16), False)
    columns = measured(template, num_workers=2, batch_size=8)
    assert columns["window_num_items"][0] == 8 * columns["window_num_batches"][0]


def test_a_loader_that_a_package_makes_from_the_scripts_own_is_shown_as_that(script):
    """As Accelerate does in `prepare`: the list has the script's line, and no second entry."""
    text = """
    sys.path.insert(0, "site-packages")
    from package import prepare
    loader, valid = DataLoader(Rows(), batch_size=16, num_workers=1), DataLoader(Rows(64), batch_size=8)
    for batch in prepare(loader):
        train(batch)
    """
    template = script(text)
    Path("site-packages").mkdir()
    Path("site-packages/package.py").write_text(
        "from torch.utils.data import DataLoader\n"
        "def prepare(loader):\n"
        "    return DataLoader(loader.dataset, batch_sampler=loader.batch_sampler, num_workers=loader.num_workers)\n"
    )
    found = described(template)
    line = (HEAD + textwrap.dedent(text)).splitlines().index("loader, valid = DataLoader(Rows(), batch_size=16, num_workers=1), DataLoader(Rows(64), batch_size=8)") + 1
    assert [(each.where, each.role) for each in found.script.loaders] == [(f"train.py:{line}", "measured"), (f"train.py:{line}", "not read")]
    assert found.baseline == LoaderConfig(num_workers=1, batch_size=16)


def test_a_scaler_that_skips_steps_and_two_optimizers(script):
    """The gradients of the first batches overflow, so that no optimizer steps; and batches are fetched ahead of their step."""
    template = script(
        """
        other = Descent(model.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10**6)
        batches = iter(DataLoader(Rows(), batch_size=16, num_workers=1))
        batch = next(batches)
        while batch is not None:
            ahead = next(batches, None)
            x, y = batch
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            scaler.scale(1000 * loss).backward()
            for each in (optimizer, other):
                scaler.step(each)
            scaler.update()
            batch = ahead
        """
    )
    (found,) = described(template).script.loaders
    assert found.role == "measured"
    assert found.num_batches > 2
    measured(template, num_workers=2)


def test_a_schedule_that_ends(script, tmp_path):
    """feedrate lets the script take more steps than it planned, so a schedule's refusal of these is no failure; it is told in script.log."""
    script(
        """
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=5)
        for batch in DataLoader(Rows(320), batch_size=16, num_workers=1):
            train(batch)
            schedule.step()
            note(schedule.get_last_lr()[0])
        """
    )
    template = Template(make_command_ref(("python", "train.py")), log_path=str(tmp_path / "script.log"))
    measured(template, num_workers=2)
    template.close()
    assert len(notes()) > 6
    assert len(set(notes()[4:])) == 1
    assert Path("script.log").read_text().count("feedrate: the schedule OneCycleLR raised ValueError: Tried to step 6 times") == 1


def test_a_schedule_that_is_wrong_from_the_start(script):
    template = script(
        """
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        for batch in DataLoader(Rows(), batch_size=16, num_workers=1):
            train(batch)
            schedule.step()
        """
    )
    assert "ReduceLROnPlateau.step() missing 1 required positional argument: 'metrics'" in refused(template).failure.message


BETWEEN = """
if __name__ == "__main__":
    loader, valid = DataLoader(Rows(320), batch_size=16, num_workers=1), DataLoader(Rows(64), batch_size=16, num_workers=1)
    for epoch in range(EPOCHS):
        for batch in loader:
            train(batch)
        note("validates", len(list(valid)))
        torch.save(model.state_dict(), "model.pt")
        time.sleep(0.5)
    note("done")
"""


def between(script, text, *, again=False):
    """The columns of a trial that also times what the script does between two epochs, if asked for with another one after it."""
    template = script(text)
    first = measured(template, num_workers=1, between_epochs=True)
    if again:
        assert measured(template, num_workers=1)["between_epochs_s"] is None
    return first


def test_what_a_script_does_between_epochs_is_timed_apart(script):
    """The whole validation is read, and the same process goes on with the next setting."""
    columns = between(script, BETWEEN.replace("EPOCHS", "9"), again=True)
    assert columns["between_epochs_failure"] is None
    parts = columns["between_epochs_parts_s"]
    line = (HEAD + BETWEEN).splitlines().index(next(line for line in BETWEEN.splitlines() if "valid = " in line)) + 1
    assert parts.keys() == {f"train.py:{line}", "torch.save"}
    assert columns["between_epochs_s"] > 0.5 + sum(parts.values())
    assert notes() == ["validates 4"]


def test_the_last_epoch_of_a_script_ends_its_process(script):
    columns = between(script, BETWEEN.replace("EPOCHS", "1"))
    assert columns["between_epochs_s"] > 0.5
    assert notes() == ["validates 4", "done"]


def test_a_checkpoint_that_was_there_is_not_overwritten_between_epochs(script):
    """That of the user's real training must not be replaced by that of a measurement."""
    Path("model.pt").write_text("precious")
    os.utime("model.pt", (1e9, 1e9))
    columns = between(script, BETWEEN.replace("EPOCHS", "9"))
    assert columns["between_epochs_failure"].startswith("the script writes over model.pt, which was there before")
    assert Path("model.pt").read_text() == "precious"


def test_what_counts_as_overwriting(tmp_path):
    """Files and folders that are older than the process, for Python's own ways to write. This process's own files do not count."""
    old, new, folder, found = tmp_path / "old", tmp_path / "new", tmp_path / "folder", []
    folder.mkdir()
    for path in (old, new):
        path.touch()
    for path in (old, folder):
        os.utime(path, (1e9, 1e9))
    with no_overwriting(found.append):
        for path in (new, tmp_path / "newer"):
            path.open("w").close()
        for mode in ("a", "r"):
            old.open(mode).close()
        assert found == []
        will_write(str(old))
        old.open("r+").close()
        new.replace(old)
        shutil.rmtree(folder)
    old.unlink()
    assert found == [str(old), str(old), str(old), str(folder)]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("batches = itertools.cycle(loader)\nwhile True: train(next(batches))", "the script goes on training without reading its loader"),
        ("for batch in loader: train(batch)\nraise ValueError('no more')", "the script raised ValueError: no more"),
        ("for batch in loader: train(batch)\nos._exit(3)", "the training process ended by itself (exit status 3) in phase between epochs"),
    ],
    ids=["keeps its batches", "raises", "dies"],
)
def test_why_the_time_between_epochs_is_not_known(script, text, why):
    """The setting is measured all the same."""
    columns = between(script, f"import itertools\nloader = DataLoader(Rows(320), batch_size=16, num_workers=1)\n{text}\n")
    assert columns["between_epochs_failure"].startswith(why)
    assert columns["between_epochs_s"] is None
    assert columns["window_num_batches"]


def test_a_loop_over_the_same_loader_that_does_not_train_ends_the_process(script):
    """The script reads its training data once more to evaluate: the next setting must be measured in the training loop."""
    columns = between(
        script,
        """
        loader = DataLoader(Rows(320), batch_size=16, num_workers=1)
        note("begins")
        while True:
            for batch in loader:
                train(batch)
            for x, y in loader:
                note("evaluates")
        """,
        again=True,
    )
    assert columns["between_epochs_s"] is not None
    assert notes() == ["begins", "begins"]


RANKS = """
def rank(number):
    for batch in DataLoader(Rows(), batch_size=16):
        train(batch)

if __name__ == "__main__":
    torch.multiprocessing.start_processes(rank, nprocs=1, start_method=METHOD)
"""


def test_a_training_in_a_process_that_the_script_forks_is_refused(script):
    """feedrate would wait for the end of a training that it does not see."""
    event = refused(script(RANKS.replace("METHOD", "'fork'")))
    assert "the script of `python train.py` trains in processes that it forks" in event.failure.message
    assert event.usage
    assert not event.raised


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_training_in_a_process_that_the_script_spawns_is_measured(script, method):
    """Without a process group it is an ordinary training. Its loader workers would start as it did, which takes seconds."""
    columns = measured(script(RANKS.replace("METHOD", repr(method))), num_workers=1, multiprocessing_context="fork")
    assert sum(columns["window_num_batches"]) > 0


def test_two_loaders_read_in_one_step(script):
    """The first one is measured; the other goes on, endlessly if the script wants so."""
    template = script(
        """
        def forever(loader):
            while True:
                yield from loader

        for first, second in zip(DataLoader(Rows(), batch_size=16), forever(DataLoader(Rows(40), batch_size=8))):
            train(first)
            train(second)
        """
    )
    roles = [each.role for each in described(template).script.loaders]
    assert roles == ["measured", "read in the same step"]
    assert sum(measured(template, num_workers=1)["window_num_batches"]) > 0


def test_a_loader_that_is_half_read_leaves_nothing(script):
    """Lightning keeps the iterator of its sanity check. Its worker is killed; the end of this module looks for what that leaves in /tmp."""
    template = script(
        """
        half_read = iter(DataLoader(Rows(64), batch_size=4, num_workers=1))
        next(half_read)
        for batch in DataLoader(Rows(), batch_size=16, num_workers=1):
            train(batch)
        """
    )
    assert [each.role for each in described(template).script.loaders] == ["left alone", "measured"]


def test_other_loaders_give_one_batch_meanwhile(script):
    """What a script does every 2 seconds is cut short, and no window contains its 3 seconds. The trial has to be longer than that."""
    template = script(
        """
        loader, valid = DataLoader(Rows(), batch_size=16, num_workers=1), DataLoader(Rows(640), batch_size=16)
        since = time.monotonic()
        for batch in loader:
            train(batch)
            if time.monotonic() > since + 2:
                time.sleep(3)
                note("validated", len(list(valid)))
                torch.save(model.state_dict(), "model.pt")
                since = time.monotonic()
        """
    )
    columns = measured(template, num_workers=1, max_trial_s=9.0)
    assert "validated 1" in notes()
    assert max(columns["window_duration_s"]) < 3


def test_a_validation_loader_counts_in_whether_a_setting_fits(script):
    """Its workers live beside those of the measured loader, and ten million batches in flight need too many open files."""
    template = script(
        """
        loader = DataLoader(Rows(), batch_size=16, num_workers=1)
        valid = DataLoader(Rows(64), batch_size=16, num_workers=1, prefetch_factor=10**7, persistent_workers=True)
        for batch in loader:
            train(batch)
        """
    )
    failure = refused(template, num_workers=1).failure
    assert failure.kind in ("too-many-files", "shm-full")
    assert "together with 1 worker of the loader at train.py:" in failure.message


def test_what_a_script_prints_is_kept(script, tmp_path):
    script("print('lost'); raise SystemExit(3)", head="")
    template = Template(make_command_ref(("python", "train.py")), log_path=str(tmp_path / "script.log"))
    failure = refused(template).failure
    template.close()
    assert "ended with exit status 3 before it had trained; its last output: lost" in failure.message
    assert Path("script.log").read_text() == "lost\n"


@pytest.mark.slow
def test_a_script_that_ends_is_begun_again(script):
    """The steps of a process are used up some time; a script that is too short for one measurement is refused.

    It takes 15 s, because the script is begun three times and trains to its end.
    """
    template = script(
        """
        note("begins")
        for number, batch in enumerate(DataLoader(Rows(), batch_size=16, num_workers=1)):
            train(batch)
            time.sleep(0.02)
            if number == 70:
                break
        """
    )
    for _ in range(40):
        measured(template, num_workers=2)
        if len(notes()) == 2:
            break
    assert len(notes()) == 2
    failure = refused(template, num_workers=1, max_trial_s=20.0).failure
    assert failure.kind == "script-ended"
    assert "train.py ended after 70 batches" in failure.message


FAILURES = {
    "raises before it trains": ("raise ValueError('no data')", "train.py raised ValueError: no data, before it had trained", True),
    "makes no loader": ("model(torch.zeros(8))", "train.py ended without making a torch DataLoader", True),
    "does not step": ("list(DataLoader(Rows(64)))", "no torch optimizer had stepped, so feedrate cannot tell which of its loaders feeds a training", True),
    "ends early": ("train(next(iter(DataLoader(Rows(64), batch_size=4))))", "ended before an optimizer had stepped between two batches", True),
    "never reads its loader": ("DataLoader(Rows(64))", "ended before an optimizer had stepped between two batches", True),
    "needs a GPU": ("model.cuda()", "It asks for a GPU, and torch has none that it can use on this machine: run feedrate where the training", True),
    "does not know an argument": (
        "import argparse; argparse.ArgumentParser().parse_args(['--lrr', '1'])",
        "ended with exit status 2 before it had trained; its last output: usage: train.py [-h]\ntrain.py: error: unrecognized arguments: --lrr 1",
        True,
    ),
    "waits for input": ("input('name? ')", "train.py asks for input, which it cannot get here", True),
    "refuses its arguments": ("sys.exit(2)", "the command `python train.py` ended with exit status 2 before it had trained", True),
    "is killed": ("os.kill(os.getpid(), 9)", "was killed by SIGKILL before it had trained", True),
}


HEADS = {"ends early": HEAD, **dict.fromkeys(("does not know an argument", "refuses its arguments", "is killed"), "import os, sys\n")}


@pytest.mark.parametrize("name", FAILURES)
def test_why_a_script_cannot_be_measured(script, name):
    text, sentence, raised = FAILURES[name]
    event = refused(script(text, head=HEADS.get(name, DATA)))
    assert sentence in event.failure.message
    assert event.usage
    assert event.raised is raised
    if "raises" in name:
        assert "raise ValueError('no data')" in event.failure.traceback


def test_a_step_that_raises_is_shown_with_the_scripts_traceback(script):
    template = script(
        """
        def step_of_mine(number, batch):
            train(batch)
            if number == 3:
                raise ZeroDivisionError("on purpose")

        for number, batch in enumerate(DataLoader(Rows(), batch_size=16, num_workers=1)):
            step_of_mine(number, batch)
        """
    )
    failure = refused(template, num_workers=1).failure
    assert failure.message == "ZeroDivisionError: on purpose"
    assert "step_of_mine" in failure.traceback
    assert "takeover.py" not in failure.traceback


def test_an_evaluation_is_measured_if_it_is_chosen(script):
    text = """
    with torch.no_grad():
        for x, y in DataLoader(Rows(64), batch_size=4):
            model(x)
        for x, y in DataLoader(Rows(4000), batch_size=16):
            model(x)
    """
    line = (DATA + textwrap.dedent(text)).splitlines().index("    for x, y in DataLoader(Rows(4000), batch_size=16):") + 1
    assert described(script(text, loader=f"train.py:{line}", head=DATA)).baseline.batch_size == 16
    assert "--loader 3 named none of which it read two batches" in refused(script(text, loader="3", head=DATA)).failure.message


def test_a_loader_is_named_by_its_number_or_its_place():
    seen = SeenLoader(2, Origin("/home/me/project/train.py", 41, "main", None), "DataLoader", "DataLoader(Rows)", ("Rows", 64))
    assert [name for name in ("1", "2", "train.py:41", "project/train.py:41", "rain.py:41", "train.py:4", "train.py") if seen.is_named(name)] == [
        "2", "train.py:41", "project/train.py:41",
    ]  # fmt: skip


def test_an_interpreter_without_feedrate_is_told_how_to_get_it(script, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "other"], check=True)
    python = tmp_path / "other" / "bin" / "python"
    event = refused(script(PLAIN, str(python), "train.py"))
    assert f"{python} cannot import feedrate" in event.failure.message
    assert f"{python} -m pip install feedrate==" in event.failure.message
    assert not event.raised


def test_a_script_without_main_guard_is_refused_if_workers_import_it(script):
    """Each of its spawned workers would train an epoch before it loads anything. Python needs seconds to start them."""
    template = script("from rows import Data\nfor batch in DataLoader(Data(), batch_size=16, num_workers=1):\n    train(batch)\n")
    Path("rows.py").write_text(HEAD + "class Data(Rows): pass\n")
    failure = refused(template, num_workers=1, multiprocessing_context="spawn").failure
    assert "trains when it is imported" in failure.message


BARE = """
import time
def note(text):
    print(text, file=open("notes.txt", "w"), flush=True)
"""


@pytest.mark.parametrize("phase", ["setup", "measure"])
@pytest.mark.parametrize("who", ["supervisor", "template", "launcher", "script"])
def test_whichever_process_dies_the_others_end(script, tag, tmp_path, who, phase):
    """Killed while the script starts, and in the middle of a measurement."""
    script(*((PLAIN,) if phase == "measure" else ("note('begins')\ntime.sleep(100)",)), head=HEAD if phase == "measure" else BARE)
    Path("train.sh").write_text("python train.py\n")
    program = """
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.measuring.measure_options import MeasureOptions
from feedrate.trainables.protocol import MeasureRequest, Phase
from feedrate.trainables.resolve import make_command_ref
from feedrate.trainables.sandbox.template import Template
template = Template(make_command_ref(("bash", "train.sh")))
request = MeasureRequest(config=LoaderConfig(num_workers=2, batch_size=16), options=MeasureOptions(max_trial_s=100.0))
for event in template.run(request, max_s=200):
    if isinstance(event, Phase):
        print(event.name, flush=True)
template.close()
"""
    supervisor = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=os.environ | {TAG: tag}, start_new_session=True)
    if phase == "measure":
        for line in supervisor.stdout:
            if line == "measure\n":
                break
    else:
        assert eventually(lambda: notes(), 60)
    pids = {"supervisor": supervisor.pid}
    for pid in tagged(tag):
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        if "feedrate.trainables.sandbox.template_main" in words:
            pids["template"] = pid
        elif words[0] == "bash":
            pids["launcher"] = pid
            pids["script"] = int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])

    os.kill(pids[who], 9)
    if who == "launcher":  # the script goes on without its shell
        supervisor.terminate()
    supervisor.wait(60)
    supervisor.stdout.close()
    assert eventually(lambda: not tagged(tag), 30), tagged(tag)
