"""Looks at what a loader delivers, in a process that made it and did nothing else."""
