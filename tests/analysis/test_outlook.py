"""outlook.py on worlds that are known exactly: what a change of machine, data or model would bring."""

import json
from dataclasses import replace

import numpy as np
import pytest
from synthetic import example_best, record, write_run

from feedrate.analysis import load_run, ranking
from feedrate.analysis.best import write_best
from feedrate.analysis.costs import Costs
from feedrate.analysis.cpu_time import CpuTime
from feedrate.analysis.outlook import helps, outlook_of, what_if
from feedrate.analysis.rate_model import RateModel
from feedrate.analysis.setting import setting_text

CPUS = 8
STEP_S, STEP_CPU_S = 0.0005, 0.0005


def world(workers, *, cpu_s, wait_s, num_cpus=CPUS, step_s=STEP_S):
    """Items per second at each number of workers."""
    model = RateModel(item_s=cpu_s + wait_s, ceilings={64: 1 / step_s}, cpu_time=CpuTime(item_s=cpu_s + STEP_CPU_S), num_cpus=num_cpus)
    return np.exp(model.log_rate(np.array(workers, dtype=float), np.full(len(workers), 64.0)))


def run_in(folder, workers=(0, 2, 4, 8, 16), *, noise=0.0, timed=(), **costs):
    """A run of this world. `timed` are the columns of loading that its trials have."""
    loading = {"load_item_s": costs["cpu_s"] + costs["wait_s"], "load_cpu_item_s": costs["cpu_s"], "load_delay_item_s": 0.0}
    rates = world(workers, **costs) * np.exp(noise * np.resize([1, -1], len(workers)))
    busy = costs["cpu_s"] + STEP_CPU_S
    records = [
        record(
            number, num_workers=each, rate_sps=float(sps), own_cpu_fraction=float(sps) * busy / CPUS, num_cpus=CPUS,
            step_only_sps=1 / STEP_S if number == 0 else None, step_only_cpus=1.0 if number == 0 else None,
            persistent_workers=each > 0,
            **{name: loading[name] for name in timed},
        )
        for number, (each, sps) in enumerate(zip(workers, rates, strict=True))
    ]  # fmt: skip
    return load_run(write_run(folder, records))


def test_a_step_of_many_threads_leaves_the_number_of_cpus_open(tmp_path):
    """Its threads burn CPU time while they wait for each other, so that half of the CPUs may be nearly as fast."""
    run = run_in(tmp_path / "run", cpu_s=0.012, wait_s=0.0001)
    lines = (run.path / "trials.jsonl").read_text()
    (run.path / "trials.jsonl").write_text(lines.replace('"step_only_cpus": 1.0', '"step_only_cpus": 2.0'))
    assert not {"cpus_twice", "cpus_half"} & set(ratios(load_run(run.path)))
    assert {"cpus_twice", "cpus_half"} <= set(ratios(run))


def ratios(run, **asked):
    return {each.name: each.ratio for each in outlook_of(run, **asked).what_ifs}


TIMED = ((), ("load_item_s", "load_cpu_item_s"), ("load_item_s", "load_cpu_item_s", "load_delay_item_s"))
"""In runs of before these columns, of an iterable dataset, and of a dataset whose samples are timed one by one."""


@pytest.mark.parametrize("timed", TIMED, ids=("old", "iterable", "samples"))
def test_loading_that_waits(tmp_path, timed):
    """2 ms of CPU time and 38 ms of waiting: storage decides, and CPUs and the step do not."""
    found = ratios(run_in(tmp_path / "run", cpu_s=0.002, wait_s=0.038, timed=timed))
    now = world([16], cpu_s=0.002, wait_s=0.038)[0]
    assert found["storage_twice_as_fast"] == pytest.approx(world([16], cpu_s=0.002, wait_s=0.019)[0] / now, rel=0.05)
    assert found["storage_half_as_fast"] == pytest.approx(world([16], cpu_s=0.002, wait_s=0.076)[0] / now, rel=0.05)
    assert found["data_in_memory"] > 3
    assert found["cpus_twice"] == pytest.approx(1.0, abs=0.03)
    assert found["step_fifth"] == pytest.approx(1.0, abs=0.03)
    assert found["decoding_half"] < 1.1


@pytest.mark.parametrize("timed", TIMED, ids=("old", "iterable", "samples"))
def test_loading_that_computes(tmp_path, timed):
    """12 ms of CPU time on 8 CPUs: more CPUs and cheaper decoding help, faster storage does not."""
    found = ratios(run_in(tmp_path / "run", (0, 2, 4, 8, 16, 32), cpu_s=0.012, wait_s=0.0001, timed=timed))
    assert found["cpus_twice"] == pytest.approx(2.0, rel=0.15)
    assert found["cpus_half"] == pytest.approx(0.5, rel=0.05)
    assert found["decoding_half"] == pytest.approx(2.0, rel=0.15)
    assert found["data_in_memory"] == pytest.approx(1.0, abs=0.05)
    assert found["step_fifth"] == pytest.approx(1.0, abs=0.03)


