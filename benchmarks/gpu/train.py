"""A training script as people have them: it knows nothing of feedrate. Trains on JPEG files, a sub-folder per class.

    python benchmarks/gpu/train.py DATA --epochs 2 --batch-size 256 --num-workers 4
"""

import argparse
import random
import time
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Pictures(Dataset):
    """Random crops of the files, `repeat` times over."""

    def __init__(self, folder, size, repeat):
        self.paths = sorted(Path(folder).rglob("*.jpg")) * repeat
        self.classes = sorted({path.parent.name for path in self.paths})
        self.size = size

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        path = self.paths[index]
        with Image.open(path) as picture:
            left, top = (random.randrange(max(side - self.size, 1)) for side in picture.size)
            crop = picture.convert("RGB").crop((left, top, left + self.size, top + self.size))
        pixels = torch.frombuffer(bytearray(crop.tobytes()), dtype=torch.uint8).reshape(self.size, self.size, 3)
        return pixels.permute(2, 0, 1).float() / 255, self.classes.index(path.parent.name)


def make_model(num_classes, device):
    """ResNet-50, or a small network where there is no GPU."""
    if device.type == "cuda":
        from torchvision.models import resnet50

        return resnet50(num_classes=num_classes).to(device)
    return nn.Sequential(nn.Conv2d(3, 8, 7, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, num_classes))


def main():
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--num-workers", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pictures = Pictures(args.data, args.size, args.repeat)
    loader = DataLoader(pictures, batch_size=args.batch_size, shuffle=True, num_workers=args.num_workers, pin_memory=device.type == "cuda")
    model = make_model(len(pictures.classes), device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(args.epochs):
        begun = time.time()
        for images, labels in loader:
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16):
                loss = nn.functional.cross_entropy(model(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch}: loss {loss.item():.3f}, {len(pictures) / (time.time() - begun):.0f} pictures/s", flush=True)


if __name__ == "__main__":
    main()
