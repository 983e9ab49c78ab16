"""`LiveCallback` tunes what a trainer iterates between begin and end, and nothing before or after. The frameworks themselves: tests/frameworks."""

import json
import pickle

import pytest
import torch
from torch.optim.optimizer import _global_optimizer_post_hooks as HOOKS
from torch.utils.data import DataLoader, Dataset

from feedrate.trainables import LiveCallback

OWN_ITER = DataLoader.__iter__


class Numbers(Dataset):
    def __len__(self):
        return 200

    def __getitem__(self, index):
        return torch.full((4,), float(index))


def training(epochs=2):
    """Train as a framework would, and return all samples in order."""
    torch.manual_seed(3)
    model, seen = torch.nn.Linear(4, 1), []
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
    loader, validation = DataLoader(Numbers(), batch_size=4, shuffle=True), DataLoader(Numbers(), batch_size=50)
    for _ in range(epochs):
        for batch in loader:
            model(batch).sum().backward()
            optimizer.step()
            seen.append(batch[:, 0].tolist())
        seen += [batch[:, 0].tolist() for batch in validation]
    return seen


def test_what_is_iterated_between_begin_and_end_is_observed_and_the_same(tmp_path):
    expected = training()
    callback = LiveCallback(tmp_path / "run", observe=True)
    for _ in range(2):  # a second fit with the same callback
        callback.begin()
        assert hasattr(DataLoader.__iter__, "_feedrate_own")
        assert training() == expected
        callback.end()
        assert DataLoader.__iter__ is OWN_ITER and not HOOKS
        report = json.loads((tmp_path / "run" / "train.json").read_text())
        assert report["is_over"] and report["summary"]["num_batches"] == 100
        assert not (tmp_path / "run" / "claim").exists()
    callback.end()
    assert training() == expected


def test_a_process_that_feedrate_started_is_left_to_it(tmp_path):
    outer, inner = LiveCallback(tmp_path / "outer", observe=True), LiveCallback(tmp_path / "inner")
    outer.begin()
    try:
        inner.begin()
        training(1)
        inner.end()
        assert hasattr(DataLoader.__iter__, "_feedrate_own")
    finally:
        outer.end()
    assert (tmp_path / "outer" / "train.json").exists() and not (tmp_path / "inner").exists()


def test_a_callback_can_be_sent_to_another_process(tmp_path):
    callback = pickle.loads(pickle.dumps(LiveCallback(tmp_path, observe=True, budget_fraction=0.01)))
    assert callback._options["observe"] is True and callback._options["budget"]["fraction"] == 0.01


@pytest.mark.parametrize("make", [LiveCallback.lightning, LiveCallback.hugging_face])
def test_without_the_framework_importing_it_fails(make, tmp_path, monkeypatch):
    import sys

    for name in ("lightning", "lightning.pytorch", "pytorch_lightning", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError):
        make(tmp_path)
