"""What to paste: the answer in the words of the framework that makes the loader."""

import pytest

from feedrate.analysis.best import python_snippet
from feedrate.analysis.paste import paste_place

WORKERS = {"batch_size": 64, "num_workers": 8, "pin_memory": True, "prefetch_factor": 4, "persistent_workers": True}
NONE = {"batch_size": 64, "num_workers": 0, "pin_memory": False}


def best(dataloader, framework, process=None):
    loaders = [
        {"role": "not read", "where": "other.py:1", "framework": None, "function": ""},
        {"role": "measured", "where": "train.py:27", "framework": framework, "function": "Data.train_dataloader"},
    ]
    return {"dataloader": dataloader, "process": process or {}, "workload": {"script": {"loaders": loaders}}}


@pytest.mark.parametrize(
    ("framework", "dataloader", "lines"),
    [
        (None, NONE, ["DataLoader(dataset, batch_size=64, num_workers=0, pin_memory=False)"]),
        (
            "transformers",
            WORKERS | {"multiprocessing_context": "spawn"},
            [
                (
                    "TrainingArguments(..., per_device_train_batch_size=64, dataloader_num_workers=8, dataloader_pin_memory=True, "
                    "dataloader_prefetch_factor=4, dataloader_persistent_workers=True, dataloader_multiprocessing_context='spawn')"
                )
            ],
        ),
        (
            "ultralytics",
            WORKERS,
            [
                "# pin_memory=True cannot be set here: override the trainer's get_dataloader",
                "# prefetch_factor=4 cannot be set here: override the trainer's get_dataloader",
                "# persistent_workers=True cannot be set here: override the trainer's get_dataloader",
                "model.train(..., batch=64, workers=8)",
            ],
        ),
        (
            "timm",
            WORKERS | {"prefetch_factor": 2},
            ["create_loader(..., batch_size=64, num_workers=8, pin_memory=True, persistent_workers=True)"],
        ),
        ("webdataset", {"num_workers": 2, "pin_memory": False}, ["wds.WebLoader(dataset, num_workers=2, pin_memory=False)"]),
    ],
)
def test_the_call(framework, dataloader, lines):
    assert python_snippet(best(dataloader, framework)).splitlines() == lines


def test_what_a_process_needs_is_named_if_the_framework_has_no_option_for_it():
    snippet = python_snippet(best(WORKERS, "transformers", {"sharing_strategy": "file_system"}))
    assert "torch.multiprocessing.set_sharing_strategy('file_system')" in snippet
    assert "# worker_init_fn=init_worker cannot be set here: override Trainer.get_train_dataloader" in snippet


def test_the_place():
    assert paste_place(best(NONE, None)) == "train.py:27, in Data.train_dataloader"
    assert paste_place(best(NONE, "transformers")) == "your TrainingArguments"
    assert paste_place({"workload": {"target": "images"}}) is None
    ours = {"role": "measured", "where": "<frozen runpy>:88", "framework": None, "function": ""}  # a workload in several ranks
    assert paste_place({"workload": {"script": {"loaders": [ours]}}}) is None
    older = {"role": "measured", "where": "train.py:27"}  # a best.json from before the frameworks were told apart
    assert paste_place({"workload": {"script": {"loaders": [older]}}}) == "train.py:27"
