"""Examines what a loader delivers, in a process that made the loader and did nothing else with it."""
