"""Tunes the loader of a training while it trains: every measured step is a step of the training."""
