"""photos.py: the photo-like JPEG set in the user's cache."""

import subprocess
import sys

import pytest
from PIL import Image

from feedrate.trainables.bundled import photos
from feedrate.trainables.bundled.photos import photo_folder
from feedrate.trainables.workload import WorkloadError

MAKE = "from feedrate.trainables.bundled.photos import photo_folder; print(photo_folder(40))"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "feedrate"


def test_the_set_looks_like_photos_to_a_decoder(cache, capfd):
    """40 JPEG files in ten classes, 400-640 px wide, about 100 kB each, with progress in plain lines."""
    folder = photo_folder(40)
    files = sorted(folder.glob("*/*.jpg"))
    assert folder == cache / "photos-40-v1"
    assert len(files) == 40
    assert len({file.parent for file in files}) == 10
    assert 80_000 < sum(file.stat().st_size for file in files) / 40 < 120_000
    for file in files:
        with Image.open(file) as image:
            assert image.format == "JPEG"
            assert 400 <= image.width <= 640
            image.load()
    output = capfd.readouterr()
    assert output.err.endswith(f"making 40 photos in {folder}: 100 %\n")
    assert not output.out


def test_the_set_is_made_once(cache, monkeypatch):
    """The second call makes nothing, and needs no right to write."""
    folder = photo_folder(3)
    monkeypatch.setattr(photos, "_make", None)
    cache.chmod(0o500)
    assert photo_folder(3) == folder


def test_the_set_is_the_same_everywhere(cache, tmp_path, monkeypatch):
    """Two sets made apart hold the same bytes."""
    first = {file.name: file.read_bytes() for file in photo_folder(6).glob("*/*")}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert {file.name: file.read_bytes() for file in photo_folder(6).glob("*/*")} == first


def test_a_crash_leaves_nothing_half_made(cache, monkeypatch):
    """After a failure there is no set; the next call makes it whole."""
    real = photos.photo

    def fails_late(index, label, textures):
        if index == 7:
            raise RuntimeError("killed")
        return real(index, label, textures)

    monkeypatch.setattr(photos, "photo", fails_late)
    with pytest.raises(RuntimeError, match="killed"):
        photo_folder(8)
    assert not (cache / "photos-8-v1").exists()
    monkeypatch.setattr(photos, "photo", real)
    assert len(list(photo_folder(8).glob("*/*.jpg"))) == 8
    assert not list(cache.glob("*.part"))


def test_two_processes_that_start_at_once_share_one_set(cache):
    """Both return the same whole folder; making it needs no torch."""
    command = [sys.executable, "-c", MAKE + "; import sys; assert 'torch' not in sys.modules"]
    makers = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [maker.communicate(timeout=60) for maker in makers]
    assert [maker.returncode for maker in makers] == [0, 0], outputs
    assert {output[0].strip() for output in outputs} == {str(cache / "photos-40-v1")}
    assert len(list(cache.glob("photos-40-v1/*/*.jpg"))) == 40
    assert sum("making 40 photos" in output[1] for output in outputs) == 1


def test_a_cache_that_cannot_be_written_is_explained(tmp_path, monkeypatch):
    """The message names the folder, the reason and both ways out."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(WorkloadError, match=r"cannot be written to .*Not a directory.*XDG_CACHE_HOME.*--data DIR"):
        photo_folder(5)
