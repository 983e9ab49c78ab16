"""Decides how many workers the loader of a running training has, as plain logic: it gets times and a clock, and loads nothing."""
