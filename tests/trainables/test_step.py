"""step.py: nested batches reach the device, items are counted, and the short form's step learns."""

import collections
import dataclasses
import json
import os
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from feedrate.trainables.failure import Refused, classify
from feedrate.trainables.step import (
    StepContext,
    count_items,
    count_samples,
    is_count,
    num_bytes,
    short_step,
    tensors,
    to_device,
)


class Pair(NamedTuple):
    image: torch.Tensor
    label: torch.Tensor


@dataclasses.dataclass
class Record:
    tokens: torch.Tensor
    text: str


@dataclasses.dataclass(frozen=True)
class Frozen:
    tokens: torch.Tensor


IMAGE, LABEL = torch.zeros(5, 3), torch.ones(5)
NESTED = [
    IMAGE,
    {"image": IMAGE, "deeper": {"label": LABEL}},
    [IMAGE, LABEL],
    (IMAGE, LABEL, "path"),
    Pair(IMAGE, LABEL),
    Record(IMAGE, "a cat"),
    Frozen(IMAGE),
    [{"pair": Pair(IMAGE, LABEL)}, (Record(IMAGE, "a cat"), None, 3)],
    collections.defaultdict(list, image=IMAGE),
]


@pytest.mark.parametrize("batch", NESTED, ids=lambda batch: type(batch).__name__)
def test_every_tensor_of_a_nested_batch_moves(batch):
    """A batch of dicts, lists, tuples, named tuples and dataclasses keeps its shape and types on the other device."""
    moved = to_device(batch, torch.device("meta"))
    assert type(moved) is type(batch)
    assert [each.shape for each in tensors(moved)] == [each.shape for each in tensors(batch)]
    assert {each.device.type for each in tensors(moved)} == {"meta"}
    assert {each.device.type for each in tensors(batch)} == {"cpu"}


def test_what_is_not_a_tensor_stays():
    """Text and numbers inside a batch are left alone."""
    moved = to_device(Record(IMAGE, "a cat"), torch.device("meta"))
    assert moved.text == "a cat"
    assert to_device({"path": "x", "n": 3}, torch.device("meta")) == {"path": "x", "n": 3}


@pytest.mark.parametrize("batch", NESTED, ids=lambda batch: type(batch).__name__)
def test_items_are_the_first_tensors_first_dimension(batch):
    """Without a word from the step, a batch has as many items as its first tensor has rows."""
    assert count_items(batch, None) == count_samples(batch) == 5


def test_bytes_are_those_of_the_tensors_alone():
    """A view has the bytes that it shows, and what is no tensor has none."""
    view = torch.zeros(1000, 4)[10:20]
    assert num_bytes({"inputs": view, "names": ["a"]}) == 10 * 4 * 4
    assert num_bytes(["a", 1]) is None


def test_the_steps_own_count_wins():
    """An int that the step returned is the number of items, 0 and NumPy's ints included."""
    assert count_items((IMAGE, LABEL), 640) == 640
    assert count_items((IMAGE, LABEL), 0) == 0
    assert count_items("no tensor", np.int64(7)) == 7


@pytest.mark.parametrize("returned", [torch.tensor(7), torch.tensor(0.3), 0.3, np.float32(2.0), True, np.True_, {"loss": 3}, "done"])
def test_what_is_no_int_is_no_number_of_items(returned):
    """A loss, a metric, a flag: the samples of the batch count, as if nothing was returned."""
    assert not is_count(returned)
    assert count_items((IMAGE, LABEL), returned) == 5


def test_fewer_items_than_none_are_refused():
    """A negative number is refused as a number of items."""
    with pytest.raises(Refused, match="which is not a valid number of items: return the number") as raised:
        count_items((IMAGE, LABEL), -3)
    failure = classify(raised.value, "warm")
    assert (failure.kind, failure.phase, failure.traceback) == ("user-code", "warm", None)
    assert failure.message.startswith("step(batch) returned -3")


@pytest.mark.parametrize("batch", [None, [], {}, (), torch.zeros(0, 3)])
def test_a_batch_of_nothing_has_no_items(batch):
    """A collate_fn that left every sample out gives None or an empty batch, which a step skips."""
    assert count_items(batch, None) == 0


def test_a_number_is_one_item():
    """A tensor without dimensions is one item."""
    assert count_items(torch.tensor(3.0), None) == 1


def test_a_batch_that_cannot_be_counted_says_what_to_do():
    """A batch without tensors, trained by a step that returns nothing, is refused with the way out."""
    with pytest.raises(ValueError, match=r"return from step\(batch\) the number of items that it trained"):
        count_items(["a", "b"], None)


