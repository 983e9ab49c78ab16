"""The last words of a training: what waiting cost, and what a better loader would save or has saved, over the whole run."""

from dataclasses import replace

from feedrate.analysis.ranks import waits_of_training
from feedrate.search.answers.training_answer import best_of, closing_lines, cost
from feedrate.trainables.tuning.training_report import OBSERVES, TrainingReport

OWN = {"batch_size": 64, "num_workers": 1, "pin_memory": False, "prefetch_factor": 2, "persistent_workers": False}


def rate(num_workers, batches_per_s, wait_fraction):
    return {"num_workers": num_workers, "batches_per_s": batches_per_s, "ci95": [0.99 * batches_per_s, 1.01 * batches_per_s], "wait_fraction": wait_fraction}


def report(**summary):
    whole = {
        "num_batches": 90_000, "items_per_batch": 64, "wait_s": 7200.0, "step_s": 10_800.0, "aside_s": 0.0, "wait_fraction": 0.4, "own": rate(1, 5.0, 0.4),
        "best": rate(1, 5.0, 0.4), "speedup": None, "speedup_ci95": None, "confirmed": False, "lost_s": 0.0, "left_alone": None,
    } | summary  # fmt: skip
    best = OWN | {"num_workers": whole["best"]["num_workers"]}
    machine = {"hostname": "node-1", "num_cpus": 8}
    return TrainingReport(loader="DataLoader(Photos)", dataloader=OWN, best=best, summary=whole, num_decisions=2, measured_on=machine, is_over=True)


def said(found, price=None):
    return closing_lines(found, cost(found, price), best_of(found, ["python", "train.py"], "train"))


def test_observing_says_what_waiting_cost_and_what_a_better_loader_would_save():
    assert said(report(left_alone=OBSERVES), 2.5) == [
        "DataLoader(Photos): 90,000 batches in 5.00 h, 2.00 h of which (40.0%) the training waited for batches; waiting cost 5.00",
        "yours (b64 w1 p2): 320 samples/s; a loader that keeps up would save up to 2.00 h of 5.00 h, worth 5.00 (the whole run up to 1.67x as fast). To look for it, leave out --observe, or use feedrate search",
    ]


def test_a_training_that_no_number_of_workers_makes_faster_is_pointed_to_the_search():
    assert said(report(left_alone=None))[1].endswith("feedrate search also tries other settings than the number of workers")


def test_without_a_price_there_is_no_money():
    assert not any("worth" in line or "cost" in line for line in said(report()))


def test_where_nothing_waits_nothing_is_to_be_saved():
    lines = said(report(wait_s=18.0, step_s=17_982.0, wait_fraction=0.001, best=rate(1, 5.0, 0.001)), 2.5)
    assert lines[1] == "yours (b64 w1 p2): 320 samples/s; no other loader would make this training noticeably faster"


def test_a_tuned_training_says_what_it_saved():
    lines = said(report(best=rate(3, 8.0, 0.01), speedup=1.6, speedup_ci95=[1.55, 1.65], confirmed=True, wait_s=900.0, wait_fraction=0.077), 2.5)
    assert lines[1] == "yours (b64 w1 p2): 320 samples/s; best (b64 w3 p2): 512 samples/s, at different times"
    assert lines[2] == "1.60x [1.55-1.65], confirmed while the settings took turns; with your setting this training would have taken 1.75 h longer and cost 4.38 more"
    assert lines[3].startswith("paste: DataLoader(")


def test_batches_of_unknown_size_are_counted_themselves():
    """A batch sampler of one's own says how many samples are in each batch, or does not."""
    found = report(best=rate(3, 8.0, 0.01), items_per_batch=None)
    setting = {name: value for name, value in OWN.items() if name != "batch_size"}
    found = replace(found, dataloader=setting, best=setting | {"num_workers": 3})
    assert said(found)[1] == "yours (w1 p2): 5 batches/s; best (w3 p2): 8 batches/s, at different times"
    assert best_of(found, ["python", "train.py"], "train")["throughput"]["unit"] == "batches"
    assert best_of(found, ["python", "train.py"], "train")["throughput"]["per"] == "rank"


def test_what_to_paste_is_in_the_words_of_the_framework():
    found = report(best=rate(3, 8.0, 0.01), speedup=1.6, speedup_ci95=[1.55, 1.65], confirmed=True)
    found = replace(found, origin={"where": "train.py:27", "function": "main", "framework": "timm"})
    (line,) = said(found)[3:]
    assert line == "paste into your call of timm.data.create_loader: create_loader(..., batch_size=64, num_workers=3, pin_memory=False, persistent_workers=False)"


def test_a_sum_that_is_not_nothing_is_not_called_nothing():
    assert "waiting cost less than 0.01" in said(report(wait_s=1.0, step_s=1.0, wait_fraction=0.5), 2.5)[0]


def test_a_training_without_a_measurement_says_so():
    found = report(own={"num_workers": 1}, best={"num_workers": 1})
    assert said(found)[1:] == ["the training was too short for a measurement"]


def test_the_rates_of_ranks_are_those_of_all_whether_or_not_their_waiting_is_known():
    ranks = {"world_size": 4, "wait_fractions": [0.1, 0.4, 0.1, 0.1], "slowest": 1, "slowest_in": 98, "num_steps": 100}
    found = report(ranks=ranks, items_per_batch=256)
    assert "rank 1 waits most for data, in 98 of 100 steps: rank 0 10%, rank 1 40%" in said(found)[1]
    for each, slowest in ((ranks, 1), ({"world_size": 4}, None)):
        best = best_of(report(ranks=each, items_per_batch=256), ["python", "train.py"], "train")
        assert best["throughput"]["per"] == "world" and best["throughput"]["samples_per_second"] == 5 * 256
        assert best["scope"] == {"ranks_per_host": 4, "world_size": 4, "cpus_per_rank": 2, "slowest_rank": slowest}


def test_what_ranks_waited_is_left_out_if_it_makes_no_sense():
    usual = {"world_size": 2, "wait_fractions": [0.1, 0.4], "slowest": 1, "slowest_in": 98, "num_steps": 100}
    wrong = (None, {}, usual | {"wait_fractions": 3}, usual | {"wait_fractions": ["a", 1]}, usual | {"wait_fractions": []}, usual | {"slowest": 2}, usual | {"num_steps": "many"})
    assert [waits_of_training({"ranks": each}) for each in wrong] == [None] * len(wrong)
    assert waits_of_training({"ranks": usual}).slowest == 1
