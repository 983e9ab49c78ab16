"""What differs between the supported versions of torch."""

import tempfile
from importlib import metadata

import pytest

from feedrate.trainables.sandbox import compat


@pytest.mark.parametrize(("last", "is_inside"), [((99, 0), True), ((0, 0), False)])
def test_an_old_torch_makes_its_folder_where_it_is_removed(tmp_path, monkeypatch, last, is_inside):
    """torch 2.6 makes a temporary folder when it is imported, which stays if its process is killed; newer ones make none."""
    monkeypatch.setattr(compat, "LAST_WITH_FOLDER", last)
    before = tempfile.gettempdir()
    with compat.torch_folder_in(str(tmp_path / "temp")):
        made = tempfile.TemporaryDirectory()  # what torch/distributed/nn/jit/instantiator.py does
    with made:
        assert made.name.startswith(f"{tmp_path}/temp/") == is_inside
    assert tempfile.gettempdir() == before


def test_the_installed_torch_can_be_compared():
    assert compat._release(metadata.version("torch")) >= (2, 6)