def test_a_step_that_is_the_limit(tmp_path):
    found = ratios(run_in(tmp_path / "run", cpu_s=0.0005, wait_s=0.0))
    assert found["step_fifth"] == pytest.approx(1.25, rel=0.05)
    assert all(ratio < 1.05 for name, ratio in found.items() if name != "step_fifth")


def test_the_interval_has_the_error_of_the_model(tmp_path):
    quiet, noisy = (outlook_of(run_in(tmp_path / f"run-{noise}", cpu_s=0.002, wait_s=0.038, noise=noise)) for noise in (0.0, 0.12))
    assert quiet.sd_fraction == 0.05
    assert 0.08 < noisy.sd_fraction < 0.2
    widths = [each.what_ifs[0].rate.half_width_fraction for each in (quiet, noisy)]
    assert widths[1] > widths[0] > 0.09


def test_a_setting_that_ran_out_of_memory_is_left_out(tmp_path):
    """32 workers at a tenth of the rate say nothing about the CPUs."""
    run = run_in(tmp_path / "run", cpu_s=0.002, wait_s=0.038)
    records = run.trials.iloc[-1]
    rate = float(records["steady_sps"]) / 10
    thrash = record(9, num_workers=32, rate_sps=rate, own_cpu_fraction=0.9, num_cpus=CPUS, persistent_workers=True)
    lines = (run.path / "trials.jsonl").read_text()
    (run.path / "trials.jsonl").write_text(lines + json.dumps(thrash) + "\n")
    with_cliff = load_run(run.path)
    assert len(with_cliff.trials) == len(run.trials) + 1
    assert outlook_of(with_cliff).sd_fraction == 0.05
    assert outlook_of(with_cliff).num_settings == outlook_of(run).num_settings == 5


@pytest.mark.parametrize(
    ("workers", "options", "why"),
    [
        ((0, 2), {}, "fewer than 3 settings were measured to their end at the batch size of the answer"),
        ((0, 2, 4, 8, 16), {"noise": 0.5}, "the model of loading is"),
    ],
)
def test_why_nothing_is_predicted(tmp_path, workers, options, why):
    run = run_in(tmp_path / "run", workers, cpu_s=0.002, wait_s=0.038, **options)
    found = outlook_of(run)
    assert not found.what_ifs
    assert found.why_none.startswith(why)
    assert what_if(run).empty
    assert helps(found.to_json()) is None


