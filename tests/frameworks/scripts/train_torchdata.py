"""torchdata's StatefulDataLoader, whose state is saved together with the model."""

import torch
from samples import WIDTH, Rows
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader

SAVE_EVERY = 1000


def main():
    model = nn.Linear(WIDTH, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loader = StatefulDataLoader(Rows(), 16, True, num_workers=1, prefetch_factor=4, snapshot_every_n_steps=10)
    num_steps = 0
    for _ in range(1000):
        for inputs, target in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), target).backward()
            optimizer.step()
            num_steps += 1
            if num_steps % SAVE_EVERY == 0:
                torch.save({"model": model.state_dict(), "loader": loader.state_dict()}, "checkpoint.pt")


if __name__ == "__main__":
    main()
