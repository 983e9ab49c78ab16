"""Runs user code in processes that end, and leaves no process or file of theirs behind."""
