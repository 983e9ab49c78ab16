"""reservation.py, nodes.py and look.py without a cluster: hardware classes, what a trial reserves, versions that differ."""

import subprocess
import sys
from dataclasses import replace

import pytest

from feedrate.search.engine.nodes import Host, check_versions, promised, why_not
from feedrate.search.engine.reservation import SeveralClasses, place
from feedrate.search.engine.slots import searching_job
from feedrate.search.options import SearchOptions, UsageError

HERE = {"python": "3.11", "torch": "2.13.0", "ray": "2.60.0", "feedrate": "0.1.0", "numpy": "2.4.6", "pillow": "13.0.0"}
XEON, EPYC = "Intel(R) Xeon(R) Platinum 8488C", "AMD EPYC 7R13"


def host(name, **more):
    facts = {"num_cpus": 8, "num_gpus": 1, "gpu_model": "A10G", "cpu_model": EPYC, "memory_bytes": 33_000_000_000}
    return Host(**{"node_id": f"id-{name}", "hostname": name, "host_id": f"host-{name}"} | facts | more)


SMALL = [host("a1"), host("a2", memory_bytes=33_100_000_000)]
LARGE = [host("h1", num_cpus=96, num_gpus=8, gpu_model="H100", cpu_model=XEON, memory_bytes=2_000_000_000_000)]


def test_a_node_without_a_package_of_the_trials_gives_no_facts():
    """It has the right versions but cannot start a supervisor, so the error names the package, and the node gets no trials."""
    lacks = "import sys; sys.modules['pathspec'] = None; from feedrate.search.engine.look import _facts; _facts()"
    done = subprocess.run([sys.executable, "-P", "-c", lacks], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].startswith("ModuleNotFoundError: import of pathspec halted")


def test_machines_of_one_kind_have_one_class():
    """GPUs, CPUs, memory to two digits and the processor; a label of the node's own comes first."""
    assert {each.hardware for each in SMALL} == {"1xa10g-8cpu-31gib-amd-epyc-7r13"}
    assert LARGE[0].hardware == "8xh100-96cpu-1900gib-intel-r-xeon-r-platinum-8488c"
    assert host("b", label="g5.2xlarge").hardware == "g5.2xlarge"
    assert host("b", num_cpus=16).hardware != SMALL[0].hardware != host("b", cpu_model=XEON).hardware


def test_one_kind_needs_no_name():
    """Any node will do, also one that joins late."""
    placement = place(SearchOptions(), SMALL)
    assert (placement.cpus, placement.gpus, placement.num_slots, placement.selector) == (8, 1, 2, {})
    assert placement.hardware == SMALL[0].hardware
    assert placement.where == "a1, a2 \xb7 1 of 1 GPUs, 8 of 8 CPUs each \xb7 2 hosts"


def test_unlike_machines_are_told_apart():
    """Without a name the kinds are listed; a part of the name is enough; trials stay on that kind."""
    with pytest.raises(SeveralClasses, match="2 kinds of machines, whose rates cannot be compared: choose one with --hardware") as several:
        place(SearchOptions(), SMALL + LARGE)
    assert several.value.names == sorted([SMALL[0].hardware, LARGE[0].hardware])
    placement = place(SearchOptions(hardware="a10g"), SMALL + LARGE)
    assert (placement.cpus, placement.num_slots) == (8, 2)
    assert placement.selector == {"ray.io/node-id": "in(id-a1, id-a2)"}
    assert place(SearchOptions(hardware="H100"), SMALL + LARGE).cpus == 12
    labelled = [replace(each, label="small") for each in SMALL] + [replace(each, label="large") for each in LARGE]
    placement = place(SearchOptions(hardware="small"), labelled)
    assert placement.selector == {"feedrate-hardware": "small"}
    assert [placement.takes(each) for each in labelled] == [True, True, False]


def test_kinds_that_cannot_run_a_trial_do_not_count():
    """One kind is left, and trials are kept on it."""
    placement = place(SearchOptions(gpus_per_trial=4), SMALL + LARGE)
    assert placement.hardware == LARGE[0].hardware
    assert placement.selector == {"ray.io/node-id": "in(id-h1)"}


@pytest.mark.parametrize(
    ("name", "reason"),
    [("tpu", "is no hardware class of the cluster"), ("gib", "could be 1xa10g.* or 8xh100")],
)
def test_a_name_that_names_none_or_several(name, reason):
    with pytest.raises(UsageError, match=f"--hardware {name} {reason}.*: name one of 1xa10g"):
        place(SearchOptions(hardware=name), SMALL + LARGE)


def test_several_nodes_of_one_host():
    """Measure one trial at a time; where nodes declare slots, each has its own."""
    nodes = [host("x"), replace(host("x"), node_id="other")]
    assert place(SearchOptions(), nodes).num_slots == 1
    declared = place(SearchOptions(), [replace(each, has_slot=True) for each in nodes])
    assert declared.num_slots == 2
    assert declared.where.endswith(" \xb7 2 trial_slots, which searches take in turn")