def test_settings_of_another_batch_size_do_not_vouch_for_the_model(tmp_path):
    run = run_in(tmp_path / "run", cpu_s=0.002, wait_s=0.038)
    first, *others = (json.loads(line) for line in (run.path / "trials.jsonl").read_text().splitlines())
    small = [each | {"batch_size": 32} if each["num_workers"] in (2, 4, 8) else each for each in others]
    (run.path / "trials.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (first, *small)))
    assert outlook_of(load_run(run.path)).why_none.endswith("at the batch size of the answer")


def test_workers_without_data_do_not_count(tmp_path):
    """A stream of two shards is as fast with 16 workers as with 2, and faster storage would still help."""
    run = run_in(tmp_path / "run", (0, 1, 2), cpu_s=0.002, wait_s=0.038)
    *others, last = (json.loads(line) for line in (run.path / "trials.jsonl").read_text().splitlines())
    more = [last | {"number": 3 + number, "num_workers": each, "effective_num_workers": 2} for number, each in enumerate((8, 16))]
    (run.path / "trials.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (*others, last, *more)))
    found = {each.name: each for each in outlook_of(load_run(run.path)).what_ifs}
    assert found["storage_twice_as_fast"].ratio == pytest.approx(1.9, abs=0.1)
    assert found["storage_twice_as_fast"].num_workers == 2


def test_without_a_ceiling_nothing_is_predicted(tmp_path):
    records = [record(number, num_workers=number + 1, rate_sps=100.0 * (number + 1)) for number in range(4)]
    found = outlook_of(load_run(write_run(tmp_path / "run", records)))
    assert found.why_none == "the ceiling is not known: no trial timed the training step alone"


def test_the_sentence_names_what_helps_most_first(tmp_path):
    found = outlook_of(run_in(tmp_path / "run", cpu_s=0.002, wait_s=0.038)).to_json()
    said = helps(found)
    assert said.startswith("Predicted to help: data in memory, so that loading never waits (")
    assert said.index("data in memory") < said.index("storage twice as fast")
    assert "; not: twice the CPUs" in said
    assert "half as fast" not in said and "half the CPUs" not in said


def test_a_step_that_needs_all_cpus_is_slower_with_half_of_them(tmp_path):
    """A training on the CPU: its step alone keeps 8 CPUs busy."""
    costs = Costs(load_cpu_s=0.0001, load_wait_s=0.0, step_s=0.001, step_cpu_s=0.008, step_cpus=8.0, num_cpus=8.0)
    assert replace(costs, num_cpus=4.0).sps(16)[0] < 0.55 * costs.sps(16)[0]


def test_a_training_with_several_ranks_is_not_predicted(tmp_path):
    run = run_in(tmp_path / "run", cpu_s=0.002, wait_s=0.038)
    records = [json.loads(line) for line in (run.path / "trials.jsonl").read_text().splitlines()]
    for each in records:
        each["ranks"] = [{"window_wait_s": [0.1] * len(each["window_duration_s"])} for _ in range(2)]
    (run.path / "trials.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
    assert outlook_of(load_run(run.path)).why_none == "the model of loading does not know several ranks, which share the CPUs"


def test_the_prediction_starts_from_the_answer(tmp_path):
    """Which may be slower than the fastest setting: it is cheaper, or the difference is not significant."""
    run = run_in(tmp_path / "run", cpu_s=0.012, wait_s=0.0001)
    fastest, cheaper = ranking(run).iloc[0], ranking(run).iloc[1]
    best = example_best() | {"dataloader": {"batch_size": 64, "num_workers": int(cheaper["num_workers"]), "prefetch_factor": 2, "persistent_workers": True, "pin_memory": False}}
    write_best(run.path / "best.json", best)
    found = {each.name: each for each in outlook_of(load_run(run.path)).what_ifs}["decoding_half"]
    assert setting_text(best) == cheaper["config"] != fastest["config"]
    assert found.rate.sps == pytest.approx(found.ratio * cheaper["throughput_sps"])


def test_another_accelerator(tmp_path):
    """A step of a tenth of the time gains ten times as much where it was the limit, and nothing where loading is."""
    at_step = {each.name: each for each in outlook_of(run_in(tmp_path / "step", cpu_s=0.00005, wait_s=0.0), ceiling_sps=4 / STEP_S).what_ifs}
    at_storage = {each.name: each for each in outlook_of(run_in(tmp_path / "storage", cpu_s=0.002, wait_s=0.038), ceiling_sps=4 / STEP_S).what_ifs}
    assert at_step["ceiling"].ratio == pytest.approx(4.0, rel=0.1)
    assert at_storage["ceiling"].ratio == pytest.approx(1.0, abs=0.03)
    curve = outlook_of(run_in(tmp_path / "alone", cpu_s=0.00005, wait_s=0.0)).curve
    assert curve.sps[0] == pytest.approx(world([0], cpu_s=0.00005, wait_s=0.0)[0], rel=0.05)
    assert at_step["ceiling"].change == "an accelerator that trains 8,000/s without loading"


def test_ranks_that_share_the_cpus(tmp_path):
    """Where the CPUs are the limit, four ranks are no faster than one; where the step is, they are four times as fast."""
    at_cpus = ratios(run_in(tmp_path / "cpus", (0, 2, 4, 8, 16, 32), cpu_s=0.012, wait_s=0.0001), num_ranks=4)
    at_step = ratios(run_in(tmp_path / "step", cpu_s=0.0001, wait_s=0.0), num_ranks=4)
    assert at_cpus["ranks"] == pytest.approx(1.0, abs=0.1)
    assert at_step["ranks"] == pytest.approx(4.0, rel=0.1)
    assert "ranks" not in ratios(run_in(tmp_path / "unasked", cpu_s=0.0001, wait_s=0.0))


def test_an_epoch_takes_as_long_as_its_items(tmp_path):
    run = run_in(tmp_path / "run", cpu_s=0.002, wait_s=0.038)
    lines = [json.loads(line) for line in (run.path / "trials.jsonl").read_text().splitlines()]
    without = [json.dumps(each | {"epoch_samples": None}) for each in lines]
    known = [json.dumps(each | {"epoch_samples": 5000}) for each in lines]
    (run.path / "trials.jsonl").write_text("\n".join(known) + "\n")
    table = what_if(load_run(run.path))
    assert (table["epoch_s"] * table["throughput_sps"]).tolist() == pytest.approx([5000] * len(table))
    (run.path / "trials.jsonl").write_text("\n".join(without) + "\n")
    assert what_if(load_run(run.path))["epoch_s"].isna().all()


def test_workers_that_take_turns_at_waiting_and_computing():
    """Two workers on one CPU, which compute as long as they wait: both wait in 1 of 5 moments (Kleinrock, Queueing Systems, 1975, M/M/1//2), otherwise the CPU is busy."""
    costs = Costs(load_cpu_s=1.0, load_wait_s=1.0, step_s=1e-6, step_cpu_s=0.0, step_cpus=0.0, num_cpus=1.0)
    assert replace(costs, num_cpus=8.0).sps(1)[0] == pytest.approx(0.5)
    assert costs.sps(2)[0] == pytest.approx(0.8)
    assert replace(costs, step_cpu_s=0.25).sps(64)[0] == pytest.approx(0.8, rel=0.01)
    assert replace(costs, load_wait_s=0.0, num_cpus=2.0).sps(64) == (pytest.approx(2.0), 2)