def test_the_short_step_trains():
    """Repeated on one batch, the short form's step lowers the loss; its model is in training mode."""
    torch.manual_seed(0)
    inputs = torch.randn(32, 4)
    batch = (inputs, (inputs.sum(dim=1) > 0).long())
    made, losses = [], []

    def model():
        made.append(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.0)).eval())
        return made[-1]

    def loss(output, target):
        losses.append(nn.functional.cross_entropy(output, target))
        return losses[-1]

    step = short_step(model, loss, lambda parameters: torch.optim.SGD(parameters, lr=0.5))(
        StepContext(device=torch.device("cpu"), batch_size=32)
    )
    for _ in range(20):
        assert step(batch) is None
    assert losses[-1] < losses[0] / 2
    assert made[0].training


def made_step(model, loss=None, optimizer=None, **context):
    loss = loss or nn.functional.cross_entropy
    optimizer = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    return short_step(model, loss, optimizer)(StepContext(device=torch.device("cpu"), batch_size=5, **context))


@pytest.mark.parametrize(("amp", "dtype"), [(None, torch.float32), ("bf16", torch.bfloat16)])
def test_forward_and_loss_run_in_the_precision_asked_for(amp, dtype):
    """With bf16 a linear layer's output is bfloat16 and the loss is made under autocast; its parameters stay float32."""
    seen, model = [], nn.Linear(3, 2)

    def loss(output, target):
        seen.append((output.dtype, torch.is_autocast_enabled("cpu")))
        return nn.functional.cross_entropy(output, target)

    before = model.weight.detach().clone()
    made_step(lambda: model, loss, amp=amp)((IMAGE + 1.0, torch.zeros(5, dtype=torch.long)))
    assert seen == [(dtype, amp is not None)]
    assert model.weight.dtype == torch.float32
    assert not torch.equal(model.weight, before)


COMPILED = """
import json, os, threading
import torch, torch._dynamo
from torch import nn
from feedrate.trainables.step import StepContext, short_step

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 2))
    def forward(self, inputs):
        return inputs @ self.weight + (1.0 if torch.compiler.is_compiling() else 0.0)

if os.fork() == 0:
    outputs, model = [], Model()
    def loss(output, target):
        outputs.append(output.detach().sum().item())
        return output.sum()
    step = short_step(lambda: model, loss, lambda parameters: torch.optim.SGD(parameters, lr=0.0))(
        StepContext(device=torch.device("cpu"), batch_size=5, compile=True))
    for _ in range(2):
        step((torch.zeros(5, 3), None))
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        names = [thread.name for thread in threading.enumerate()]
        print(json.dumps({"outputs": outputs, "children": children.read(), "threads": names}), flush=True)
    os._exit(0)
os.wait()
"""


@pytest.mark.soak
def test_a_model_is_compiled_in_a_forked_child(tmp_path):
    """As in a trial: in a child of a process that has torch._dynamo; no pool of compilers is left beside the training."""
    command = [sys.executable, "-W", "ignore", "-c", COMPILED]
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}  # a pool is made when something is compiled
    said = json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert said["outputs"] == [10.0, 10.0]  # 5 by 2 ones: what only the compiled model adds
    assert said["children"] == ""
    assert not [name for name in said["threads"] if "Pool" in name]


def test_a_loss_with_weights_moves_too():
    """A loss that is a module moves to the device with the model, so that class weights meet the output there."""
    context = StepContext(device=torch.device("meta"), batch_size=5)
    loss = nn.CrossEntropyLoss(weight=torch.ones(2))
    step = short_step(lambda: nn.Linear(3, 2), loss, lambda parameters: torch.optim.SGD(parameters, lr=0.1))(context)
    step((IMAGE, torch.zeros(5, dtype=torch.long)))
    assert loss.weight.device.type == "meta"


@pytest.mark.parametrize(
    ("batch", "said"), [((IMAGE, LABEL, IMAGE), "a tuple of 3"), ({"image": IMAGE, "label": LABEL}, "a dict of 2"), (IMAGE, "a Tensor:")]
)
def test_a_batch_that_is_no_pair_is_named(batch, said):
    """The short form trains on (input, target); the error for any other batch says what it is and which form takes it."""
    step = short_step(lambda: nn.Linear(3, 2), nn.CrossEntropyLoss(), lambda parameters: torch.optim.SGD(parameters, lr=0.1))
    with pytest.raises(Refused, match=f"pairs \\(input, target\\), but this batch is {said}.*Workload.from_loader"):
        step(StepContext(device=torch.device("cpu"), batch_size=5))(batch)
