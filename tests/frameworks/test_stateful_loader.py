"""`live(StatefulDataLoader(...))`: a checkpoint of the loader means the same as before."""

import pytest
import torch
from torch.utils.data import Dataset

from feedrate.trainables import live

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("default")]  # torchdata has advice of its own


class Numbers(Dataset):
    """Sample i is i."""

    def __len__(self):
        return 100

    def __getitem__(self, index):
        return index


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_training_that_is_resumed_from_a_checkpoint_goes_on_with_the_same_batches(num_workers):
    from torchdata.stateful_dataloader import StatefulDataLoader

    def begin(tunes, state=None):
        torch.manual_seed(3)
        loader = StatefulDataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=num_workers)
        if tunes:
            loader = live(loader, quiet=True)
        if state is not None:
            loader.load_state_dict(state)
        return loader

    found = []
    for tunes in (False, True):
        loader, seen, state = begin(tunes), [], None
        for number, batch in enumerate(loader):
            seen.append(batch.tolist())
            if number == 9:
                state = loader.state_dict()
                break
        seen += [batch.tolist() for batch in begin(tunes, state)]
        found.append(seen)
        if tunes:
            assert "a way of its own" in loader.tuned.policy.leave
    assert found[0] == found[1]
    assert len(found[0]) == 25
