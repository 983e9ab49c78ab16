"""dimension.py: one dimension from a command line, refused in one sentence if torch cannot use it."""

import pytest

from feedrate.search.space.dimension import Choice, Range, parse_dimension


@pytest.mark.parametrize(
    ("name", "text", "dimension"),
    [
        ("num_workers", "0..32", Range(0, 32)),
        ("num_workers", "4", Choice((4,))),
        ("batch_size", "128,32,64,32", Choice((32, 64, 128))),
        ("pin_memory", "true,false", Choice((True, False))),
        ("persistent_workers", "True", Choice((True,))),
        ("multiprocessing_context", "default,spawn", Choice((None, "spawn"))),
        ("in_order", "false,true", Choice((False, True))),
        ("sharing_strategy", "file_descriptor,file_system", Choice((None, "file_system"))),
        ("trainer_cpus", "none,1,2", Choice((None, 1, 2))),
        ("trainer_cpus", "2,1", Choice((1, 2))),
    ],
)
def test_parses(name, text, dimension):
    """Ranges include both ends, lists are folded and sorted."""
    assert parse_dimension(name, text) == dimension


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("num_workers", "-1", "must be 0 or more, not -1"),
        ("prefetch_factor", "0", "must be 1 or more, not 0"),
        ("batch_size", "0", "must be 1 or more, not 0"),
        ("batch_size", "8..4", "backwards; write 4..8"),
        ("batch_size", " , ", "the list is empty"),
        ("num_workers", "abc", "'abc' is not a whole number"),
        ("num_workers", "3..", "'' is not a whole number"),
        ("num_workers", "0..999999999", "too wide"),
        ("pin_memory", "maybe", "'maybe' is not one of true, false"),
        ("multiprocessing_context", "thread", "default, fork, forkserver, spawn"),
        ("sharing_strategy", "memory", "'memory' is not one of file_descriptor, file_system"),
        ("trainer_cpus", "none,0", "must be 1 or more, not 0: none lets the workers run on every CPU"),
        ("trainer_cpus", "all", "'all' is not a whole number"),
        ("trainer_cpus", "1..2", "'1..2' is not a whole number"),
    ],
)
def test_refuses(name, text, words):
    """Bad text gives one sentence that names the flag, the text and what is wrong."""
    with pytest.raises(ValueError, match=words) as caught:
        parse_dimension(name, text)
    assert str(caught.value).startswith("--" + name.replace("_", "-"))
    assert "\n" not in str(caught.value)
