"""Checks whether changing the loader changes the data."""
