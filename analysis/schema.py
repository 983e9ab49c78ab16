"""The columns of `trials.jsonl`: every recorded quantity once, with its type, unit and meaning.

Each line of the file is one measured (or failed) setting. Writer and reader both import this table, so that each name, unit
and meaning exists in one place. Only raw observations are stored; readers compute every statistic from them
(`feedrate.analysis.estimate`). Standard library only, so that a trial can import it.

History of the format:
  feedrate/trials/1   first version
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SCHEMA = "feedrate/trials/1"
KINDS = ("probe", "search", "confirm")
STATUSES = ("complete", "pruned", "failed")
LOAD_COSTS = ("load_item_s", "load_cpu_item_s", "load_delay_item_s", "collate_item_s", "handover_cpu_item_s")
"""The columns for the mean cost of an item in the process that loads it."""
SAMPLE_QUANTILES = ("sample_p50_s", "sample_p90_s", "sample_p99_s", "sample_max_s")
"""The columns for how long samples take."""
SAMPLE_TIMES = (*SAMPLE_QUANTILES, "sample_correlation")
"""These, and whether slow samples come in clusters."""


@dataclass(frozen=True, slots=True)
class Column:
    """One recorded quantity."""

    name: str
    dtype: str
    """One of str, int, float, bool, list[str], list[int], list[float], list[dict], dict."""
    unit: str
    """Unit of the value; empty for names, counts and flags."""
    meaning: str
    required: bool = False
    """Whether this column is never empty, not even in the record of a failed trial."""


_C = Column
COLUMNS: tuple[Column, ...] = (
    # which measurement this is; (study, kind, number, attempt, position) is the key
    _C("schema", "str", "", "version of this table", True),
    _C("study", "str", "", "name of the Optuna study", True),
    _C("number", "int", "", "Optuna trial number; for kind confirm, the number of the round's trial", True),
    _C("attempt", "int", "", "1 for the first time this trial number was run", True),
    _C("kind", "str", "", "probe, search or confirm", True),
    _C("origin", "str", "", "where the setting comes from: baseline, seed (known rules of thumb), sampler, or finalist in a round", True),
    _C("round", "int", "", "confirmation round; null otherwise"),
    _C("position", "int", "", "position inside the confirmation round; null otherwise"),
    # the setting, in torch's spelling and canonical form
    _C("num_workers", "int", "", "loader processes", True),
    _C("batch_size", "int", "items", "items in a batch; null when the user's own batch sampler decides"),
    _C("pin_memory", "bool", "", "batches copied to page-locked memory", True),
    _C("prefetch_factor", "int", "batches", "batches that each worker loads ahead; null with 0 workers"),
    _C("persistent_workers", "bool", "", "workers stay alive at the end of an epoch", True),
    _C("multiprocessing_context", "str", "", "start method of workers; null means Python's default"),
    _C("in_order", "bool", "", "batches arrive in sampler order", True),
    _C("sharing_strategy", "str", "", "how workers pass tensors to the trainer; null means torch's default, file_descriptor"),
    _C("trainer_cpus", "int", "", "CPUs reserved for the training process; null lets workers run on all CPUs"),
    # outcome
    _C("stopped_early", "bool", "", "ended by the scheduler because it could not win", True),
    _C(
        "retried",
        "bool",
        "",
        "failed, possibly because of its host, and was retried on another host; this attempt does not count as a failure of the setting",
    ),
    _C("failure_kind", "str", "", "null when the setting was measured; else one of the kinds in trainables/failure.py"),
    _C("failure_phase", "str", "", "what was going on: setup, warm, loader, measure, teardown"),
    _C("failure_message", "str", "", "one sentence for people"),
    _C("failure_cause", "list[str]", "", "chain of causes, outermost first"),
    _C("failure_traceback", "str", "", "the user's traceback, if there is one"),
    _C("failure_stacks", "str", "", "where each process of the trial was, if the trial hung"),
    # steady state: raw windows, each of several batches between two consumed batches
    _C("window_duration_s", "list[float]", "s", "wall time of each window"),
    _C("window_num_batches", "list[int]", "", "batches the training step consumed in each window"),
    _C("window_num_items", "list[int]", "items", "items in those batches"),
    _C("window_produced_batches", "list[int]", "", "batches the loader finished in each window"),
    _C("window_wait_s", "list[float]", "s", "time in each window spent inside next(loader)"),
    _C("window_step_s", "list[float]", "s", "time the accelerator spent inside steps in each window; null on a CPU"),
    _C("expected_sd_fraction", "float", "", "by how much the rates of windows are expected to differ because samples take different times: a standard deviation, divided by the rate; null with workers, or if too few samples were timed"),
    _C("ranks", "list[dict]", "", "for each rank of a training with several: its number, and in each window its wait, its other time and its items; null for one process. Then the columns of windows are those of all ranks together, and window_wait_s is the wait of the rank that waits most"),
    _C("settled", "bool", "", "the rate had stopped drifting in the windows that count, and enough of them were seen"),
    _C("trend_fraction", "float", "", "relative change of the rate from the first to the last windows if it was still changing, else 0; null if there are too few windows to tell"),
    # everything around steady state
    _C("setup_s", "float", "s", "from the end of imports until the training step is warmed up, before the loader starts"),
    _C("iter_s", "float", "s", "iter(loader): starting the workers"),
    _C("first_batch_s", "float", "s", "wait for the first batch after iter(loader)"),
    _C("settle_s", "float", "s", "measured but discarded before the windows"),
    _C("boundary_s", "float", "s", "time one epoch boundary costs"),
    _C("boundary_from", "str", "", "estimated from start-up, measured at boundaries, or inside: the windows contain them"),
    _C("between_epochs_s", "float", "s", "what a training script does after an epoch and before the next one, such as validation; null if not measured in this trial"),
    _C("between_epochs_parts_s", "dict", "s", "of which: the loop over another loader, by its file:line, and torch.save"),
    _C("between_epochs_failure", "str", "", "why that time is not known although it was asked for; else null"),
    _C("epoch_duration_s", "list[float]", "s", "time of each epoch (whole or cut short), from its first batch to the first batch of the next one"),
    _C("epoch_num_items", "list[int]", "items", "items trained in each of those epochs; null when none was timed"),
    _C("first_step_s", "float", "s", "first training step, in which torch.compile compiles; before anything is timed"),
    _C("epoch_samples", "int", "items", "items in the user's real epoch; null when unknown"),
    _C("unit", "str", "", "what an item is: samples, or what the user's step counts"),
    _C("cached_batch_failure", "str", "", "why no batch could be read before the trial, so that the step was not timed alone; null otherwise"),
    _C("step_returned", "str", "", "the type of step's return value, if it was not a number of items (feedrate then counted samples); otherwise null"),
    _C("step_only_num_items", "list[int]", "items", "items trained on a cached batch, no loading, in each block of steps"),
    _C("step_only_duration_s", "list[float]", "s", "time of each block of steps; null when the step alone was not measured"),
    _C("step_only_cpus", "float", "CPUs", "CPU time of the training process while the step was timed alone, divided by the time that this took; null with several ranks"),
    _C("load_item_s", "float", "s", "time in which one process that loads (the trainer without workers, else a worker) fetches and collates an item, in the windows; null if it cannot be timed"),
    _C("load_cpu_item_s", "float", "s", "CPU time of the thread that loads, for an item"),
    _C("load_delay_item_s", "float", "s", "part of load_item_s in which the thread that loads could have run and had no CPU; null if no sample was timed"),
    _C("collate_item_s", "float", "s", "part of load_item_s in collate_fn; null if no sample was timed"),
    _C("handover_cpu_item_s", "float", "s", "CPU time for an item in a worker's other threads, which load_item_s does not include: torch hands batches over in one of them; null without workers"),
    _C("batch_bytes", "int", "bytes", "bytes of the tensors in the first batch; null if there are none"),
    _C("sample_p50_s", "float", "s", "the median time of a sample in the dataset; null if none was timed"),
    _C("sample_p90_s", "float", "s", "the time within which the dataset returns 90 % of the samples"),
    _C("sample_p99_s", "float", "s", "the time within which the dataset returns 99 % of the samples"),
    _C("sample_max_s", "float", "s", "the longest time of a sample"),
    _C("sample_correlation", "float", "", "correlation between the logarithms of the times of two consecutive samples of one process: near 0 if slow samples are scattered, near 1 if they come in clusters, below 0 if slow and fast ones alternate; null if too few were timed"),
    _C("copy_only_num_items", "list[int]", "items", "items copied to the accelerator alone, in each block of copies"),
    _C("copy_only_duration_s", "list[float]", "s", "time of each block of copies; null if there is no accelerator"),
    # memory and machine
    _C("tree_pss_bytes", "int", "bytes", "proportional set size of trainer and workers, end of trial"),
    _C("tree_uss_bytes", "int", "bytes", "memory of trainer and workers shared with nobody"),
    _C("tree_uss_growth_bytes_per_batch", "float", "bytes per batch", "growth of tree_uss_bytes from shortly before the windows to their end; null if fewer batches than workers had been trained by then"),
    _C("max_open_files", "int", "", "open files of whichever process, trainer or worker, has the most"),
    _C("effective_num_workers", "int", "", "workers that delivered at least one batch in an epoch; null with 0 workers, or if that cannot be seen"),
    _C("num_shards", "int", "", "parts that the dataset says its stream has (its num_shards or n_shards); null if it does not say so"),
    _C("shm_bytes", "int", "bytes", "used in /dev/shm during the trial beyond what was used before it"),
    _C("loss_is_finite", "bool", "", "whether the last loss was a finite number; null if the step does not keep the loss"),
    _C("gpu_peak_bytes", "int", "bytes", "the most GPU memory that torch had allocated at one time; null on a CPU"),
    _C("gpu_free_bytes", "int", "bytes", "free memory of the accelerator at the end of the windows; null on a CPU"),
    _C("device", "str", "", "torch device the model trained on: cpu, cuda:0"),
    _C("device_name", "str", "", "model of the accelerator, or of the CPU"),
    _C("host_id", "str", "", "identity of the machine, on which one trial measures at a time"),
    _C("hostname", "str", "", "network name of the machine"),
    _C("num_cpus", "int", "", "CPUs the trial could run on"),
    _C("num_cpus_source", "str", "", "which limit gave num_cpus: affinity, cgroup or ray"),
    _C("torch_num_threads", "int", "", "threads of one torch operator in the trainer (intra-op threads)"),
    _C("start_method", "str", "", "how worker processes were started"),
    _C("nice", "int", "", "scheduling niceness of the trainer"),
    _C("foreign_cpu_fraction", "float", "", "CPU time other processes took in the windows, of all CPUs (0..1)"),
    _C("foreign_gpu_fraction", "float", "", "share of the time just before the trial in which other processes used its GPUs (0..1); null if unknown"),
    _C("own_cpu_fraction", "float", "", "CPU time of trainer and workers in the windows, of their CPUs (0..1)"),
    _C("steal_fraction", "float", "", "fraction of the time of all CPUs that the hypervisor took away during the windows (0..1)"),
    _C("throttled_fraction", "float", "", "periods of the container's CPU quota that ran out, of all periods in the windows"),
    _C("psi_cpu_fraction", "float", "", "share of the windows' time during which at least one process of the machine waited for a CPU (0..1)"),
    _C("psi_io_fraction", "float", "", "share of the windows' time during which at least one process of the machine waited for storage (0..1)"),
    _C("psi_memory_fraction", "float", "", "share of the windows' time during which at least one process of the machine waited for memory (0..1)"),
    _C("storage_read_bytes", "int", "bytes", "read from storage by trainer and workers in the windows"),
    _C("read_call_bytes", "int", "bytes", "returned by read() to trainer and workers in the windows: files, pipes, sockets"),
    _C("cache_state", "str", "", "page cache in the windows: warm (nothing came from storage), cold (dropped), mixed"),
    _C("cold_refused", "str", "", "why the page cache was not cold although it was asked for; else null"),
    _C("started_unix_s", "float", "s", "start of the trial, seconds since 1970"),
    _C("finished_unix_s", "float", "s", "end of the trial"),
    _C("host_began_unix_s", "float", "s", "when the trial had its host for itself, by that host's clock"),
    _C("host_ended_unix_s", "float", "s", "end of its measurement, by that host's clock"),
    _C("versions", "dict", "", "python, torch, feedrate on the machine that measured"),
)
COLUMN = {column.name: column for column in COLUMNS}

_PYTHON: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (float, int), "bool": (bool,), "dict": (dict,),
}  # fmt: skip


def fits(value: object, dtype: str) -> bool:
    """Return whether a value that is not None has the type of a column; in a list, every element must have it."""
    if dtype.startswith("list["):
        return isinstance(value, list) and all(fits(element, dtype[5:-1]) for element in value)
    return isinstance(value, _PYTHON[dtype]) and (dtype == "bool" or not isinstance(value, bool))


def check_record(record: dict[str, Any]) -> None:
    """Refuse a record that another version of feedrate could not read.

    Raises:
        ValueError: a required column is missing, a name is not in the table, or a value has the wrong type. This is a
            defect of the writer, which wrote nothing.
    """
    for column in COLUMNS:
        value = record.get(column.name)
        if value is None:
            if column.required:
                raise ValueError(f"record lacks the column {column.name!r} ({column.meaning})")
        elif not fits(value, column.dtype):
            found = repr(value)[:40] if isinstance(value, list) else type(value).__name__
            raise ValueError(f"column {column.name!r} must be {column.dtype}, not {found}")
    unknown = sorted(set(record) - set(COLUMN))
    if unknown:
        raise ValueError(f"columns that analysis/schema.py does not define: {', '.join(unknown)}")


def status(record: dict[str, Any]) -> str:
    """Return complete, pruned or failed, computed from the record so that the two cannot disagree."""
    if record.get("failure_kind") is not None:
        return "failed"
    return "pruned" if record["stopped_early"] else "complete"
