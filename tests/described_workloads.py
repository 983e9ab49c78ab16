"""A description of a workload, as `describe` returns it, for tests of what is done with one."""

from feedrate.trainables.checking.described import Described
from feedrate.trainables.checking.quick_look import QuickLook
from feedrate.trainables.machine.host_facts import HostFacts

HERE = HostFacts(
    device="cpu",
    device_name="a CPU",
    host_id="h",
    hostname="here",
    num_cpus=4,
    num_cpus_source="affinity",
    torch_num_threads=4,
    nice=0,
    versions={"python": "3.13.1", "torch": "2.13.0"},
)
SHORT = Described(
    name="rows",
    unit="samples",
    is_short=True,
    iterable=False,
    epoch_samples=64,
    baseline=None,
    fixed=(),
    notes=(),
    data=QuickLook(),
    facts=HERE,
    num_gpus=0,
)
"""A workload in the short form, on a machine without an accelerator, whose data nothing repeats."""
