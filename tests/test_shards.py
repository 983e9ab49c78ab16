"""make test in several processes: tests that share something costly are in one of them."""

import os

import pytest


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process runs all tests")
def test_the_finished_search_is_made_in_one_process(finished, request):
    """pytest-xdist puts the group behind the name; tests without it go to whichever process is free, and each makes the search anew."""
    assert request.node.nodeid.endswith("@finished")
