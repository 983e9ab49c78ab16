"""digest.py: equal hashes mean equal samples."""

import numpy as np
import torch

from feedrate.trainables.probing.digest import digest


def test_equal_samples_and_only_those_have_equal_digests():
    """Tensors, arrays, nested containers, and objects of the user's own."""

    class Pair:
        def __init__(self, one):
            self.one = one

    samples = [
        torch.zeros(4),
        torch.zeros(2, 2),
        torch.zeros(4, dtype=torch.int32),
        np.zeros(4, dtype=np.float32),
        {"image": torch.ones(2), "label": 1},
        {"image": torch.ones(2), "label": 2},
        Pair(torch.ones(2)),
        Pair(torch.zeros(2)),
        (1, 2),
        (1, (2,)),
        "1",
        b"1",
        None,
        np.array([{}, 2], dtype=object),
        torch.zeros(4).to_sparse(),
        torch.zeros(3, dtype=torch.bfloat16),
    ]
    digests = [digest(sample) for sample in samples]
    again = {digest({"image": torch.ones(2), "label": 1}), digest(Pair(torch.ones(2))), digest((1, 2))}
    assert again <= set(digests)
    assert len(set(digests)) == len(samples) - 1  # a sparse tensor trains like the dense one
