"""MONAI: dictionaries, random transforms and MONAI's own DataLoader."""

import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, Lambdad, RandFlipd, RandScaleIntensityd
from samples import WIDTH, read
from torch import nn


def image_of(index):
    numbers, _ = read(index)
    return numbers.reshape(1, 4, 4)


def main():
    transforms = Compose([
        Lambdad("image", image_of),
        RandFlipd("image", prob=0.5, spatial_axis=0),
        RandScaleIntensityd("image", factors=0.1, prob=0.5),
    ])
    files = [{"image": index, "label": index % 2} for index in range(20_000)]
    loader = DataLoader(Dataset(files, transforms), batch_size=16, shuffle=True, num_workers=1, prefetch_factor=4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(WIDTH, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(1000):
        for batch in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch["image"]), batch["label"]).backward()
            optimizer.step()


if __name__ == "__main__":
    main()
