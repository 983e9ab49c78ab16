"""Bare Accelerate: the loop is the user's own, and `prepare` makes another loader from each of the user's loaders."""

import sys

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from samples import WIDTH, Rows
from torch import nn
from torch.utils.data import DataLoader


def main():
    how = DataLoaderConfiguration(
        split_batches="split" in sys.argv, dispatch_batches="dispatch" in sys.argv, use_stateful_dataloader="stateful" in sys.argv
    )
    accelerator = Accelerator(cpu=True, dataloader_config=how)
    model = nn.Linear(WIDTH, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    train = DataLoader(Rows(), batch_size=16, shuffle=True, num_workers=1, prefetch_factor=4)
    valid = DataLoader(Rows(640), batch_size=32)
    model, optimizer, train, valid = accelerator.prepare(model, optimizer, train, valid)
    for epoch in range(1000):
        for inputs, target in train:
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(inputs), target)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
        with torch.no_grad():
            right = sum(accelerator.gather_for_metrics(model(inputs).argmax(1) == target).sum() for inputs, target in valid)
        accelerator.print(epoch, float(right) / 640)


if __name__ == "__main__":
    main()
