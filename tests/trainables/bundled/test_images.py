"""images.py and image_samples.py: the workload `images` on real files, with real loader workers."""

import io
import logging
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from feedrate.trainables.bundled.image_samples import augment
from feedrate.trainables.bundled.images import ImageFolder, images
from feedrate.trainables.step import StepContext
from feedrate.trainables.workload import WorkloadError


def write_image(path, seed=0, size=(80, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """24 images in three classes."""
    root = tmp_path / "photos"
    for index in range(24):
        write_image(root / f"class-{index % 3}" / f"{index:02}.jpg", index)
    return root


def spoil(folder, count):
    bad = sorted(folder.glob("*/*.jpg"))[:count]
    for path in bad:
        path.write_bytes(b"not a JPEG")
    return [str(path.relative_to(folder)) for path in bad]


@pytest.mark.parametrize(("num_workers", "context"), [(0, None), (2, "fork"), (1, "spawn")])
def test_batches_are_normalised_images_with_labels(folder, num_workers, context):
    """Float images (batch, 3, size, size) and int64 labels, alike in the process and in every kind of worker."""
    workload = images(data=str(folder), image_size=48, epoch_samples=40)
    loader = workload.make_loader(batch_size=16, num_workers=num_workers, multiprocessing_context=context)
    batches = list(loader)
    assert [len(labels) for _, labels in batches] == [16, 16, 8]
    pixels, labels = batches[0]
    assert pixels.shape == (16, 3, 48, 48)
    assert pixels.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert abs(float(pixels.mean())) < 1
    assert set(torch.cat([labels for _, labels in batches]).tolist()) == {0, 1, 2}


def test_files_are_cycled_and_a_short_epoch_sees_every_class(folder):
    """Sample number i is file i modulo the number of files; fewer samples than files are spread evenly."""
    cycled = ImageFolder(folder, 32, 50)
    assert [cycled[index][1] for index in (0, 8, 23, 24, 49)] == [0, 1, 2, 0, 0]
    assert len(list(cycled)) == 50
    short = ImageFolder(folder, 32, 6)
    assert [short[index][1] for index in range(6)] == [0, 0, 1, 1, 2, 2]


def test_augmentation_follows_torchs_seed(folder):
    """The dataset owns no generator: one seed, one picture; another seed, another one."""
    samples = ImageFolder(folder, 32, 24)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(samples[3][0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_augmentation_normalises_as_imagenet_does():
    """A grey image gives (0.5 - mean) / std in every channel, whatever its shape."""
    for size in ((500, 20), (20, 500), (64, 64)):
        pixels = augment(Image.new("RGB", size, (128, 128, 128)), 40)
        wanted = (128 / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
        assert torch.allclose(pixels.mean((1, 2)), wanted, atol=1e-4)
        assert pixels.is_contiguous()


def test_training_stays_finite(folder, monkeypatch):
    """Fifteen steps of a bundled model at the bundled learning rate."""
    losses, loss = [], torch.nn.CrossEntropyLoss.forward

    def record(self, scores, labels):
        losses.append(loss(self, scores, labels))
        return losses[-1]

    monkeypatch.setattr(torch.nn.CrossEntropyLoss, "forward", record)
    workload = images(data=str(folder), image_size=64, model="small", epoch_samples=120)
    step = workload.make_step(StepContext(device=torch.device("cpu"), batch_size=8))
    for batch in workload.make_loader(batch_size=8):
        step(batch)
    assert len(losses) == 15
    assert all(loss.isfinite() for loss in losses)


def test_paths_are_stored_without_python_strings(folder):
    """The dataset holds arrays only, so workers share its pages, and it pickles small."""
    samples = ImageFolder(folder, 32, 24)
    assert not any(isinstance(value, list | dict | tuple) for value in vars(samples).values())
    assert samples.path(0) == "class-0/00.jpg"
    assert samples.path(23) == "class-2/23.jpg"
    assert len(pickle.dumps(samples)) < 5000


def test_images_without_sub_folders_are_one_class(tmp_path):
    """Extensions count in any case; other formats than JPEG are read; other files are not looked at."""
    for name in ("a.JPG", "b.jpeg", "c.PNG", "d.webp"):
        write_image(tmp_path / name)
    Image.new("P", (50, 50)).save(tmp_path / "palette.png")
    Image.new("LA", (50, 50)).save(tmp_path / "grey.png")
    (tmp_path / "notes.txt").write_text("not an image")
    samples = ImageFolder(tmp_path, 32, 6)
    assert samples.num_classes == 1
    assert samples.num_files == 6
    assert [label for _, label in samples] == [0] * 6


def test_images_beside_class_folders_are_no_samples(folder):
    """As in torchvision."""
    write_image(folder / "cover.jpg")
    samples = ImageFolder(folder, 32, 24)
    assert (samples.num_files, samples.num_classes) == (24, 3)


def test_bad_files_are_replaced_named_once_and_not_fatal(folder, caplog):
    """Every sample is still delivered; each bad file is named once a process."""
    bad = spoil(folder, 4)
    whole = sorted(folder.glob("*/*.jpg"))[10]
    whole.write_bytes(whole.read_bytes()[:600])  # a good header, a truncated body
    samples = ImageFolder(folder, 32, 100)
    max(folder.glob("*/*.jpg")).unlink()  # vanishes after the listing
    with caplog.at_level(logging.WARNING):
        assert len(list(samples)) == 100
    assert len(caplog.messages) == 6
    assert all(any(name in message for message in caplog.messages) for name in bad)
    assert any("truncated" in message.lower() for message in caplog.messages)
    assert any("No such file" in message for message in caplog.messages)


def test_bad_files_are_not_fatal_in_workers(folder):
    """Workers replace them too."""
    spoil(folder, 8)
    loader = images(data=str(folder), image_size=32, epoch_samples=48).make_loader(batch_size=8, num_workers=2)
    assert sum(len(labels) for _, labels in loader) == 48


def test_a_folder_that_is_mostly_bad_ends_the_trial(folder):
    """More than half bad: one clear sentence, in the process and out of a worker."""
    spoil(folder, 14)
    samples = ImageFolder(folder, 32, 100)
    with pytest.raises(WorkloadError, match=r"of the first 2\d files tried in .* are not images: .*--data"):
        list(samples)
    with pytest.raises(WorkloadError, match="are not images"):
        list(DataLoader(ImageFolder(folder, 32, 100), batch_size=50, num_workers=1))
    spoil(folder, 24)
    with pytest.raises(WorkloadError, match="not images"):
        ImageFolder(folder, 32, 100)[0]


def test_a_tiny_folder_without_a_single_good_file_ends_the_trial(folder):
    """Fewer files than the rule of halves needs."""
    spoil(folder, 24)
    for path in sorted(folder.glob("*/*.jpg"))[3:]:
        path.unlink()
    with pytest.raises(WorkloadError, match="none of the 3 files"):
        ImageFolder(folder, 32, 100)[0]


def test_too_many_open_files_is_not_taken_for_a_bad_image(folder, monkeypatch):
    """A fault of the process stays what it is."""
    samples = ImageFolder(folder, 32, 24)

    def fails(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("builtins.open", fails)
    with pytest.raises(OSError, match="Too many open files"):
        samples[0]


def test_check_names_and_counts_bad_files(folder):
    """Nothing to say about good files; bad ones are counted and named; mostly bad ones are refused."""
    workload = images(data=str(folder))
    assert workload.check() == []
    bad = spoil(folder, 1)
    assert workload.check() == [f"1 of 24 files is not an image and is skipped: {bad[0]}"]
    bad = spoil(folder, 12)
    (note,) = workload.check()
    assert note == f"12 of 24 files are not images and are skipped: {', '.join(bad[:10])}, ..."
    spoil(folder, 13)
    with pytest.raises(WorkloadError, match=r"13 of 24 files in .* are not images .*--data"):
        workload.check()


def test_check_looks_at_a_sample_of_many_files(folder, monkeypatch):
    """Evenly spaced, and said so."""
    spoil(folder, 3)
    monkeypatch.setattr(ImageFolder, "check_limit", 8)
    (note,) = images(data=str(folder)).check()
    assert note == "1 of 8 files looked at is not an image and is skipped: class-0/00.jpg"


@pytest.mark.parametrize("fault", ["missing", "empty", "no-images"])
def test_a_folder_without_images_is_refused(tmp_path, fault):
    """By the check before a search, and by the dataset."""
    root = tmp_path / "data"
    if fault != "missing":
        root.mkdir()
    if fault == "no-images":
        (root / "table.csv").write_text("1,2")
    wanted = {"missing": "there is no folder", "empty": "it holds no files", "no-images": "only 1 other files"}[fault]
    with pytest.raises(WorkloadError, match=f"{wanted}.*--data"):
        images(data=str(root)).check()
    with pytest.raises(WorkloadError, match=wanted):
        _ = images(data=str(root)).dataset


@pytest.mark.parametrize(
    ("options", "wanted"),
    [({"model": "vgg"}, "use one of"), ({"image_size": 8}, "32 pixels"), ({"epoch_samples": 0}, "1 or more")],
)
def test_impossible_options_are_refused_at_once(options, wanted):
    """Before any file is looked at."""
    with pytest.raises(WorkloadError, match=wanted):
        images(data="/nowhere", **options)


def test_without_data_the_photo_set_is_used(tmp_path, monkeypatch):
    """And the defaults without a GPU are `small` at 160 pixels."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    write_image(tmp_path / "feedrate" / "photos-2000-v1" / "class-0" / "0.jpg")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    workload = images()
    assert len(workload.dataset) == 50_000
    assert workload.dataset[49_999][0].shape == (3, 160, 160)
    buffer = io.BytesIO()
    torch.save(workload.dataset, buffer)
    assert buffer.tell() < 5000
