"""analysis/two_runs.py: two runs, setting by setting."""

import pytest
from synthetic import record, write_run

from feedrate.analysis import compare, load_run
from feedrate.analysis.run_folder import RunError

RATES = {0: 400.0, 2: 800.0, 4: 1000.0}


@pytest.fixture
def run_of(tmp_path):
    """A loaded run of this name: `faster` times the usual rates."""

    def load(name, *, faster=1.0, workers=(0, 2, 4), columns=None, **search):
        records = [
            record(n, num_workers=n, rate_sps=RATES[n] * faster, origin="baseline" if n == 0 else "sampler", **(columns or {}))
            for n in workers
        ]
        return load_run(write_run(tmp_path / name, records, finished=True, **search))

    return load


def test_what_both_measured_is_divided(run_of):
    """Second over first with an interval; the speed-ups do not change when all is faster; settings of one run are left out."""
    compared = compare(run_of("a"), run_of("b", faster=1.1, workers=(0, 4)))
    assert list(compared.settings["config"]) == ["b64 w4 p2", "b64 w0"]
    assert compared.settings["ratio"].tolist() == pytest.approx([1.1, 1.1], rel=1e-3)
    assert (compared.settings["ratio_low"] < compared.settings["ratio"]).all()
    assert compared.overall.low_sps < 1.1 < compared.overall.high_sps
    assert compared.settings["first_speedup"].tolist() == pytest.approx(compared.settings["second_speedup"].tolist(), rel=1e-3)
    assert compared.settings["is_baseline"].tolist() == [False, True]
    assert compared.same_host
    assert compared.differences == []


def test_the_order_of_the_runs_does_not_matter(run_of):
    """B over A is the inverse of A over B, also where settings differ widely."""
    first, second = run_of("a"), run_of("b", faster=3.0)
    there, back = compare(first, second).overall, compare(second, first).overall
    assert there.sps == pytest.approx(1 / back.sps)
    assert (there.low_sps, there.high_sps) == pytest.approx((1 / back.high_sps, 1 / back.low_sps))


def test_nothing_in_common(run_of):
    compared = compare(run_of("a", workers=(0,)), run_of("b", workers=(2,)))
    assert compared.overall is None
    assert compared.settings.empty


def test_what_differs_is_named(run_of):
    """Another machine, another torch, another option: each is a sentence, and the hosts are not the same."""
    other = {"host_id": "host-2", "hostname": "node-2"}
    second = run_of(
        "b", columns=other, hardware={"hostname": "node-2", "cpu_model": "Test CPU", "num_cpus": 8, "gpus": []},
        versions={"python": "3.11.7", "torch": "2.14.0", "feedrate": "0.1.0"}, options={"threads": 2, "seed": 9},
    )  # fmt: skip
    compared = compare(run_of("a"), second)
    assert not compared.same_host
    assert compared.differences == [
        "machine hostname: node-1 and node-2",
        "version of torch: 2.13.0 and 2.14.0",
        "option threads: None and 2",
    ]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"workload": {"name": "other", "options": {}, "unit": "samples"}}, "different workloads: .* has name 'toy', .* has 'other'"),
        ({"workload": {"name": "toy", "options": {"model": "resnet18"}, "unit": "samples"}}, "has options {}, .*resnet18"),
        ({"objective": "steady"}, "epoch rates, but .* steady rates"),
    ],
)
def test_runs_of_different_things_are_refused(run_of, changed, words):
    with pytest.raises(RunError, match=words):
        compare(run_of("a"), run_of("b", **changed))
