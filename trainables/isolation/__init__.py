"""Runs user code in processes that end, and leaves nothing of them behind."""
