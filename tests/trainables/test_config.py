"""config.py: one setting, refused when impossible, equal when equivalent, accepted by torch's DataLoader."""

import itertools

import pytest
from torch.utils.data import DataLoader
from workloads import Rows

from feedrate.trainables.config import START_METHODS, LoaderConfig
from feedrate.trainables.loader.baseline import read_baseline


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"num_workers": -1}, "num_workers must be 0 or more, not -1: 0 loads in the training process"),
        ({"num_workers": "2"}, "num_workers must be a whole number, not '2'"),
        ({"num_workers": 2.0}, "num_workers must be a whole number, not 2.0"),
        ({"num_workers": True}, "num_workers must be a whole number, not True"),
        ({"batch_size": 0}, "batch_size must be 1 or more, not 0: a batch has at least one item"),
        (
            {"num_workers": 1, "prefetch_factor": 0},
            "prefetch_factor must be 1 or more, not 0: torch fails at iteration",
        ),
        ({"num_workers": 1, "prefetch_factor": 1.5}, "prefetch_factor must be a whole number, not 1.5"),
        ({"multiprocessing_context": "thread"}, "must be one of fork, forkserver, spawn, not 'thread'"),
        ({"pin_memory": "false"}, "pin_memory must be True or False, not 'false'"),
        ({"persistent_workers": 1}, "persistent_workers must be True or False, not 1"),
        ({"sharing_strategy": "memory"}, "must be one of file_descriptor, file_system, not 'memory'"),
        ({"trainer_cpus": 0}, "trainer_cpus must be 1 or more, not 0: None lets the workers run on every CPU"),
        ({"trainer_cpus": True}, "trainer_cpus must be a whole number, not True"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(fields, said):
    """An impossible setting is refused when it is made, in a sentence that names the option, the value and why."""
    with pytest.raises(ValueError, match=said):
        LoaderConfig(**fields)


def test_equivalent_settings_are_equal():
    """Options that need workers fold away without them, and torch's default prefetch has its number."""
    folded = LoaderConfig(
        num_workers=0,
        batch_size=8,
        prefetch_factor=4,
        persistent_workers=True,
        multiprocessing_context="spawn",
        in_order=False,
        sharing_strategy="file_system",
        trainer_cpus=2,
    )
    assert folded == LoaderConfig(batch_size=8)
    assert hash(folded) == hash(LoaderConfig(batch_size=8))
    assert LoaderConfig(num_workers=2) == LoaderConfig(num_workers=2, prefetch_factor=2)
    assert LoaderConfig(num_workers=2) != LoaderConfig(num_workers=2, prefetch_factor=3)
    assert LoaderConfig(num_workers=2, sharing_strategy="file_descriptor") == LoaderConfig(num_workers=2)
    assert LoaderConfig(pin_memory=True).without_accelerator() == LoaderConfig()


def test_a_setting_cannot_be_changed():
    """A setting is a key of tables: it stays what it is."""
    with pytest.raises(AttributeError):
        LoaderConfig().num_workers = 3


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_a_dataloader_takes_every_setting_and_gives_it_back():
    """A real DataLoader accepts `to_kwargs()` of every setting, and `read_baseline` reads the same setting from it."""
    grid = itertools.product(
        (0, 1, 3), (1, 7), (None, 1, 5), (False, True), (False, True), (None, *START_METHODS), (True, False)
    )
    names = (
        "num_workers",
        "batch_size",
        "prefetch_factor",
        "pin_memory",
        "persistent_workers",
        "multiprocessing_context",
        "in_order",
    )
    settings = {LoaderConfig(**dict(zip(names, values, strict=True))) for values in grid}
    assert len(settings) == 2 * 2 + 2 * 2 * 3 * 2 * 2 * 4 * 2  # without workers only batch_size and pin_memory differ
    for setting in settings:
        assert read_baseline(DataLoader(Rows(), **setting.to_kwargs())) == setting


def test_a_setting_without_batch_size_leaves_it_to_the_batch_sampler():
    """`batch_size=None` is not passed on, so that a batch_sampler is accepted."""
    kwargs = LoaderConfig(batch_size=None, num_workers=1).to_kwargs()
    loader = DataLoader(Rows(), batch_sampler=[[0, 1], [2]], **kwargs)
    assert read_baseline(loader) == LoaderConfig(batch_size=None, num_workers=1)


def test_what_a_dataloader_does_not_accept_is_apart():
    """`to_process` holds the settings of the process that are set; a trainer has no more threads than its own CPUs."""
    setting = LoaderConfig(num_workers=2, sharing_strategy="file_system", trainer_cpus=3)
    assert setting.to_process() == {"sharing_strategy": "file_system", "trainer_cpus": 3}
    assert setting.to_kwargs() == LoaderConfig(num_workers=2).to_kwargs()
    assert LoaderConfig(num_workers=2).to_process() == {}
    assert LoaderConfig(num_workers=2).to_process(threads=8) == {"torch_num_threads": 8}
    assert setting.to_process(threads=8)["torch_num_threads"] == 3
    assert setting.to_process(threads=2)["torch_num_threads"] == 2


def test_a_setting_is_read_from_a_record():
    """`from_dict` takes back what `to_dict` gave, ignores other columns, and fills in torch's defaults."""
    setting = LoaderConfig(num_workers=3, batch_size=4, prefetch_factor=8, in_order=False)
    assert LoaderConfig.from_dict({**setting.to_dict(), "trial_id": 7, "throughput": 1.0}) == setting
    assert LoaderConfig.from_dict({"num_workers": 1}) == LoaderConfig(num_workers=1, batch_size=1, prefetch_factor=2)


def test_a_setting_has_a_short_name():
    """Tables show a setting in a few characters; nothing is shown that has no effect."""
    assert LoaderConfig(batch_size=64).short() == "b64 w0"
    assert LoaderConfig(batch_size=None, num_workers=8, prefetch_factor=4).short() == "w8 p4"
    everything = LoaderConfig(
        num_workers=8,
        batch_size=2,
        pin_memory=True,
        persistent_workers=True,
        in_order=False,
        multiprocessing_context="spawn",
        sharing_strategy="file_system",
        trainer_cpus=1,
    )
    assert everything.short() == "b2 w8 p2 pin pers any-order spawn file_system trainer_cpus=1"
