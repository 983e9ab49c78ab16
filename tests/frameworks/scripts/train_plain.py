"""A plain loop, as in torchvision's reference scripts: an epoch of training, then an epoch of validation."""

import torch
from samples import WIDTH, Rows
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

EPOCHS = 1000


def train_one_epoch(model, criterion, optimizer, data_loader):
    model.train()
    for inputs, target in data_loader:
        loss = criterion(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def evaluate(model, criterion, data_loader):
    model.eval()
    with torch.inference_mode():
        return sum(criterion(model(inputs), target).item() for inputs, target in data_loader)


def main():
    dataset, dataset_test = Rows(), Rows(640)
    data_loader = DataLoader(dataset, batch_size=16, sampler=RandomSampler(dataset), num_workers=1, prefetch_factor=4)
    data_loader_test = DataLoader(dataset_test, batch_size=32, sampler=SequentialSampler(dataset_test), num_workers=1)
    model = nn.Linear(WIDTH, 2)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    lr_scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=30)
    for epoch in range(EPOCHS):
        train_one_epoch(model, criterion, optimizer, data_loader)
        lr_scheduler.step()
        print(epoch, evaluate(model, criterion, data_loader_test))


if __name__ == "__main__":
    main()
