"""Each message between a template and its owner arrives as it was sent."""

import pytest

from feedrate.trainables.resolve import WorkloadRef
from feedrate.trainables.sandbox.template_protocol import (
    Ended,
    Hello,
    RankStarted,
    Ready,
    Started,
    answer_in,
    answer_line,
)


@pytest.mark.parametrize(
    "workload",
    [
        WorkloadRef(target="images", options={"size": 64}, cwd="/home/me"),
        WorkloadRef(target="python train.py", command=["python", "train.py"], cwd="/home/me", own_python=True, loader="2"),
    ],
)
def test_what_a_template_serves(workload):
    hello = Hello(workload=workload, cpus=[0, 1], threads=None, temp="/tmp/feedrate-1")
    assert hello.line().endswith(b"\n")
    assert Hello.from_line(hello.line()) == hello


@pytest.mark.parametrize("answer", [Ready(clean=True, spare=[4, 5]), Started(pid=7), RankStarted(number=1, pid=8), Ended(status=9)])
def test_what_it_answers(answer):
    line = answer_line(answer)
    assert line.count(b"\n") == 1
    assert answer_in(line) == answer
