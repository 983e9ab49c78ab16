"""models.py: the networks that the bundled workloads train."""

import pytest
import torch

from feedrate.trainables.bundled.models import make_model
from feedrate.trainables.workload import WorkloadError


@pytest.mark.parametrize(("name", "num_parameters"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_a_resnet_has_exactly_the_parameters_of_torchvisions(name, num_parameters):
    """Same number of parameters for 1000 classes, under the names that its checkpoints use."""
    model = make_model(name, 1000)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    names = model.state_dict().keys()
    assert {"conv1.weight", "layer2.0.downsample.0.weight", "layer4.1.bn2.running_var"} <= names
    assert model.state_dict()["fc.weight"].shape[0] == 1000


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "small"])
def test_every_model_takes_images_of_any_size_and_learns(name):
    """A forward and backward pass gives one finite row of scores an image, and a gradient for every parameter."""
    model = make_model(name, 7)
    scores = model(torch.randn(2, 3, 64, 64))
    assert scores.shape == (2, 7)
    scores.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


def test_an_unknown_model_is_answered_with_the_known_ones():
    """The message names all models."""
    with pytest.raises(WorkloadError, match="no model 'vgg': use one of resnet18, resnet50, small"):
        make_model("vgg", 10)
