"""request.py: the options are checked against the workload before anything is measured or written."""

from dataclasses import replace

import pytest
from described_workloads import SHORT
from ray import tune

from feedrate.search.engine.reservation import Placement
from feedrate.search.options import SearchOptions, UsageError
from feedrate.search.setup.request import (
    baseline_of,
    check_batch_sizes,
    check_hosts,
    check_step_options,
    epoch_remarks,
    given_dimensions,
    remarks,
    search_space,
    seed_configs,
)
from feedrate.search.space.search_space import Choice, Range
from feedrate.trainables.config import LoaderConfig
from feedrate.trainables.resolve import WorkloadRef


def placement(cpus=4):
    return Placement(cpus=cpus, gpus=0, trial_slot=False, num_slots=1, where="here")


def described(**own):
    """A workload with a loader of its own."""
    loader = LoaderConfig(**{"num_workers": 2, "batch_size": 8} | own)
    return replace(SHORT, baseline=loader, is_short=False)


def test_dimensions_may_be_written_as_tunes_domains():
    """Ray Tune's domains, our own and plain values give the same space; the trial's CPUs are not known yet."""
    given = given_dimensions(
        {
            "num_workers": tune.randint(0, 9),
            "in_order": tune.choice([True, False]),
            "sharing_strategy": tune.choice(["file_descriptor", "file_system"]),
            "trainer_cpus": tune.choice([None, 3]),
            "batch_size": Choice((16,)),
            "multiprocessing_context": "spawn",
        }
    )
    space = search_space(given, SHORT, placement())
    assert space.num_workers == Range(0, 8)
    assert space.in_order == Choice((True, False))
    assert space.sharing_strategy == Choice((None, "file_system"))
    assert space.trainer_cpus == Choice((None, 3))
    assert space.batch_size == Choice((16,))
    assert space.multiprocessing_context == Choice(("spawn",))


@pytest.mark.parametrize(("cpus", "way_out"), [(4, "Ask for 3 at most"), (1, "Leave it out")])
def test_a_trainer_that_leaves_no_cpu_for_the_workers_is_refused(cpus, way_out):
    """Before anything is measured: the sentence gives the number of CPUs and the way out."""
    given = {"trainer_cpus": Choice((None, 1, cpus))}
    with pytest.raises(
        UsageError, match=f"--trainer-cpus {cpus} leaves no CPU for the workers: a trial has only {cpus}.*{way_out}"
    ):
        search_space(given, SHORT, placement(cpus))
    assert search_space({"trainer_cpus": Choice((None, 3))}, SHORT, placement()).values("trainer_cpus") == (None, 3)


@pytest.mark.parametrize(
    ("own", "name", "value"),
    [
        ({"multiprocessing_context": "spawn"}, "multiprocessing_context", "spawn"),
        ({"in_order": False}, "in_order", False),
    ],
)
def test_what_the_users_loader_chose_stays(own, name, value):
    """Its start method and order are the only value of their dimension, in every setting that is tried first too."""
    space = search_space({}, described(**own), placement())
    assert space.values(name) == (value,)
    baseline = baseline_of(SearchOptions(), described(**own), space)
    assert getattr(baseline, name) == value
    with_workers = [config for config in seed_configs(baseline, placement(), space) if config.num_workers]
    assert {config.num_workers for config in with_workers} == {2, 4, 8, 16}
    assert {getattr(config, name) for config in with_workers} == {value}
    assert all(space.contains(config) for config in with_workers)


def test_what_was_asked_for_wins_over_the_users_loader():
    """A dimension that is named is searched as it was named; where the loader has the default, nothing is fixed."""
    given = {"multiprocessing_context": Choice((None, "fork"))}
    space = search_space(given, described(multiprocessing_context="spawn"), placement())
    assert space.values("multiprocessing_context") == (None, "fork")
    plain = search_space({}, described(), placement())
    assert (plain.values("multiprocessing_context"), plain.values("in_order")) == ((None,), (True,))


def test_settings_that_people_use_have_the_asked_value_where_the_default_is_not():
    """With --trainer-cpus 1,2 they are tried with the first of them."""
    space = search_space({"trainer_cpus": Choice((1, 2))}, SHORT, placement())
    seeds = seed_configs(LoaderConfig(batch_size=32), placement(), space)
    assert {config.trainer_cpus for config in seeds if config.num_workers} == {1}
    assert {config.num_workers for config in seeds} == {0, 2, 4, 8, 16}


