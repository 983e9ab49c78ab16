"""WebDataset: samples in tar files, and a WebLoader whose batches are shuffled and put together again."""

import glob

import torch
import webdataset as wds
from samples import WIDTH, read
from torch import nn


def write_shards():
    """Write eight small tar files, unless they are there."""
    if not glob.glob("rows-*.tar"):
        with wds.ShardWriter("rows-%06d.tar", maxcount=250, verbose=0) as writer:
            for index in range(2000):
                writer.write({"__key__": f"{index:06d}", "index.cls": index})


def main():
    write_shards()
    urls = sorted(glob.glob("rows-*.tar"))
    dataset = wds.WebDataset(urls, shardshuffle=8).decode().to_tuple("index.cls").map(lambda sample: read(sample[0]))
    loader = wds.WebLoader(dataset.batched(16), batch_size=None, num_workers=1, prefetch_factor=4)
    loader = loader.unbatched().shuffle(100).batched(16).with_epoch(125)
    model = nn.Linear(WIDTH, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(1000):
        for inputs, target in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), torch.as_tensor(target)).backward()
            optimizer.step()


if __name__ == "__main__":
    main()
