"""timm: create_loader, with its PrefetchLoader, on pictures that are made in memory."""

import no_vision_operators  # noqa: F401
import numpy as np
import timm
import torch
from PIL import Image
from samples import Rows
from timm.data import create_loader
from timm.optim import create_optimizer_v2


class Pictures(Rows):
    """Pictures of one colour."""

    transform = None

    def __getitem__(self, index):
        numbers, label = super().__getitem__(index)
        picture = Image.fromarray(np.full((32, 32, 3), int(numbers[0]), np.uint8))
        return self.transform(picture), label


def main():
    device = torch.device("cpu")
    loader = create_loader(
        Pictures(), input_size=(3, 32, 32), batch_size=16, is_training=True, num_workers=1, persistent_workers=True, device=device
    )
    model = timm.create_model("resnet10t", num_classes=2)
    optimizer = create_optimizer_v2(model, opt="sgd", lr=0.01)
    loss_fn = torch.nn.CrossEntropyLoss()
    for _ in range(1000):
        model.train()
        for inputs, target in loader:
            optimizer.zero_grad()
            loss_fn(model(inputs), target).backward()
            optimizer.step()


if __name__ == "__main__":
    main()
