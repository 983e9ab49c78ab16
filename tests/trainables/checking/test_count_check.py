"""count_check.py: samples and batches of an epoch are counted, and what drop_last leaves out."""

import pytest
from looks import Divided, found
from workloads import Rows, short

from feedrate.trainables.checking.check import check


@pytest.mark.parametrize(
    ("drop_last", "trained", "level", "words"),
    [
        (False, 100, "ok", "all 100 samples, in 4 batches, the last one with 4"),
        (True, 96, "note", "96 of 100 samples: drop_last leaves the last batch out"),
    ],
)
def test_what_drop_last_leaves_out_is_counted(drop_last, trained, level, words):
    """The same with every number of workers."""
    finding = found(short(Rows(100), loader_kwargs={"drop_last": drop_last}))["sample-count"]
    assert finding["level"] == level
    assert finding["evidence"]["num_trained"] == trained
    assert words in finding["sentence"]


def test_a_sampler_that_leaves_samples_out_is_noted():
    """As DistributedSampler does in one of several processes."""
    finding = found(short(Rows(100), loader_kwargs={"sampler": range(0, 100, 4)}))["sample-count"]
    assert (finding["level"], finding["evidence"]["num_trained"]) == ("note", 25)


@pytest.mark.parametrize(
    ("drop_last", "level", "words"), [(False, "note", "2 batches with 0 workers, 2 batches with"), (True, "warning", "40 of 40")]
)
def test_workers_of_a_stream_end_with_their_own_batches(drop_last, level, words):
    """40 samples in batches of 32 are 32 and 8, and with two workers 20 and 20: drop_last then drops everything."""
    finding = found(short(Divided(40), loader_kwargs={"drop_last": drop_last}))["sample-count"]
    assert words in finding["sentence"]
    assert finding["level"] == ("ok" if level == "note" else level)


def test_a_stream_whose_length_is_wrong_is_warned_of():
    """DataLoader believes len(dataset)."""

    class Says(Divided):
        def __len__(self):
            return 50

    finding = next(each for each in check(short(Says(40))).findings if each.name == "sample-count")
    assert (finding.level, finding.sentence) == ("warning", "len(dataset) is 50, but the stream delivers 40 samples")