def test_settings_that_people_use_are_tried_at_two_batch_sizes():
    """At the user's own and at the largest in turn: what workers bring differs from size to size."""
    space = search_space({}, SHORT, placement())
    tried = {config.num_workers: config.batch_size for config in seed_configs(LoaderConfig(batch_size=64), placement(), space)}
    assert tried == {0: 64, 4: 128, 8: 64, 2: 128, 16: 64}
    fixed = search_space({"batch_size": Choice((None,))}, SHORT, placement())
    assert {config.batch_size for config in seed_configs(LoaderConfig(batch_size=None), placement(), fixed)} == {None}


def test_a_short_epoch_limits_what_people_use_and_says_so():
    """600 samples are 19 batches of 32 and 5 of 128. A note names what the user asked for beyond that, with the numbers; defaults get no note."""
    given = {"num_workers": Range(0, 32), "prefetch_factor": Choice((2, 4))}
    space = search_space(given, SHORT, placement(), 600)
    workers, prefetch = epoch_remarks(given, space)
    assert workers.startswith("--num-workers: your epoch of 600 items has 19 batches of 32 and 10 batches of 64 and 5 batches of 128;")
    assert prefetch.startswith("--prefetch-factor: your epoch of 600 items has")
    assert epoch_remarks({}, search_space({}, SHORT, placement(), 600)) == []
    assert epoch_remarks(given, search_space(given, SHORT, placement(), None)) == []
    tried = {config.num_workers: config.batch_size for config in seed_configs(LoaderConfig(batch_size=32), placement(), space)}
    assert tried == {0: 32, 4: 128, 8: 32, 2: 128, 16: 32}


@pytest.mark.parametrize(("options", "flag"), [({"amp": "bf16"}, "amp"), ({"compile": True}, "compile")])
def test_a_step_of_your_own_is_not_changed_from_outside(options, flag):
    """A workload with its own step refuses --amp and --compile in one sentence. The short form takes them."""
    with pytest.raises(UsageError, match=f"--{flag} is only for the short form of a workload.* do it in make_step"):
        check_step_options(SearchOptions(**options), described())
    check_step_options(SearchOptions(**options), SHORT)
    check_step_options(SearchOptions(), described())


@pytest.mark.parametrize(
    ("command", "left_out"),
    [
        (None, "add --ranks N"),
        (("torchrun", "--standalone", "--nproc-per-node", "4", "train.py"), "leave --standalone out of the command"),
        (("python", "-m", "torch.distributed.run", "--nnodes=2", "--master-port", "1", "-m", "train"), "leave --nnodes=2 and --master-port out of the command"),
        (("torchrun", "--nproc-per-node=4", "train.py", "--nnodes=2"), None),
        (("bash", "train.sh"), None),
    ],
)  # fmt: skip
def test_torchrun_is_told_once_where_its_ranks_run(command, left_out):
    options = SearchOptions(address="auto", hosts_per_trial=2)
    ref = WorkloadRef(target="train", command=command)
    check_hosts(SearchOptions(), ref)
    if left_out is None:
        check_hosts(options, ref)
        return
    with pytest.raises(UsageError, match=left_out):
        check_hosts(options, ref)


def test_what_changes_nothing_or_more_than_it_seems_is_said():
    """An option without effect, and that batches lose their order, are announced; nothing else is."""
    options = SearchOptions()
    assert remarks({"in_order": Choice((True,)), "trainer_cpus": Choice((1,))}, options, SHORT) == []
    (order,) = remarks({"in_order": Choice((True, False))}, options, SHORT)
    assert order.startswith("--in-order false: batches arrive as soon as they are ready, not in the sampler's order")
    without = {
        "num_workers": Choice((0,)),
        "sharing_strategy": Choice((None, "file_system")),
        "in_order": Choice((False,)),
    }
    assert remarks(without, options, SHORT) == [
        "--in-order has no effect with 0 workers",
        "--sharing-strategy has no effect with 0 workers",
    ]
    (pin,) = remarks({"pin_memory": Choice((True, False))}, options, SHORT)
    assert pin.startswith("--pin-memory has no effect")


def test_a_batch_size_that_the_loader_does_not_have_is_refused():
    """One sentence with the way out; where nothing is asked, or the loader has one, nothing is refused."""
    own = replace(SHORT, fixed=("batch_size",))
    with pytest.raises(UsageError, match=r"--batch-size 32,64: the workload's loader has batch_size=None.*Leave --batch-size out"):
        check_batch_sizes({"batch_size": Choice((32, 64))}, own)
    for given, described in (({}, own), ({"batch_size": Choice((None,))}, own), ({"batch_size": Choice((8,))}, SHORT)):
        check_batch_sizes(given, described)
