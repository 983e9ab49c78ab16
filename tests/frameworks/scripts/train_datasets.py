"""Hugging Face datasets from local files, map-style, or streamed if the first argument says so."""

import glob
import json
import sys

import torch
from datasets import load_dataset
from samples import read
from torch import nn
from torch.utils.data import DataLoader


def write_files():
    """Write four files of 5,000 rows, unless they are there."""
    if not glob.glob("rows-*.jsonl"):
        for part in range(4):
            with open(f"rows-{part}.jsonl", "w") as file:
                file.writelines(json.dumps({"index": index}) + "\n" for index in range(part * 5000, (part + 1) * 5000))


def slowly(row):
    numbers, label = read(int(row["index"]))
    return {"numbers": numbers, "label": label}


def all_slowly(rows):
    found = [read(index) for index in rows["index"]]
    return {"numbers": [numbers for numbers, _ in found], "label": [label for _, label in found]}


def main():
    write_files()
    streaming = sys.argv[1:] == ["streaming"]
    dataset = load_dataset("json", data_files=sorted(glob.glob("rows-*.jsonl")), split="train", streaming=streaming)
    if streaming:
        dataset = dataset.shuffle(seed=0, buffer_size=100).map(slowly, remove_columns=["index"]).with_format("torch")
        loader = DataLoader(dataset, batch_size=16, num_workers=1, prefetch_factor=4)
    else:
        dataset.set_transform(all_slowly)
        loader = DataLoader(dataset, batch_size=16, shuffle=True, num_workers=1, prefetch_factor=4)
    model = nn.Linear(16, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(1000):
        for batch in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch["numbers"]), batch["label"]).backward()
            optimizer.step()


if __name__ == "__main__":
    main()
