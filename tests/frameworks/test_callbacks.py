"""`LiveCallback` in the real trainers: the same samples in the same order as without it, and what it leaves."""

import json
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from feedrate.trainables import LiveCallback

pytestmark = [pytest.mark.frameworks, pytest.mark.filterwarnings("default")]  # the frameworks have advice of their own


class Numbers(Dataset):
    """Sample i is i."""

    def __init__(self, num=240):
        self.num = num

    def __len__(self):
        return self.num

    def __getitem__(self, index):
        return {"x": torch.full((4,), float(index)), "labels": torch.zeros(1)}


def report_of(folder):
    report = json.loads((folder / "train.json").read_text())
    assert report["is_over"]
    return report


@pytest.mark.parametrize("num_workers", [0, 1])
def test_lightning(tmp_path, num_workers):
    import lightning.pytorch as lightning

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(4, 1), []

        def training_step(self, batch, index):
            self.seen.append(batch["x"][:, 0].tolist())
            return self.layer(batch["x"]).sum()

        def validation_step(self, batch, index):
            self.seen.append(["validation", *batch["x"][:, 0].tolist()])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=1e-9)

    def seen(*callbacks):
        lightning.seed_everything(5, verbose=False)
        module = Module()
        trainer = lightning.Trainer(
            max_epochs=3, callbacks=list(callbacks), logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            accelerator="cpu", default_root_dir=tmp_path,
        )  # fmt: skip
        loader = DataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=num_workers, persistent_workers=num_workers > 0)
        trainer.fit(module, loader, DataLoader(Numbers(20), batch_size=4))
        return module.seen

    expected = seen()
    callback = LiveCallback.lightning(tmp_path / "run")
    assert seen(callback) == expected
    report = report_of(tmp_path / "run")
    assert report["dataloader"]["num_workers"] == num_workers and report["summary"]["num_batches"] >= 3 * 60 - 5
    assert isinstance(pickle.loads(pickle.dumps(callback)), lightning.Callback)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_hugging_face(tmp_path, num_workers):
    import transformers

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = torch.nn.Linear(4, 1), []

        def forward(self, x, labels):
            self.seen.append(x[:, 0].tolist())
            return {"loss": self.layer(x).sum()}

    def seen(*callbacks):
        transformers.set_seed(5)
        model = Model()
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path / "out"), per_device_train_batch_size=4, num_train_epochs=3, report_to=[], save_strategy="no", disable_tqdm=True,
            dataloader_num_workers=num_workers, use_cpu=True, learning_rate=1e-9, remove_unused_columns=False,
        )  # fmt: skip
        transformers.Trainer(model=model, args=arguments, train_dataset=Numbers(), callbacks=list(callbacks)).train()
        return model.seen

    expected = seen()
    callback = LiveCallback.hugging_face(tmp_path / "run")
    assert seen(callback) == expected
    report = report_of(tmp_path / "run")
    assert report["dataloader"]["num_workers"] == num_workers and report["summary"]["num_batches"] >= 3 * 60 - 5
    assert isinstance(pickle.loads(pickle.dumps(callback)), transformers.TrainerCallback)
