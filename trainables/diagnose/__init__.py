"""Finds out where a trial hangs, why a batch failed, and who made a loader."""
