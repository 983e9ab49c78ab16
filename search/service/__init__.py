"""Searches whose user is away: Ray Jobs, searches that Ray has forgotten, copies of a run at an address, and freeing disk space."""
