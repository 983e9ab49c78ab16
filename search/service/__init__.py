"""Searches that continue while the user is away: Ray Jobs, searches that outlived Ray's memory of them, copies at an address."""
