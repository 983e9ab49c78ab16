"""A plain training script, as people write it: it knows nothing of feedrate, and prints its progress.

`transfer.py` measures it unchanged, and then runs it with the measured setting put into its loader by hand.
"""

import time

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Waves(Dataset[tuple[torch.Tensor, int]]):
    """Spectra of noisy waves, computed when they are asked for."""

    def __len__(self) -> int:
        return 200_000

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        signal = torch.sin(torch.arange(8192) * (index % 7 + 1) / 50)
        return torch.fft.rfft(signal + 0.1 * torch.randn(8192)).abs(), index % 7


def main() -> None:
    """Train for 90 epochs."""
    model = nn.Sequential(nn.Linear(4097, 64), nn.ReLU(), nn.Linear(64, 7))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = DataLoader(Waves(), shuffle=True, batch_size=32, num_workers=1)
    begun, samples = time.perf_counter(), 0
    for _ in range(90):
        for inputs, target in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), target).backward()
            optimizer.step()
            samples += len(target)
            print(f"{time.perf_counter() - begun:.4f} s {samples} samples", flush=True)


if __name__ == "__main__":
    main()
