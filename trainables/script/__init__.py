"""Runs a training command unchanged: finds the loader that its training reads, and makes its loop the step of a workload."""
