"""Finds out where a trial hangs, and why a batch failed."""
