"""Which rank a process is: torchrun's variables say so, or torch's process group."""

import pytest
import torch.distributed

from feedrate.trainables.ranks.rank import Rank


@pytest.fixture
def group(monkeypatch):
    """Lets torch's process group have a size, in which this process is the last rank."""

    def make(world_size):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: world_size - 1)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: world_size)

    return make


def test_torchruns_variables():
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    rank = Rank.of_environment(environment)
    assert rank == Rank(number=5, local_number=1, world_size=8, local_world_size=4)
    assert Rank.from_json(rank.to_json()) == rank


@pytest.mark.parametrize("environment", [{}, {"RANK": "0"}, {"RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "x", "WORLD_SIZE": "2"}])
def test_no_rank_in_the_environment(environment):
    assert Rank.of_environment(environment) is None


@pytest.mark.parametrize(
    ("environment", "local"),
    [
        ({}, 8),
        ({"OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 4),
        ({"MPI_LOCALNRANKS": "2"}, 2),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, 4),
        ({"LOCAL_WORLD_SIZE": "8", "SLURM_STEP_TASKS_PER_NODE": "1"}, 8),
        ({"MPI_LOCALNRANKS": ""}, 8),
    ],
)
def test_a_process_group_and_the_ranks_of_this_host(group, environment, local):
    """If no launcher says how many there are, all of them are taken to be here."""
    group(8)
    assert Rank.of_process_group(environment) == Rank(number=7, local_number=7 % local, world_size=8, local_world_size=local)


def test_no_process_group_or_one_of_one_rank(group):
    assert Rank.of_process_group({}) is None
    group(1)
    assert Rank.of_process_group({}) is None
