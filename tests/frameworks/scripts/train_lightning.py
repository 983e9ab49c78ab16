"""Lightning, with "ddp" in two ranks: a LightningModule, a LightningDataModule and a Trainer, with validation, its sanity check and limit_train_batches."""

import sys

import lightning as L
import torch
from samples import WIDTH, Rows
from torch import nn
from torch.utils.data import DataLoader


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = nn.Linear(WIDTH, 2)

    def training_step(self, batch, batch_idx):
        inputs, target = batch
        loss = nn.functional.cross_entropy(self.model(inputs), target)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        inputs, target = batch
        self.log("val_loss", nn.functional.cross_entropy(self.model(inputs), target))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Data(L.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(Rows(), batch_size=16, shuffle=True, num_workers=1, prefetch_factor=4, persistent_workers=True)

    def val_dataloader(self):
        return DataLoader(Rows(640), batch_size=32)


if __name__ == "__main__":
    ranks = {"strategy": "ddp", "devices": 2} if "ddp" in sys.argv else {}
    trainer = L.Trainer(max_epochs=1000, accelerator="cpu", limit_train_batches=0.5, default_root_dir="lightning", **ranks)
    trainer.fit(Classifier(), datamodule=Data())