def test_what_is_reserved_and_what_is_used():
    """A share of the node; all CPUs without pinning; the whole node with --exclusive, of which a trial uses its share."""
    options = {"hardware": "h100", "address": "auto"}
    share = place(SearchOptions(**options), LARGE)
    assert (share.cpus, share.gpus, share.bundle) == (12, 1, {"CPU": 12.0, "GPU": 1.0})
    unpinned = place(SearchOptions(**options, pin_cpus=False), LARGE)
    assert (unpinned.cpus, unpinned.bundle) == (96, {"CPU": 12.0, "GPU": 1.0})
    whole = place(SearchOptions(**options, exclusive=True), LARGE)
    assert (whole.cpus, whole.gpus, whole.bundle) == (12, 1, {"CPU": 96.0, "GPU": 8.0})
    assert whole.takes(LARGE[0])
    with pytest.raises(ValueError, match="--exclusive is only for a cluster"):
        SearchOptions(exclusive=True)


def test_each_rank_takes_a_gpu():
    options = {"hardware": "h100", "address": "auto"}
    four = place(SearchOptions(**options), LARGE, num_ranks=4)
    assert (four.cpus, four.gpus, four.bundle) == (48, 4, {"CPU": 48.0, "GPU": 4.0})
    with pytest.raises(UsageError, match="the training has 16 ranks on one host, and the largest host has 8 GPUs: start fewer ranks, or say with --gpus-per-trial"):
        place(SearchOptions(**options), LARGE, num_ranks=16)
    assert place(SearchOptions(**options, gpus_per_trial=8), LARGE, num_ranks=16).gpus == 8
    assert place(SearchOptions(**options, gpus_per_trial=0), LARGE, num_ranks=16).gpus == 0


def test_a_trial_takes_the_same_on_each_of_several_hosts():
    hosts = [Host(node_id=f"n{number}", hostname=f"n{number}", num_cpus=8, num_gpus=2, host_id=f"h{number}") for number in range(5)]
    options = SearchOptions(address="auto", hosts_per_trial=2)
    placement = place(options, hosts, num_ranks=2)
    assert (placement.num_hosts, placement.bundle, placement.num_slots) == (2, {"CPU": 8.0, "GPU": 2.0}, 2)
    assert "each trial on 2 hosts, 2 trials at once" in placement.where
    two = place(options, hosts[:2], num_ranks=2)
    assert (two.num_slots, two.at_once(hosts[:1])) == (1, 0)
    with pytest.raises(UsageError, match="--hosts-per-trial 2: the cluster has 1 host on which a trial can run"):
        place(options, hosts[:1])
    with pytest.raises(ValueError, match="--hosts-per-trial 2 is for a cluster"):
        SearchOptions(hosts_per_trial=2)
    with pytest.raises(ValueError, match="--hosts-per-trial and --share do not go together"):
        SearchOptions(address="auto", hosts_per_trial=2, share="host")


def test_a_host_that_trials_share():
    """As many at once as GPUs allow, each with the CPUs that belong to its own; a slot of the node is divided."""
    shared = place(SearchOptions(share="host"), LARGE)
    assert (shared.cpus, shared.num_slots, shared.num_shares) == (12, 8, 8)
    assert shared.where.endswith("8 trials at once, 8 per host, which share its disk and memory bandwidth (--share host)")
    declared = [replace(each, has_slot=True) for each in [*LARGE, replace(LARGE[0], node_id="other", host_id="second")]]
    halves = place(SearchOptions(share="host", gpus_per_trial=3), declared)
    assert (halves.cpus, halves.num_slots) == (36, 4)
    assert halves.bundle == {"CPU": 36.0, "GPU": 3.0, "trial_slot": 0.5}
    sevenths = place(SearchOptions(share="host", cpus_per_trial=2), [replace(LARGE[0], num_gpus=7, has_slot=True)])
    assert 7 * sevenths.bundle["trial_slot"] <= 1
    odd = place(SearchOptions(share="host", gpus_per_trial=2), [replace(LARGE[0], num_cpus=18)])
    assert (odd.cpus, odd.num_slots) == (4, 4)
    assert place(SearchOptions(), LARGE).num_slots == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [({}, "a1 has 1 GPU and 8 CPUs, but one trial takes 1 and 8"), ({"gpus_per_trial": 0}, "--gpus-per-trial must be 1 or more")],
)
def test_a_host_that_has_nothing_to_share(options, reason):
    with pytest.raises((UsageError, ValueError), match=reason):
        place(SearchOptions(share="host", **options), SMALL)


def test_more_cpus_than_a_gpu_has_are_no_share():
    with pytest.raises(UsageError, match=r"--share host is for hosts .* h1 has 8 GPUs and 96 CPUs, but one trial takes 1 and 13"):
        place(SearchOptions(share="host", cpus_per_trial=13), LARGE)


@pytest.mark.parametrize("other", [{"exclusive": True, "address": "auto"}, {"pin_cpus": False}])
def test_sharing_a_host_and_having_it_alone(other):
    with pytest.raises(ValueError, match="leave one of them out"):
        SearchOptions(share="host", **other)


