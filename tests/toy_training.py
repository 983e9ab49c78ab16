"""A training script whose samples are waited for, as a user would write it."""

TRAIN = """
import os, sys, time
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

class Slow(Dataset):
    def __len__(self):
        return 4000
    def __getitem__(self, index):
        time.sleep(0.002)
        return torch.full((8,), float(index)), index % 2

if __name__ == "__main__":
    print("arguments", *sys.argv[1:], flush=True)
    model = nn.Linear(8, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    torch.save(model.state_dict(), "first.pt")
    for epoch in range(1000):
        for x, y in DataLoader(Slow(), batch_size=16, shuffle=True, num_workers=1):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
"""
