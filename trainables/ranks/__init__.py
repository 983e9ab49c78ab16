"""Keeps the ranks of a training at the same step while rank 0 measures, and adds up what all ranks did; lets them agree on a setting while they train on."""