def test_a_late_node_that_is_no_match():
    """Other versions or another kind: trials stay away from it, whatever else they ask for."""
    late = host("late", versions=HERE)
    assert why_not(late, HERE, late.hardware) is None
    assert why_not(late, HERE, "") is None
    assert why_not(late, HERE, "h100") == "late is a different kind of machine (1xa10g-8cpu-31gib-amd-epyc-7r13)"
    assert "late has ray 2.60.0, but the driver has python 3.11" in why_not(late, HERE | {"ray": "2.61.0"}, "")
    plain, labelled = place(SearchOptions(), SMALL), place(SearchOptions(hardware="small"), [replace(each, label="small") for each in SMALL] + LARGE)
    assert plain.where_not([]) == {}
    assert plain.where_not(["b", "a"]) == {"ray.io/node-id": "!in(a, b)"}
    assert labelled.where_not(["a"]) == {"feedrate-hardware": "small", "ray.io/node-id": "!in(a)"}
    named = place(SearchOptions(hardware="a10g"), SMALL + LARGE)
    assert named.where_not(["late"]) == named.selector, "late nodes are not taken in any case"
    first, *others = named.selector["ray.io/node-id"].removeprefix("in(").removesuffix(")").split(", ")
    assert named.where_not([first]) == named.selector | {"ray.io/node-id": f"in({', '.join(others)})"}
    assert named.where_not([first, *others]) == named.selector, "one of them may have to do"
    assert [each.hostname for each in SMALL + LARGE if named.takes(each)] == ["a1", "a2"]


def test_other_versions_are_refused_and_named():
    """Every node that differs, and what the driver has; a package's build may differ."""
    check_versions([host("a1", versions=dict(HERE))], HERE)
    nodes = [host("a1", versions=HERE | {"torch": "2.12.0"}), host("a2", versions=HERE | {"python": "3.12"})]
    with pytest.raises(UsageError, match=r"a1 has torch 2\.12\.0; a2 has python 3\.12, but the driver has python 3\.11, torch 2\.13\.0"):
        check_versions(nodes, HERE)


def test_a_search_is_known_by_its_placement_groups():
    """Those that hold a trial, by the job that made them."""
    group = {"placement_group_id": "ab" * 14 + "03000000", "state": "PENDING", "strategy": "PACK", "bundles": {0: {"CPU": 2.0, "trial_slot": 1.0}}}
    assert searching_job(group, True) == "03000000"
    assert searching_job(group, False) is None
    assert searching_job(group | {"state": "REMOVED"}, True) is None
    assert searching_job(group | {"bundles": {0: {"CPU": 2.0}, 1: {"CPU": 2.0}}}, False) is None
    assert searching_job(group | {"bundles": {0: {"CPU": 2.0}, 1: {"CPU": 2.0}}, "strategy": "STRICT_SPREAD"}, False) == "03000000"  # a trial on two hosts
    assert searching_job(group | {"bundles": {0: {"CPU": 2.0}, 1: {"CPU": 4.0}}, "strategy": "STRICT_SPREAD"}, False) is None
    assert searching_job(group | {"bundles": {0: {"CPU": 2.0, "TPU": 4.0}}}, False) is None
    assert searching_job(group | {"bundles": {0: {"CPU": 2.0, "GPU": 1.0}}}, False) == "03000000"


BOOTSTRAP = """
max_workers: 6
head_node_type: head
available_node_types:
  head: {resources: {CPU: 0}, max_workers: 0}
  a10g-spot: {resources: {CPU: 8, GPU: 1, trial_slot: 1}, labels: {feedrate-hardware: a10g}, max_workers: 4}
  a10g: {resources: {CPU: 8, GPU: 1, trial_slot: 1}, labels: {feedrate-hardware: a10g}, max_workers: 2}
  l4: {resources: {CPU: 16, GPU: 1, trial_slot: 1}, labels: {feedrate-hardware: l4}, max_workers: 3}
"""


def test_nodes_that_are_started_when_trials_wait(tmp_path):
    """A cluster of `ray up` with no worker yet: the kinds are known, and as many trials wait as nodes may come."""
    (tmp_path / "bootstrap.yaml").write_text(BOOTSTRAP)
    hosts = promised(tmp_path / "bootstrap.yaml")
    assert len(hosts) == 9
    with pytest.raises(SeveralClasses) as several:
        place(SearchOptions(), hosts)
    assert several.value.names == ["a10g", "l4"]
    placement = place(SearchOptions(hardware="a10g"), hosts)
    assert (placement.cpus, placement.gpus, placement.trial_slot) == (8, 1, True)
    assert (placement.num_slots, placement.num_promised) == (6, 6)
    assert placement.selector == {"feedrate-hardware": "a10g"}
    with_one = [host("x", label="a10g", has_slot=True, num_cpus=8), *hosts]
    assert place(SearchOptions(hardware="a10g"), with_one).num_slots == 6


@pytest.mark.parametrize("text", [None, "", "- x", "available_node_types: 3", ": ["])
def test_without_ray_up_nothing_is_promised(tmp_path, text):
    path = tmp_path / "bootstrap.yaml"
    if text is not None:
        path.write_text(text)
    assert promised(path) == []
